from hdkd_timm.benchmark.tables import format_rows


def test_format_rows():
    rows = [
        dict(part='step', name='one pass', ms=12.345, ratio=2.0, memory=2**30),
        dict(part='growth', name='x'),
        dict(part='step', name='b', ms=1.0, ratio=1.0),
    ]
    assert format_rows(rows, 'step').splitlines() == [
        '| name | ms | ratio | memory |',
        '|---|---:|---:|---:|',
        '| one pass | 12.3 | 2.00 | 1.0 GiB |',
        '| b | 1.0 | 1.00 | - |',
    ]

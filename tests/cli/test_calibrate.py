import pytest

from hdkd_timm.cli import main


@pytest.mark.parametrize('args', [['--calibrated'], ['--bootstrap', '5']])
def test_flags_that_calibration_does_not_use_are_unknown(args, capsys):
    with pytest.raises(SystemExit) as e:
        main(['calibrate', 'model', *args])
    assert e.value.code == 2
    assert f'unrecognized arguments: {args[0]}' in capsys.readouterr().err

"""The results of a benchmark as Markdown tables."""

from typing import Any, Dict, List

from ..utils.memory import format_bytes

Row = Dict[str, Any]

PROFILE = ('name', 'form', 'ms', 'share', 'gflops', 'gbytes', 'ratio')
COLUMNS = {
    'step': ('name', 'ms', 'ratio', 'memory'),
    'profile': PROFILE,
    'inference': (
        *('name', 'parameters', 'multiply_adds', 'batch_size', 'form'),
        *('images_per_second', 'ratio', 'p50_ms', 'p95_ms'),
    ),
    'inference-profile': PROFILE,
    'epoch': ('name', 'images_per_second', 'ratio'),
    'growth': ('name', 'img_size', 'batch_size', 'ms', 'ratio'),
}
HEADINGS = {
    'step': 'A training step, {batch_size} images of {img_size} px (ratio: speed relative to the first row)',
    'profile': 'Operators of a step, {batch_size} images of {img_size} px, one by one (ratio: share of the roofline)',
    'inference': 'Inference at {img_size} px (ratio: speed relative to eager; p50, p95: latency of single images)',
    'inference-profile': 'Operators of inference, {batch_size} images of {img_size} px, fused, channels-last, one by'
    ' one (ratio: share of the roofline)',
    'epoch': 'An epoch of training, steps of {batch_size} images of {img_size} px (ratio: time relative to the first'
    ' row)',
    'growth': 'A training step by size (ratio: time per image and pixel, relative to the median of these)',
}


def _format(column: str, value: Any) -> str:
    if value is None:
        return '-'
    if column == 'memory':
        return format_bytes(value)
    if column == 'multiply_adds':
        return f'{value / 1e9:.3f} G'
    if column == 'share':
        return f'{value:.1%}'
    if column in ('ms', 'p50_ms', 'p95_ms', 'images_per_second', 'gflops', 'gbytes'):
        return f'{value:.1f}'
    if column == 'ratio':
        return f'{value:.2f}'
    return f'{value:,}' if isinstance(value, int) else str(value)


def format_rows(rows: List[Row], part: str) -> str:
    """The rows of a part of the benchmark as a Markdown table."""
    columns = COLUMNS[part]
    lines = [
        '| ' + ' | '.join(name.replace('_', ' ') for name in columns) + ' |',
        '|' + '|'.join('---' if name in ('name', 'form') else '---:' for name in columns) + '|',
    ]
    lines += ['| ' + ' | '.join(_format(c, row.get(c)) for c in columns) + ' |' for row in rows if row['part'] == part]
    return '\n'.join(lines)

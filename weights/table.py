"""The table of released weights, as Markdown, from their metrics.json: `python weights/table.py`"""

import json
from pathlib import Path
from typing import Any, Dict, List

import timm

from hdkd_timm.evaluation.metrics import format_metric
from hdkd_timm.models.pretrained import RELEASES, WEIGHTS

HERE = Path(__file__).parent
DATA = {
    'brain_mri': 'Brain Tumor MRI, grouped split',
    'brain_mri_64': 'Brain Tumor MRI, grouped split',
    'ham10k': 'HAM10000, split by lesion',
    'derm': 'HAM10000, split by lesion',
    'chest_xray': 'Chest X-rays of children, official split',
}
HEAD = ['weights', 'data', 'licence', 'size', 'accuracy', 'balanced accuracy', 'macro AUROC', 'seed', 'sha256']


def _in_per_cent(report: Dict[str, Any], key: str) -> str:
    low, high = (format_metric(key, value).removesuffix(' %') for value in report['intervals_95'][key])
    return f'{format_metric(key, report[key])} ({low}-{high})'


def list_rows() -> List[List[str]]:
    rows = []
    for name, release in RELEASES.items():
        metrics = json.loads((HERE / name / 'metrics.json').read_text(encoding='utf-8'))
        report = metrics['test']
        low, high = report['intervals_95']['macro_auroc']
        rows.append(
            [
                f'`{name}`',
                DATA[name.split('.')[1]],
                timm.get_pretrained_cfg(name).license,
                f'{metrics["stages"][-1]["img_size"]} px, {(HERE / name / WEIGHTS).stat().st_size / 1e6:.1f} MB',
                _in_per_cent(report, 'accuracy'),
                _in_per_cent(report, 'balanced_accuracy'),
                f'{report["macro_auroc"]:.3f} ({low:.3f}-{high:.3f})',
                str(metrics['seed']),
                f'`{release.sha256}`',
            ]
        )
    return rows


def write_table(columns: List[str]) -> str:
    """The rows with these of the columns."""
    kept = [HEAD.index(column) for column in columns]
    lines = [HEAD, ['---'] * len(HEAD), *list_rows()]
    return '\n'.join('| ' + ' | '.join(line[i] for i in kept) + ' |' for line in lines)


if __name__ == '__main__':
    print(write_table(HEAD))

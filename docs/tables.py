"""Write the measured tables of the pages from `docs/tables/*.csv`: `python docs/tables.py`

A page holds a table between `<!-- table: NAME -->` and `<!-- end -->`. The CSV files hold what was measured; the
command that measured it is beside the table in the page. The table of released weights comes from their metrics.json,
that of a study, `study_NAME`, from `docs/studies/NAME/`, and `peers` from that of the learning curve. A test checks
that the pages are up to date.
"""

import csv
import json
import re
import runpy
import statistics
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import yaml

DOCS = Path(__file__).parent
MARKED = re.compile(r'(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)', re.S)
RELEASED_COLUMNS = ['weights', 'data', 'licence', 'size', 'accuracy', 'balanced accuracy', 'macro AUROC']
METRICS = ['accuracy', 'balanced_accuracy', 'macro_auroc']
Rows = List[Dict[str, str]]


def to_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns beside the first are aligned to the right."""
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def all_images(rows: Rows) -> str:
    cells = {(r['network'], r['data']): f'{r["balanced_accuracy"]} / {float(r["macro_auroc"]):.3f}' for r in rows}
    return to_markdown(
        ['validation: balanced accuracy, % / macro AUROC', 'brain MRI', 'HAM10000'],
        [
            [network, cells[network, 'brain_mri'], cells[network, 'ham10k']]
            for network in dict.fromkeys(r['network'] for r in rows)
        ],
    )


STARTS = {'random': 'random weights', 'ImageNet': 'ImageNet weights', 'search': 'a search over models'}
COLUMNS = ['network', 'starts from', 'px', 'accuracy', 'AUC', 'source']


def _list_published(rows: Rows) -> List[List[str]]:
    return [
        [
            *(r['network'], STARTS[r['start']], r['img_size'], f'{float(r["accuracy"]):.3f}'),
            r['auc'] and f'{float(r["auc"]):.3f}',
            r['source'],
        ]
        for r in rows
    ]


def chest_xray(rows: Rows) -> str:
    """The rows of the released weights, from their metrics, then the published ones in the order of the file."""
    found = []
    for tag in ('hdkd_student.chest_xray', 'hdkd_student_s4.chest_xray'):
        with open(DOCS.parent / 'weights' / tag / 'metrics.json', encoding='utf-8') as file:
            test = json.load(file)['test']
        start = 'random weights, teacher from ImageNet weights'
        found.append([f'`{tag}`', start, '224', f'{test["accuracy"]:.3f}', f'{test["macro_auroc"]:.3f}', 'this page'])
    return to_markdown(COLUMNS, [*found, *_list_published(rows)])


def _list_arms(study: str, names: Dict[str, str]) -> List[List[str]]:
    """Arms of a study from random weights: means with standard deviations over the seeds."""
    folder = DOCS / 'studies' / study
    size = str(yaml.safe_load((folder / 'study.yaml').read_text(encoding='utf-8'))['img_size'])
    with open(folder / 'results.csv', encoding='utf-8', newline='') as file:
        arms = {r['arm']: r for r in csv.DictReader(file)}
    found = []
    for arm, name in names.items():
        metrics = ('accuracy', 'macro_auroc')
        values = [(float(arms[arm][f'test_{metric}']), float(arms[arm][f'test_{metric}_sd'])) for metric in metrics]
        found.append([name, STARTS['random'], size, *(f'{mean:.3f} ± {sd:.3f}' for mean, sd in values), 'this page'])
    return found


def breastmnist(rows: Rows) -> str:
    """The arms of the study, then the published rows."""
    names = {
        'hdkd': '`hdkd_student`, HDKD',
        'alone': '`hdkd_student` alone',
        'alone-lr3e-4': '`hdkd_student` alone, 3e-4',
    }
    return to_markdown(COLUMNS, [*_list_arms('breastmnist', names), *_list_published(rows)])


def busi(rows: Rows) -> str:
    """The arms of the study, then the published rows."""
    names = {'alone-lr3e-4': '`hdkd_student` alone, 3e-4', 'alone': '`hdkd_student` alone, 1e-3'}
    return to_markdown(COLUMNS, [*_list_arms('busi', names), *_list_published(rows)])


def multi_label(rows: Rows) -> str:
    metrics = {
        'macro_auroc': 'macro AUROC',
        'mean_ap': 'mean average precision',
        'macro_f1': 'macro F1',
        'exact_match': 'exact match',
    }
    return to_markdown(
        ['600 test images', *metrics.values()],
        [
            [
                r['network'],
                *('{:.3f} ({:.3f}-{:.3f})'.format(*(float(r[m + s]) for s in ('', '_low', '_high'))) for m in metrics),
            ]
            for r in rows
        ],
    )


def training_step(rows: Rows) -> str:
    slowest = float(rows[0]['milliseconds'])
    return to_markdown(
        ['training step of HDKD, 8 images', 'ms', 'speed-up', 'peak memory'],
        [
            [
                r['form'],
                f'{int(r["milliseconds"]):,}',
                f'{slowest / float(r["milliseconds"]):.2f} x',
                r['peak_memory_gib'] and f'{r["peak_memory_gib"]} GiB',
            ]
            for r in rows
        ],
    )


def training_step_avx2(rows: Rows) -> str:
    return training_step(rows)


def training_step_avx512(rows: Rows) -> str:
    return training_step(rows)


def process_settings(rows: Rows) -> str:
    """Speed and memory relative to the first row, the published loop."""
    first = rows[0]
    return to_markdown(
        ['training step of HDKD, 8 images', 'ms (fastest to slowest)', 'speed-up', 'peak memory', 'of the published'],
        [
            [
                r['setting'],
                f'{int(r["milliseconds"]):,} ({int(r["fastest"]):,} to {int(r["slowest"]):,})',
                f'{float(first["milliseconds"]) / float(r["milliseconds"]):.2f} x',
                f'{r["memory_gib"]} GiB',
                f'{float(r["memory_gib"]) / float(first["memory_gib"]):.2f}',
            ]
            for r in rows
        ],
    )


def step_profile(rows: Rows) -> str:
    """The parts that take a hundredth of the time or more."""
    return to_markdown(
        ['operators', 'network', 'ms', 'share', 'GFLOP/s', 'GB/s', 'of the roofline'],
        [
            [
                r['part'],
                r['network'],
                r['milliseconds'],
                f'{float(r["share"]):.1%}',
                r['gflops'] if float(r['gflops'] or 0) else '',
                r['gbytes'],
                r['roofline'] and f'{float(r["roofline"]):.0%}',
            ]
            for r in rows
            if float(r['share']) >= 0.01
        ],
    )


def step_profile_avx512(rows: Rows) -> str:
    return step_profile(rows)


def inference_profile(rows: Rows) -> str:
    return step_profile([{**r, 'network': f'`{r["network"]}`'} for r in rows])


def inference_profile_avx2(rows: Rows) -> str:
    return inference_profile(rows)


def student_inference(rows: Rows) -> str:
    def cell(row: Dict[str, str], batch: int) -> str:
        speedup = row[f'speedup_{batch}']
        return row[f'batch_{batch}'] + (f' ({speedup} x)' if speedup else '')

    return to_markdown(
        ['inference of `hdkd_student`, images per second', 'batch 1', 'batch 8', 'batch 64'],
        [[r['form'], *(cell(r, batch) for batch in (1, 8, 64))] for r in rows],
    )


def exported_files(rows: Rows) -> str:
    def cell(row: Dict[str, str], batch: int) -> str:
        return f'{row[f"batch_{batch}"]} ({row[f"speedup_{batch}"]} x)'

    return to_markdown(
        ['images per second', 'network', 'batch 1', 'batch 8', 'batch 64', 'batch 1, ms: p50 / p95'],
        [
            [
                r['form'],
                f'`{r["network"]}`',
                *(cell(r, batch) for batch in (1, 8, 64)),
                f'{r["p50_ms"]} / {r["p95_ms"]}',
            ]
            for r in rows
        ],
    )


def exported_files_avx2(rows: Rows) -> str:
    return exported_files(rows)


def int8_accuracy(rows: Rows) -> str:
    return to_markdown(
        ['test images', 'accuracy, float32', 'int8', 'balanced accuracy, float32', 'int8', 'AUROC, float32', 'int8'],
        [
            [
                f'`{r["network"]}`',
                *(f'{100 * float(r[f"{name}_{p}"]):.1f} %' for name in METRICS[:2] for p in ('float32', 'int8')),
                *(f'{float(r[f"{METRICS[2]}_{p}"]):.3f}' for p in ('float32', 'int8')),
            ]
            for r in rows
        ],
    )


def rare_classes(rows: Rows) -> str:
    """Each metric of the validation and of the test images."""

    def cell(row: Dict[str, str], metric: str) -> str:
        values = [float(row[f'{split}_{metric}']) for split in ('val', 'test')]
        return ' / '.join(f'{value:.3f}' if metric == 'macro_auroc' else f'{100 * value:.1f}' for value in values)

    return to_markdown(
        ['HAM10000, validation / test', 'tau', 'accuracy, %', 'balanced accuracy, %', 'macro AUROC'],
        [[f'`{r["network"]}`', r['tau'], *(cell(r, metric) for metric in METRICS)] for r in rows],
    )


def network_inference(rows: Rows) -> str:
    return to_markdown(
        [
            'images per second, batch 1 / 8 / 64',
            'parameters',
            'multiply-adds',
            'PyTorch',
            'fused, channels-last',
            '+ compiled',
            'ONNX Runtime',
            'int8',
        ],
        [
            [
                f'`{r["model"]}`',
                f'{r["parameters_m"]} M',
                f'{r["multiply_adds_g"]} G',
                *(r[form] for form in ('eager', 'fused', 'compiled', 'onnx', 'int8')),
            ]
            for r in rows
        ],
    )


def deployment(rows: Rows) -> str:
    def cell(row: Dict[str, str], batch: int) -> str:
        speedup = row[f'speedup_{batch}']
        return f'{row[f"batch_{batch}"]} ({speedup} x)' if speedup else ''

    return to_markdown(
        ['runtime', 'file', 'images per second, batch 1', 'batch 8'],
        [[r['runtime'], f'{r["megabytes"]} MB', cell(r, 1), cell(r, 8)] for r in rows],
    )


def method_matrix(rows: Rows) -> str:
    lines = []
    for pair in dict.fromkeys((r['teacher'], r['student']) for r in rows):
        failed = [f'`{r["method"]}`' for r in rows if (r['teacher'], r['student']) == pair and r['error']]
        lines.append(f'| `{pair[0]}` | `{pair[1]}` | {", ".join(failed) or "–"} |\n')
    return '| teacher | student | all methods but |\n| --- | --- | --- |\n' + ''.join(lines)


def method_parity(rows: Rows) -> str:
    names = {
        'loss': 'loss',
        'student_gradient': 'gradients of the student',
        'parameter_gradient': 'gradients of its layers',
        'memory': 'memory',
    }
    cells = [[f'`{r["method"]}`', *(f'{float(r[c]):.1g}' if r[c] else '' for c in names)] for r in rows]
    return to_markdown(['largest relative error', *names.values()], cells)


def write_study(folder: Path) -> str:
    """The arms of a study, best first by the training images that it left out, over all seeds or, where not all arms
    have as many, with seed 1; by the validation images where `unused.csv` is missing."""
    baseline = yaml.safe_load((folder / 'study.yaml').read_text(encoding='utf-8'))['baseline']
    unused: List[Tuple[str, str, float]] = []
    if (folder / 'unused.csv').exists():
        with open(folder / 'unused.csv', encoding='utf-8', newline='') as file:
            unused = [(*r['run'].rsplit('-', 1), 100 * float(r['balanced_accuracy'])) for r in csv.DictReader(file)]
    with open(folder / 'results.csv', encoding='utf-8', newline='') as file:
        arms = {r['arm']: r for r in csv.DictReader(file)}
    found = {arm: [value for name, _, value in unused if name == arm] for arm in arms}
    first = {name: value for name, seed, value in unused if seed == '1'}
    has_all_seeds = len({r['seeds'] for r in arms.values()}) == 1
    if unused and has_all_seeds:
        order = {arm: statistics.mean(values) for arm, values in found.items()}
    else:
        order = first or {arm: 100 * float(r['val_balanced_accuracy']) for arm, r in arms.items()}

    def spread(mean: float, deviation: str, factor: float, digits: int) -> str:
        return f'{factor * mean:.{digits}f}' + (
            f' ± {factor * float(deviation):.{digits}f}' if deviation not in ('', 'nan') else ''
        )

    lines = []
    for arm in sorted(found, key=lambda arm: -order[arm]):
        r, values = arms[arm], found[arm]
        mean = {name: float(r[f'test_{name}']) for name in ('balanced_accuracy', 'macro_auroc', 'log_loss')}
        of_unused = spread(statistics.mean(values), str(statistics.stdev(values)), 1, 1) if len(values) > 1 else ''
        if not unused:
            chosen_by = [r['seeds'], spread(float(r['val_balanced_accuracy']), r['val_balanced_accuracy_sd'], 100, 1)]
        else:
            chosen_by = [*([] if has_all_seeds else [f'{first[arm]:.1f}']), r['seeds'], of_unused]
        difference = [r[f'balanced_accuracy_{name}'] for name in ('difference', 'low', 'high')]
        lines.append(
            [
                f'`{arm}`',
                *chosen_by,
                spread(mean['balanced_accuracy'], r['test_balanced_accuracy_sd'], 100, 1),
                f'{mean["macro_auroc"]:.3f}',
                f'{mean["log_loss"]:.3f}',
                '{:+.1f} ({:+.1f} to {:+.1f})'.format(*(100 * float(x) for x in difference)) if difference[0] else '',
            ]
        )
    if not unused:
        columns = ['seeds', 'validation, %']
    elif has_all_seeds:
        columns = ['seeds', 'left-out training images, %']
    else:
        columns = ['left-out training images, %, seed 1', 'seeds', 'all seeds']
    columns += ['test, %', 'test AUROC', 'test log loss', f'test, points above `{baseline}`']
    return to_markdown(['arm', *columns], lines)


def _spread(row: Dict[str, str]) -> str:
    """Test balanced accuracy of an arm in per cent, with the standard deviation over its seeds."""
    mean, deviation = (row[f'test_balanced_accuracy{suffix}'] for suffix in ('', '_sd'))
    return f'{100 * float(mean):.1f}' + (f' ± {100 * float(deviation):.1f}' if deviation not in ('', 'nan') else '')


def write_curve(folder: Path) -> str:
    """Each fraction of the training images of a study: its teacher, the student alone and HDKD."""
    with open(folder / 'results.csv', encoding='utf-8', newline='') as file:
        arms = {(r['train_fraction'], r['arm']): r for r in csv.DictReader(file)}
    teachers = json.loads((folder / 'teachers.json').read_text(encoding='utf-8'))
    lines = []
    for fraction in dict.fromkeys(fraction for fraction, _ in arms):
        alone, hdkd = (arms.get((fraction, arm)) for arm in ('alone', 'hdkd'))
        if alone is None or hdkd is None:
            continue
        difference = [100 * float(hdkd[f'balanced_accuracy_{name}']) for name in ('difference', 'low', 'high')]
        seeds = hdkd['seeds'] if hdkd['seeds'] == alone['seeds'] else f'{alone["seeds"]} and {hdkd["seeds"]}'
        lines.append(
            [
                f'{int(alone["train_images"]):,} ({100 * float(fraction):g} %)',
                f'{100 * teachers[f"{float(fraction):g}"]:.1f}',
                _spread(alone),
                _spread(hdkd),
                seeds,
                '{:+.1f} ({:+.1f} to {:+.1f})'.format(*difference),
            ]
        )
    return to_markdown(
        ['training images', 'teacher', 'student alone', 'HDKD', 'seeds', 'HDKD, points above alone'], lines
    )


def write_peers(folder: Path) -> str:
    """The networks of a study at a tenth of the training images, the best first."""
    arms = yaml.safe_load((folder / 'study.yaml').read_text(encoding='utf-8'))['arms']
    with open(folder / 'results.csv', encoding='utf-8', newline='') as file:
        rows = {r['arm']: r for r in csv.DictReader(file) if float(r['train_fraction']) == 0.1}
    lines = []
    for arm, r in sorted(rows.items(), key=lambda item: -float(item[1]['test_balanced_accuracy'])):
        name = arms[arm].get('model', 'hdkd_student').split('.')[0]
        low, high = (100 * float(r[f'balanced_accuracy_{side}'] or 'nan') for side in ('low', 'high'))
        lines.append(
            [
                f'`{name}`' + (', HDKD' if arm == 'hdkd' else ''),
                'ImageNet weights' if arms[arm].get('pretrained') else 'random weights',
                f'{int(r["parameters"]) / 1e6:.1f} M',
                r['seeds'],
                _spread(r),
                f'{float(r["test_macro_auroc"]):.3f}',
                f'{100 * float(r["balanced_accuracy_difference"]):+.1f} ({low:+.1f} to {high:+.1f})'
                if r['balanced_accuracy_difference']
                else '',
            ]
        )
    columns = ['starts from', 'parameters', 'seeds', 'test, %', 'test AUROC', 'points above `hdkd_student` alone']
    return to_markdown(['network', *columns], lines)


TABLES: Dict[str, Callable[[Rows], str]] = {
    f.__name__: f
    for f in (
        *(all_images, breastmnist, busi, chest_xray, multi_label),
        *(training_step, training_step_avx2, training_step_avx512),
        process_settings,
        *(step_profile, step_profile_avx512, inference_profile, inference_profile_avx2),
        *(student_inference, network_inference, exported_files, exported_files_avx2, int8_accuracy),
        rare_classes,
        *(deployment, method_matrix, method_parity),
    )
}


def fill(page: str) -> str:
    """The text of a page with its tables as the CSV files have them."""

    def replace(match: re.Match) -> str:
        if match[2] == 'released':
            table = runpy.run_path(str(DOCS.parent / 'weights' / 'table.py'))
            return match[1] + '\n' + table['write_table'](RELEASED_COLUMNS) + '\n\n' + match[4]
        if match[2].startswith('study_'):
            folder = DOCS / 'studies' / match[2].removeprefix('study_')
            has_curve = 'train_fractions' in (folder / 'study.yaml').read_text(encoding='utf-8')
            return match[1] + '\n' + (write_curve if has_curve else write_study)(folder) + '\n' + match[4]
        if match[2] == 'peers':
            return match[1] + '\n' + write_peers(DOCS / 'studies' / 'learning_curve') + '\n' + match[4]
        with open(DOCS / 'tables' / f'{match[2]}.csv', encoding='utf-8', newline='') as file:
            return match[1] + '\n' + TABLES[match[2]](list(csv.DictReader(file))) + '\n' + match[4]

    return MARKED.sub(replace, page)


if __name__ == '__main__':
    for path in sorted(DOCS.glob('**/*.md')):
        text = path.read_text(encoding='utf-8')
        path.write_text(fill(text), encoding='utf-8')

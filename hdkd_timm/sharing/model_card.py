"""Model cards, the README.md of a model on the Hugging Face Hub, made from the files of a run."""

import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.metrics import METRIC_NAMES, defined_scores, format_interval, format_metric
from ..evaluation.problem import MULTI_LABEL
from ..evaluation.run_results import is_teacher, result_split
from ..models.pretrained import hub_id
from ..utils.text import printable

CONFUSION_PICTURE = 'confusion.png'
MAX_COLUMNS = 12  # largest number of classes that are columns of a table
# the settings of a training that readers look for first
SHOWN_SETTINGS = (
    'model',
    'img_size',
    'in_chans',
    'epochs',
    'batch_size',
    'opt',
    'lr',
    'weight_decay',
    'sched',
    'aug',
    'class_weights',
    'sampler',
    'amp',
    'seed',
)
SHOWN_OF_STUDENTS = (
    'teacher',
    'teacher_checkpoint',
    'teacher_logits',
    'method',
    'method_args',
    'ce_weight',
    'init_from_teacher',
)
SHOWN_OF_HDKD = ('kd_type', 'alpha', 'tau', 'feature_weight')


def escape(text: Any) -> str:
    """Text for a cell of a Markdown table, without the effect of markup, links, mentions, formulas or emoji."""
    text = printable(' '.join(str(text).split()))
    return re.sub(
        r'[\\`*_{}\[\]#]|[<>|&~@:$]|^[-+=]|(?<=www)\.',
        lambda found: f'\\{found[0]}' if found[0] in '\\`*_{}[]#' else f'&#{ord(found[0])};',
        text,
        flags=re.IGNORECASE,
    )


def _format_setting(value: Any) -> str:
    """A setting as text: lists and nested settings without Python's brackets."""
    if isinstance(value, dict):
        return ', '.join(f'{key}: {_format_setting(inner)}' for key, inner in value.items())
    return ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _format_name(name: Any) -> str:
    """An architecture as code, or escaped if it is not a plain name."""
    return f'`{name}`' if re.fullmatch(r'[\w.-]+', str(name)) else escape(name)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines)


def _metrics_table(result: Dict[str, Any]) -> str:
    intervals = result.get('intervals_95', {})
    return _table(
        ['metric', 'value', '95 % interval'],
        [
            [words, format_metric(name, result[name]), format_interval(name, intervals.get(name)) or '–']
            for name, words in METRIC_NAMES.items()
            if name in result
        ],
    )


def _label_table(result: Dict[str, Any]) -> str:
    return _table(
        ['label', 'AUROC', 'average precision', 'threshold', 'precision', 'recall', '95 % interval', 'F1', 'images'],
        [
            [
                escape(label),
                *(format_metric('', scores[key]) for key in ('auroc', 'ap', 'threshold', 'precision', 'recall')),
                format_interval('', scores.get('recall_95')) or '–',
                format_metric('', scores['f1']),
                scores['support'],
            ]
            for label, scores in defined_scores(result).items()
        ],
    )


def _class_table(result: Dict[str, Any]) -> str:
    return _table(
        ['class', 'precision', 'recall', '95 % interval', 'F1', 'images'],
        [
            [
                escape(label),
                *(format_metric('', scores[key]) for key in ('precision', 'recall')),
                format_interval('', scores.get('recall_95')) or '–',
                format_metric('', scores['f1']),
                scores['support'],
            ]
            for label, scores in defined_scores(result).items()
        ],
    )


def _counts_table(counts: Dict[str, Dict[str, int]], totals: Dict[str, int]) -> str:
    """Number of images per split and class, and of all in it: one row per split or, with many classes, per class."""
    labels = list(dict.fromkeys(label for of_class in counts.values() for label in of_class))
    lines = [
        ['split', *map(escape, labels), 'all'],
        *(
            [split, *(f'{of_class.get(label, 0):,}' for label in labels), f'{totals[split]:,}']
            for split, of_class in counts.items()
        ),
    ]
    if len(labels) > MAX_COLUMNS:
        lines[0][0] = 'class'
        lines = [list(column) for column in zip(*lines)]
    return _table(lines[0], lines[1:])


def _settings_table(network: Optional[str], settings: Dict[str, Any]) -> str:
    """The main settings of a network; '' if there are none.

    Args:
        network: 'teacher', 'student', ..., as in its metrics.json.
        settings: The settings of the run.
    """
    keys: Sequence[str] = SHOWN_SETTINGS
    if network == 'student':
        methods = settings.get('method', ('hdkd',))  # runs of earlier versions had no other
        uses_hdkd = 'hdkd' in [name.partition(':')[0] for name in methods]  # NAME:N is that of the N-th teacher
        keys = SHOWN_SETTINGS + SHOWN_OF_STUDENTS + (SHOWN_OF_HDKD if uses_hdkd else ())
        if settings.get('teacher_checkpoint'):  # `teacher` is the one that would have been trained
            keys = [key for key in keys if key != 'teacher']
    elif is_teacher(network or '') and 'teacher' in settings:  # those without a prefix are the student's
        own = {key.removeprefix('teacher_'): value for key, value in settings.items() if key.startswith('teacher_')}
        settings = {**settings, **{k: v for k, v in own.items() if v is not None}, 'model': settings['teacher']}
    rows = [[f'`{key}`', escape(_format_setting(settings[key]))] for key in keys if settings.get(key) not in (None, {})]
    return _table(['setting', 'value'], rows) if rows else ''


def _card_data(
    name: str,
    license: Optional[str],
    result: Optional[Dict[str, Any]],
    split: Optional[str],
    is_distilled: bool,
) -> ModelCardData:
    """The YAML metadata of a card."""
    results: Optional[List[EvalResult]] = (
        [
            EvalResult(
                task_type='image-classification',
                dataset_type='images',
                dataset_name='see below',
                dataset_split=split,
                metric_type=key,
                metric_name=words,
                metric_value=round(result[key], 4),
            )
            for key, words in METRIC_NAMES.items()
            if result.get(key) is not None
        ]
        if result
        else None
    )
    return ModelCardData(
        library_name='timm',
        pipeline_tag='image-classification',
        license=license,
        model_name=name.split('/')[-1],
        tags=['image-classification', 'timm', 'hdkd', 'medical', *(['knowledge-distillation'] if is_distilled else [])],
        eval_results=results,
    )


def write_card(
    name: str,
    config: Dict[str, Any],
    metrics: Optional[Dict[str, Any]] = None,
    settings: Optional[Dict[str, Any]] = None,
    counts: Optional[Dict[str, Dict[str, int]]] = None,
    license: Optional[str] = None,
    data: Optional[str] = None,
    load: Optional[str] = None,
    more: Optional[Dict[str, str]] = None,
    origins: Sequence[str] = (),
    totals: Optional[Dict[str, int]] = None,
) -> str:
    """A model card as Markdown with YAML metadata.

    Args:
        name: Name of the model on the Hub, ORG/NAME, or of released weights.
        config: Its config.json.
        metrics: Its metrics.json, if it is from a run.
        settings: The settings of the run.
        counts: Split -> class -> number of images.
        license: Licence of the weights as the Hub names it, such as 'cc-by-nc-4.0'; None if unknown.
        data: Description of the training data, with source, licence and attribution, Markdown.
        load: Name for `timm.create_model`; 'hf-hub:NAME' by default.
        more: Further sections after the one on training, heading -> Markdown.
        origins: Sentences on the licences of the weights that the training started from.
        totals: Split -> number of all images; the sum of `counts` by default.
    """
    metrics = metrics or {}
    is_multi_label = config.get('problem_type') == MULTI_LABEL
    if counts and totals is None:
        totals = {split: sum(of_class.values()) for split, of_class in counts.items()}
    split = result_split(metrics)
    result = metrics[split] if split else None
    is_hdkd = config['architecture'].startswith('hdkd_')
    card = ModelCard.from_template(
        _card_data(name, license, result, split, is_hdkd or metrics.get('name') == 'student'),
        template_path=str(Path(__file__).parent / 'templates' / 'model_card.md'),
        name=name,
        architecture=_format_name(config['architecture']),
        num_classes=config['num_classes'],
        class_names=', '.join(map(escape, config.get('label_names') or [])),
        input_size=config['pretrained_cfg']['input_size'],
        source=load or f'hf-hub:{name}',
        repository=name if '/' in name else hub_id(name),
        result=result,
        split=split,
        metrics=metrics,
        metrics_table=_metrics_table(result) if result else '',
        class_table=(_label_table if is_multi_label else _class_table)(result) if result else '',
        is_multi_label=is_multi_label,
        is_hdkd=is_hdkd,
        is_selected=not counts or 'val' in counts,
        confusion_picture=CONFUSION_PICTURE,
        data=(data or '').strip(),
        counts_table=_counts_table(counts, totals or {}) if counts else '',
        settings_table=_settings_table(metrics.get('name'), settings or {}),
        more=more or {},
        license=license,
        origins=origins,
    )
    return f'{card}\n'

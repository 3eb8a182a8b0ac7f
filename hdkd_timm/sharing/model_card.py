"""Model cards, README.md of a model on the Hugging Face Hub, made from what a run wrote."""
import re
from typing import Any, Dict, List, Optional, Sequence

from huggingface_hub import EvalResult, ModelCardData

from ..evaluation.metrics import METRIC_NAMES, format_interval, format_metric
from ..utils.text import printable

CONFUSION_PICTURE = 'confusion.png'
MAX_COLUMNS = 12  # classes up to which a table has a column of each
# what a reader asks first of how a network was trained
SHOWN_SETTINGS = (
    'model', 'img_size', 'in_chans', 'epochs', 'batch_size', 'opt', 'lr', 'weight_decay', 'sched', 'aug',
    'class_weights', 'sampler', 'amp', 'seed')
SHOWN_OF_STUDENTS = ('teacher', 'teacher_checkpoint', 'kd_type', 'alpha', 'tau', 'feature_weight')
CITATION = '''@article{elassiouti2024hdkd,
  title   = {HDKD: Hybrid Data-Efficient Knowledge Distillation Network for Medical Image Classification},
  author  = {EL-Assiouti, Omar S. and Hamed, Ghada and Khattab, Dina and Ebied, Hala M.},
  journal = {Engineering Applications of Artificial Intelligence},
  volume  = {138},
  year    = {2024},
  note    = {arXiv:2407.07516}
}'''
LIMITS = '''For research. Not a medical device: not tested, approved or meant for diagnosis, triage or treatment. It
knows the classes above and no others: any image gets one of them, healthy, foreign or of another organ. Images from
other scanners, hospitals or people than those it was trained on may be classified worse than the figures say; test it
on your own first. Its probabilities are as far off as the calibration error says.'''


def escape(text: Any) -> str:
    """Any text as a cell of a Markdown table that shows as it is: no markup, link, mention, formula or emoji of it."""
    text = printable(' '.join(str(text).split()))
    return re.sub(r'[\\`*_{}\[\]#]|[<>|&~@:$]|^[-+=]|(?<=www)\.', lambda found: (
        f'\\{found[0]}' if found[0] in '\\`*_{}[]#' else f'&#{ord(found[0])};'), text, flags=re.IGNORECASE)


def _code(name: Any) -> str:
    """A name of a network as code, or what it is if it is none."""
    return f'`{name}`' if re.fullmatch(r'[\w.-]+', str(name)) else escape(name)


def _table(head: List[str], rows: List[List[Any]]) -> str:
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in line) + ' |' for line in lines)


def _results(report: Dict[str, Any], split: str) -> str:
    rows = []
    for name, words in METRIC_NAMES.items():
        interval = format_interval(name, report.get('intervals_95', {}).get(name)) or '–'
        rows.append([words, format_metric(name, report[name]), interval])
    per_class = [
        [escape(label), *(format_metric('', scores[key]) for key in ('precision', 'recall')),
         format_interval('', scores.get('recall_95')) or '–', format_metric('', scores['f1']), scores['support']]
        for label, scores in report['per_class'].items()]
    flatters = '' if split == 'test' else ' They chose the epoch, so the figures flatter.'
    return '\n\n'.join([
        f"{report['images']:,} images of split {split}; with 95 % intervals.{flatters}",
        _table(['metric', 'value', '95 % interval'], rows),
        _table(['class', 'precision', 'recall', '95 % interval', 'F1', 'images'], per_class),
        f'![Confusion matrix: rows true, columns predicted]({CONFUSION_PICTURE})'])


def _training(
        metrics: Dict[str, Any],
        settings: Dict[str, Any],
        counts: Dict[str, Dict[str, int]],
        data: Optional[str],
) -> str:
    parts = [(data or '').strip() or 'The data was not described by who uploaded this.']
    if counts:
        labels = list(dict.fromkeys(label for split in counts.values() for label in split))
        lines = [['split', *map(escape, labels), 'all'], *(
            [split, *(f'{number.get(label, 0):,}' for label in labels), f'{sum(number.values()):,}']
            for split, number in counts.items())]
        if len(labels) > MAX_COLUMNS:
            lines = [['class', *lines[0][1:]], *lines[1:]]
            lines = [list(column) for column in zip(*lines)]
        parts.append(_table(lines[0], lines[1:]))
    if 'epoch' in metrics:
        seconds = metrics['train_seconds']
        parts.append(f"Best epoch {metrics['epoch'] + 1} of {metrics['epochs']}, {seconds:.0f} s of training.")
    keys = SHOWN_SETTINGS
    if metrics.get('name') == 'student':
        keys += SHOWN_OF_STUDENTS
    elif metrics.get('name') == 'teacher' and 'teacher' in settings:  # those of `distill` are the student's
        own = {key.removeprefix('teacher_'): value for key, value in settings.items() if key.startswith('teacher_')}
        settings = {**settings, **{k: v for k, v in own.items() if v is not None}, 'model': settings['teacher']}
    shown = [[f'`{key}`', escape(settings[key])] for key in keys if settings.get(key) is not None]
    if shown:
        parts.append('All settings are in [train.yaml](train.yaml). The first to look at:')
        parts.append(_table(['setting', 'value'], shown))
    return '\n\n'.join(parts)


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
) -> str:
    """A model card as Markdown with metadata.

    Args:
        name: Name of the model on the Hub, ORG/NAME, or of released weights.
        config: Its config.json.
        metrics: Its metrics.json, of a run.
        settings: The settings of the run.
        counts: Split -> class -> number of images.
        license: Licence of the weights as the Hub names it, such as 'cc-by-nc-4.0'; None if it is not known.
        data: What it was trained on, with source, licence and attribution, Markdown.
        load: What `timm.create_model` takes; by default 'hf-hub:NAME'.
        more: Other sections after that about the training, heading -> Markdown.
        origins: What licences its beginnings have, sentences.
    """
    metrics, settings = metrics or {}, settings or {}
    split = next((split for split in ('test', 'val') if split in metrics), None)
    architecture, labels = config['architecture'], config.get('label_names') or []
    size = config['pretrained_cfg']['input_size']
    results = [EvalResult(
        task_type='image-classification', dataset_type='images', dataset_name='see below', dataset_split=split,
        metric_type=key, metric_name=words, metric_value=round(metrics[split][key], 4))
        for key, words in METRIC_NAMES.items() if metrics[split][key] is not None] if split else None
    metadata = ModelCardData(
        library_name='timm', pipeline_tag='image-classification', license=license, model_name=name.split('/')[-1],
        tags=['image-classification', 'timm', 'hdkd', 'medical', 'knowledge-distillation'], eval_results=results)
    of_classes = f": {', '.join(map(escape, labels))}" if labels else ''
    sections = {
        f'# {name}': (
            f"{_code(architecture)} ([HDKD](https://arxiv.org/abs/2407.07516), a CNN teacher and a hybrid student that"
            f" share their stages) for {config['num_classes']} classes{of_classes}. Images of {size[1]} x {size[2]}"
            f' pixels, {size[0]} channels. **Not a medical device.**'),
        '## Use': f"""With the package `hdkd_timm` installed:

```bash
hdkd predict '{load or f"hf-hub:{name}"}' IMAGES --out predictions.csv
```

```python
import hdkd_timm, timm

model = timm.create_model('{load or f"hf-hub:{name}"}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
labels = model.pretrained_cfg['label_names']
```

Other classes, sizes and channels: `num_classes=`, `img_size=`, `in_chans=` as with any timm model.""",
        '## Results': _results(metrics[split], split) if split else 'None were uploaded with it.',
        '## Training': _training(metrics, settings, counts or {}, data),
        **{f'## {head}': text for head, text in (more or {}).items()},
        '## Intended use and limits': LIMITS,
        '## Licence': ' '.join([
            f'{license}.' if license else 'Not told: ask who uploaded this, and see that of the data.', *origins]),
        '## Citation': f'```bibtex\n{CITATION}\n```',
    }
    body = '\n\n'.join(f'{head}\n\n{text}' for head, text in sections.items())
    return f'---\n{metadata.to_yaml()}\n---\n\n{body}\n'

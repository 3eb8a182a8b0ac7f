"""Train released weights again: `python weights/reproduce.py brain_mri --data-dir DIR`.

DIR is the data set's folder, with its images.csv. plans/NAME.yaml lists the runs, each an ordinary run of `hdkd train`
or `hdkd distill`, and which of them are released. Part of the training images, the same in all runs and for all seeds,
selects the epoch and, if there are several, the seed; only runs that are released see the test images, after their last
epoch. What was stopped continues, what is finished is not repeated.

Folders like those here are written next to the runs. To release one, replace the old one with it, and put its SHA-256
into hdkd_timm/models/pretrained.py.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Collection, Dict, List, Optional, Sequence, Tuple, Union

import safetensors.torch
import timm
import torch
import yaml

from hdkd_timm import DistillConfig, EvalConfig, TrainConfig, distill, evaluate_model, train
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import list_images
from hdkd_timm.evaluation.plots import plot_confusion_matrix
from hdkd_timm.evaluation.run_results import NetworkResults, count_images, read_networks
from hdkd_timm.models.pretrained import RELEASES, WEIGHTS, full_name
from hdkd_timm.sharing.hub import MACHINE_SETTINGS
from hdkd_timm.sharing.model_card import CONFUSION_PICTURE, write_card
from hdkd_timm.training.cache_logits import CacheLogitsConfig, cache_logits
from hdkd_timm.training.run_folder import keep_images
from hdkd_timm.utils.config import check_settings, read_yaml
from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import new_folder, write_json
from hdkd_timm.utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE

HERE = Path(__file__).parent
PLANS = HERE / 'plans'
SPLIT_SETTINGS = ('split_column', 'val_fraction', 'train_fraction')  # told by the CSV files that are written
REFERENCES = ('start', 'teachers', 'views')  # what a run of a plan has beside settings


# -- plans -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Plan:
    """What is trained on a data set, and released.

    Args:
        data: Description of the data, Markdown.
        settings: Settings of all runs.
        runs: Name -> settings of a run, in the order of training, and what it has of earlier ones: `start`, the run
            whose weights it starts from; `teachers`, those it is distilled from; `views`, so many stored views of them
            (see `hdkd cache-logits`).
        releases: Tag -> run.
        note: What a reader of the cards must know of the runs, Markdown.
    """

    data: str
    settings: Dict[str, Any]
    runs: Dict[str, Dict[str, Any]]
    releases: Dict[str, str]
    note: str = ''

    def needed(self, names: Sequence[str], given: Collection[str] = ()) -> List[str]:
        """These runs and all that they start or learn from, in the order of training; of given runs only themselves."""
        found = set(names)
        for name in reversed(list(self.runs)):
            if name in found and name not in given:
                found.update(self.parents(name))
        return [name for name in self.runs if name in found]

    def parents(self, name: str) -> List[str]:
        run = self.runs[name]
        return [*([run['start']] if 'start' in run else []), *run.get('teachers', ())]

    def lineage(self, name: str) -> List[str]:
        """The runs whose weights a run has continued, and itself, in the order of training."""
        start = self.runs[name].get('start')
        return [*(self.lineage(start) if start else []), name]


def read_plan(name: str, changes: Optional[Path] = None) -> Plan:
    """The plan NAME.yaml, with what another file changes: `data` and `note`, some `settings`, or some of those of
    `runs` (null for a setting that goes).

    Raises:
        ValueError: for an unknown setting, or a run that an earlier one is to have and that is none; names it.
    """
    source = PLANS / f'{name}.yaml'
    values, other = read_yaml(source), read_yaml(changes) if changes else {}
    runs = {key: dict(run or {}) for key, run in values['runs'].items()}
    for key, run in other.get('runs', {}).items():
        runs[key] = {k: v for k, v in {**runs.get(key, {}), **run}.items() if v is not None}
    plan = Plan(
        data=other.get('data', values['data']),
        settings={**values.get('settings', {}), **other.get('settings', {})},
        runs=runs,
        releases=values.get('releases', {}),
        note=other.get('note', '' if 'runs' in other else values.get('note', '')),
    )
    where = f"'{source}'" + (f" and '{changes}'" if changes else '')
    plan.settings = check_settings(plan.settings, [DistillConfig], f'settings of {where}')
    known: List[str] = []
    for key, run in plan.runs.items():
        unknown = [parent for parent in plan.parents(key) if parent not in known]
        if unknown:
            raise ValueError(f"Run '{key}' of {where} needs '{unknown[0]}', which is no earlier run.")
        own = {k: v for k, v in run.items() if k not in REFERENCES}
        references = {k: run[k] for k in REFERENCES if k in run}
        plan.runs[key] = {**references, **check_settings(own, [DistillConfig], f"run '{key}' of {where}")}
        known.append(key)
    return plan


def write_splits(folder: Path, data_dir: Path, settings: Dict[str, Any]) -> Tuple[Path, Path]:
    """CSV files of the images for runs that are released, and for the others, without test images."""
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    config = DataConfig(
        **{**{key: value for key, value in settings.items() if key in fields}, 'data_csv': str(data_dir / IMAGES_FILE)}
    )
    rows = list_images(*create_datasets(config))
    folder.mkdir(parents=True, exist_ok=True)
    keep_images(rows, folder)
    without_test = folder / 'images-train.csv'
    write_rows([row for row in rows if row['split'] != 'test'], without_test)
    return folder / IMAGES_FILE, without_test


# -- training ----------------------------------------------------------------------------------------------------------


class Trainings:
    """The runs of a plan with one seed.

    Args:
        plan: The plan.
        seed: The seed; None for the plan's.
        csvs: Tables of the images, as `write_splits` returns them.
        output: Folder for the runs.
        prefix: Start of their names.
        given: Run -> folder of a finished one to take for it.
        sources: Pretrained model -> where to load it from instead, such as local-dir:FOLDER.
    """

    def __init__(
        self,
        plan: Plan,
        seed: Optional[int],
        csvs: Tuple[Path, Path],
        output: Path,
        prefix: str,
        given: Dict[str, Path],
        sources: Dict[str, str],
    ):
        self.plan = plan
        self.seed = {} if seed is None else {'seed': seed}
        self.csvs = csvs
        self.output = output
        self.prefix = prefix
        self.given = given
        self.sources = sources

    def folder(self, name: str) -> Path:
        """Of a run."""
        return self.given.get(name, self.output / f'{self.prefix}-{name}')

    def network(self, name: str) -> Path:
        """Folder of the network that a run trains."""
        folder = self.folder(name)
        return folder / 'student' if 'teachers' in self.plan.runs[name] and name not in self.given else folder

    def has_results(self, name: str) -> bool:
        """Whether a run's results are known: not those of one from which a given run was trained."""
        return (self.network(name) / METRICS_FILE).is_file()

    def results(self, name: str) -> NetworkResults:
        """Of a finished run."""
        (network,) = read_networks([self.network(name)])
        return network

    def settings(self, name: str) -> Dict[str, Any]:
        """All of a run, as `train` or `distill` take them."""
        run = self.plan.runs[name]
        values = {**self.plan.settings, **self.seed, **{k: v for k, v in run.items() if k not in REFERENCES}}
        values = {key: value for key, value in values.items() if key not in SPLIT_SETTINGS}
        if 'start' in run:
            values.update(model=f'local-dir:{self.network(run["start"])}/best', pretrained=False)
        elif values.get('model') in self.sources:
            values.update(model=self.sources[values['model']], pretrained=False)
        if 'teachers' in run:
            values.update(teacher_checkpoint=tuple(f'{self.network(teacher)}/best' for teacher in run['teachers']))
        with_test, without_test = self.csvs
        is_released = name in self.plan.releases.values()
        values.update(
            data_csv=str(with_test if is_released else without_test),
            output=str(self.output),
            experiment=self.folder(name).name,
        )
        return values

    def train(self, name: str) -> None:
        """Train a run to its end, as far as it is not yet."""
        if name in self.given:
            return
        run, values = self.plan.runs[name], self.settings(name)
        resume = (self.folder(name) / CONFIG_FILE).exists()
        if 'teachers' not in run:
            fields = {field.name for field in dataclasses.fields(TrainConfig)}
            train(TrainConfig(**{key: value for key, value in values.items() if key in fields}), resume=resume)
            return
        if 'views' in run:
            file = self.output / f'{self.prefix}-{name}.safetensors'
            if not file.exists():
                cache_logits(CacheLogitsConfig(**values, views=run['views']), file)
            values.update(teacher_checkpoint=None, teacher_logits=str(file))
        distill(DistillConfig(**values), resume=resume)

    def describe(self, name: str) -> Dict[str, Any]:
        """What a run did: size, epochs, the best of them, and its results on the validation images."""
        network = self.results(name)
        config, best = read_yaml(network.run / CONFIG_FILE), network.epochs[network.metrics['epoch']]
        return {
            'run': name,
            'model': network.model['architecture'],
            'img_size': config['img_size'],
            'epochs': network.metrics['epochs'],
            'lr': config['lr'],
            'best_epoch': network.metrics['epoch'] + 1,
            'train_seconds': network.metrics['train_seconds'],
            **{f'val_{key}': best[f'val_{key}'] for key in ('accuracy', 'balanced_accuracy', 'macro_auroc')},
        }


# -- releases ----------------------------------------------------------------------------------------------------------


class Dumper(yaml.SafeDumper):
    """Text of several lines is written as such."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|' if '\n' in text else None),
)


def describe_runs(plan: Plan, name: str, history: List[str], runs: List[Dict[str, Any]], device: str) -> str:
    """The section of the card on the runs behind a release.

    Args:
        plan: The plan.
        name: The run that is released.
        history: It and all runs behind it.
        runs: Those of them whose results are known, described.
        device: What it was trained on.
    """
    head = ('run', 'network', 'image size', 'epochs', 'learning rate', 'best epoch', 'validation accuracy', 'balanced')
    rows = [
        [
            f'`{run["run"]}`',
            f'`{run["model"]}`',
            run['img_size'],
            run['epochs'],
            run['lr'],
            run['best_epoch'],
            f'{run["val_accuracy"]:.1%}',
            f'{run["val_balanced_accuracy"]:.1%}',
            f'{run["train_seconds"] / 60:.0f}',
        ]
        for run in runs
    ]
    lines = [(*head, 'minutes'), ('---', '---', *['---:'] * (len(head) - 1)), *rows]
    table = '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines).replace('%', ' %')
    sentences = [f'Released is `{name}`. Trained on {device}.']
    for each in history:
        settings = plan.runs[each]
        if 'start' in settings:
            sentences.append(f'`{each}` goes on from the best epoch of `{settings["start"]}`.')
        if 'teachers' in settings:
            teachers = ' and '.join(f'`{teacher}`' for teacher in settings['teachers'])
            sentences.append(f'`{each}` is distilled from {teachers}.')
        if settings.get('pretrained'):
            tag = full_name(settings['model'])
            of = f'trained on {RELEASES[tag].data}' if tag else 'pretrained on ImageNet'
            sentences.append(f'`{each}` starts from `{tag or settings["model"]}`, {of}.')
    if not any(plan.runs[each].get('pretrained') for each in history):
        sentences.append('No network has seen other images than these.')
    unlisted = [each for each in history if each not in [run['run'] for run in runs]]
    if unlisted:
        sentences.append(f'Not in the table, trained before: {", ".join(f"`{each}`" for each in unlisted)}.')
    return f'{" ".join(sentences)} {plan.note}'.strip() + f'\n\n{table}'


def write_weights(best: Path, tag: str, folder: Path) -> Dict[str, Any]:
    """Weights in float16, and their config.json, which is returned.

    Raises:
        FloatingPointError: if a weight is too large for float16.
    """
    cfg = timm.get_pretrained_cfg(tag)
    config = json.loads((best / 'config.json').read_text(encoding='utf-8'))
    config['pretrained_cfg'].update(tag=cfg.tag, license=cfg.license)
    write_json(config, folder / 'config.json')
    tensors = safetensors.torch.load_file(best / WEIGHTS)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    overflown = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
    if overflown:
        raise FloatingPointError(f'Too large for float16: {", ".join(overflown)}.')
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={'format': 'pt'}))
    return config


def effective_settings(trainings: Trainings, names: Sequence[str]) -> Dict[str, Any]:
    """Settings of all runs, and of each those in which they differ: what a run tells, without what another machine has
    elsewhere and what the plan says in its own words."""
    plan = trainings.plan
    kept: Dict[str, Dict[str, Any]] = {}
    for name in names:
        own = plan.runs[name]
        kept[name] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in read_yaml(trainings.results(name).run / CONFIG_FILE).items()
            if (key not in MACHINE_SETTINGS or key in ('cache', 'workers'))
            and key not in ('seed', 'teacher', 'teacher_checkpoint', 'teacher_logits', *SPLIT_SETTINGS)
        }
        kept[name]['model'] = own.get('model')  # not where it was loaded from
        kept[name]['pretrained'] = own.get('pretrained', False)
        kept[name].update({key: own[key] for key in REFERENCES if key in own})
    shared = {
        key: value
        for key, value in next(iter(kept.values())).items()
        if all(key in values and values[key] == value for values in kept.values())
    }
    splits = {key: plan.settings[key] for key in SPLIT_SETTINGS if key in plan.settings}
    return {
        'settings': {**splits, 'seed': plan.settings.get('seed', TrainConfig.seed), **shared},
        'runs': {
            name: {key: value for key, value in values.items() if key not in shared and value is not None}
            for name, values in kept.items()
        },
    }


def write_release(tag: str, trainings: Trainings, vals: Dict[int, float], out: Path) -> None:
    """The folder of released weights, in the Hub's layout: float16, and metrics of just this file."""
    plan = trainings.plan
    name = plan.releases[tag]
    run, history = trainings.results(name).run, plan.needed([name])
    names = [each for each in history if trainings.has_results(each)]
    runs = [trainings.describe(each) for each in names]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'a CPU'
    cfg = timm.get_pretrained_cfg(tag)
    settings = read_yaml(run / CONFIG_FILE)
    # names, not where they were loaded from
    shown = dict(model=tag.split('.')[0], teacher=None, teacher_logits=None)
    shown['teacher_checkpoint'] = plan.runs[name].get('teachers')
    with new_folder(out) as folder:
        config = write_weights(trainings.network(name) / 'best', tag, folder)
        report, _ = evaluate_model(
            str(folder),
            EvalConfig(data_csv=str(run / IMAGES_FILE), split='test', batch_size=settings['batch_size'], workers=0),
        )
        trained = json.loads((trainings.network(name) / METRICS_FILE).read_text(encoding='utf-8'))
        metrics = {
            'name': tag,
            'classes': trained['classes'],
            'parameters': trained['parameters'],
            'seed': settings['seed'],
            f'val_{settings["select_metric"]}_of_seeds': vals,
            'device': device,
            'stages': [each for each in runs if each['run'] in plan.lineage(name)],
            'train_seconds': sum(each['train_seconds'] for each in runs),
            'test': {key: value for key, value in report.items() if key not in ('model', 'classes', 'split')},
        }
        write_json(metrics, folder / METRICS_FILE)
        plot_confusion_matrix(report['confusion_matrix'], metrics['classes'], folder / CONFUSION_PICTURE)
        record = {'data': plan.data, 'note': plan.note, **effective_settings(trainings, names), 'release': name}
        (folder / 'train.yaml').write_text(
            yaml.dump(record, Dumper=Dumper, sort_keys=False, allow_unicode=True), encoding='utf-8'
        )
        card = write_card(
            tag,
            config,
            {**metrics, 'name': 'student' if 'teachers' in plan.runs[name] else trained['name']},
            {**settings, **shown},
            count_images(run / IMAGES_FILE),
            cfg.license,
            plan.data,
            tag,
            more={'Runs of the training': describe_runs(plan, name, history, runs, device)},
        )
        (folder / 'README.md').write_text(card, encoding='utf-8')
        sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    print(f"{tag}: '{out}'\n  sha256 {sha256}\n  test balanced accuracy {report['balanced_accuracy']:.1%}")


# -- command -----------------------------------------------------------------------------------------------------------


def read_pairs(texts: Sequence[str], flag: str) -> Dict[str, str]:
    pairs = dict(text.partition('=')[::2] for text in texts)
    for key, value in pairs.items():
        if not value:
            raise SystemExit(f"{flag} must be NAME=VALUE, got '{key}'.")
    return pairs


def find_runs(plan: Plan, names: Sequence[str], flag: str) -> List[str]:
    """The runs of these names or tags."""
    known = {**plan.releases, **{run: run for run in plan.runs}}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{flag} '{unknown[0]}' is none of the plan: {', '.join(known)}.")
    return [known[name] for name in names]


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plans = sorted(path.stem for path in PLANS.glob('*.yaml'))
    parser.add_argument('plan', choices=plans, metavar='PLAN', help=', '.join(plans))
    parser.add_argument('--data-dir', required=True, type=Path, help="the data set's folder")
    parser.add_argument('--changes', type=Path, help='YAML file of changes to the plan, such as split-official.yaml')
    parser.add_argument(
        '--runs', nargs='+', metavar='NAME', help='runs or tags, with what they need (default: all tags of the plan)'
    )
    parser.add_argument('--seeds', type=int, nargs='+', help='train with each, release the best on validation')
    parser.add_argument(
        '--given', nargs='+', default=[], metavar='RUN=FOLDER', help='finished runs to take for those of the plan'
    )
    parser.add_argument(
        '--sources',
        nargs='+',
        default=[],
        metavar='MODEL=SOURCE',
        help='where to load pretrained models from instead, such as local-dir:FOLDER where there is no Hub',
    )
    parser.add_argument('--output', default='runs', type=Path, help='folder for runs')
    return parser


def main() -> None:
    args = create_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('hdkd_timm').setLevel(logging.INFO)

    plan = read_plan(args.plan, args.changes)
    wanted = find_runs(plan, args.runs or list(plan.releases), '--runs')
    pairs = read_pairs(args.given, '--given')
    given = dict(zip(find_runs(plan, list(pairs), '--given'), map(Path, pairs.values())))
    sources = read_pairs(args.sources, '--sources')
    unused = set(sources) - {run.get('model') for run in plan.runs.values()}
    if unused:
        raise SystemExit(f"--sources '{min(unused)}' is the model of no run of the plan.")
    prefix = f'{args.plan}-{args.changes.stem}' if args.changes else args.plan
    csvs = write_splits(args.output / prefix, args.data_dir, plan.settings)
    of_seeds: Dict[Union[int, None], Trainings] = {}
    for seed in args.seeds or [None]:
        name = prefix if seed is None else f'{prefix}-seed{seed}'
        of_seeds[seed] = Trainings(plan, seed, csvs, args.output, name, given, sources)
        for run in plan.needed(wanted, given):
            of_seeds[seed].train(run)
    for tag, run in plan.releases.items():
        if run not in wanted:
            continue
        out = args.output / f'{prefix}-released' / tag
        if out.exists():
            print(f"'{out}' is there already.")
            continue
        metric = plan.runs[run].get('select_metric', plan.settings.get('select_metric', 'balanced_accuracy'))
        vals, best = {}, None
        for trainings in of_seeds.values():
            network = trainings.results(run)
            seed = read_yaml(network.run / CONFIG_FILE)['seed']
            vals[seed] = network.epochs[network.metrics['epoch']][f'val_{metric}']
            if best is None or vals[seed] == max(vals.values()):
                best = trainings
        write_release(tag, best, vals, out)


if __name__ == '__main__':
    main()

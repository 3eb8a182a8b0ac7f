"""Train released weights again: `python weights/reproduce.py TAG --data-dir DIR`.

DIR is the data set's folder, with its images.csv. TAG/train.yaml lists the stages of the training, from small images to
large ones: teacher and student continue from their best epochs of the previous stage. Part of the training images, the
same in all stages and for all seeds, selects the epoch and, if there are several, the seed; the test images are used
only after the last stage. A training that was stopped continues where it was.

Folders like those here are written next to the runs. To release one, replace the old one with it, and put its SHA-256
into hdkd_timm/models/pretrained.py.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import safetensors.torch
import timm
import torch
import yaml

from hdkd_timm import DistillConfig, EvalConfig, distill, evaluate_model
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.data.samples import list_images
from hdkd_timm.evaluation.plots import plot_confusion_matrix
from hdkd_timm.evaluation.run_results import count_images
from hdkd_timm.models.pretrained import RELEASES, WEIGHTS
from hdkd_timm.sharing.hub import MACHINE_SETTINGS
from hdkd_timm.sharing.model_card import CONFUSION_PICTURE, write_card
from hdkd_timm.training.run_folder import keep_images
from hdkd_timm.utils.config import check_settings, read_yaml
from hdkd_timm.utils.csv_files import write_rows
from hdkd_timm.utils.files import new_folder, write_json
from hdkd_timm.utils.run_files import IMAGES_FILE, METRICS_FILE

HERE = Path(__file__).parent
SPLIT_SETTINGS = ('split_column', 'val_fraction', 'train_fraction')  # told by the CSV files that are written


class Dumper(yaml.SafeDumper):
    """Text of several lines is written as such."""


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar('tag:yaml.org,2002:str', text, style='|' if '\n' in text else None),
)


def read_training(tag: str, changes: Optional[Path] = None) -> Dict[str, Any]:
    """'data' (a text), 'settings', 'stages' and 'note' (a text on the stages) of TAG/train.yaml; those of the other
    file, if any, win."""
    path = HERE / tag / 'train.yaml'
    train, other = read_yaml(path), read_yaml(changes) if changes else {}
    note = (other if 'stages' in other else train).get('note', '')
    train = {**train, **other, 'note': note, 'settings': {**train['settings'], **other.get('settings', {})}}
    source = f"'{path}'" + (f" and '{changes}'" if changes else '')
    train['settings'] = check_settings(train['settings'], [DistillConfig], f'settings of {source}')
    train['stages'] = [check_settings(stage, [DistillConfig], f'stages of {source}') for stage in train['stages']]
    return train


def write_splits(folder: Path, data_dir: Path, settings: Dict[str, Any]) -> List[str]:
    """CSV files of the images for the first stages, without test images, and for the last one."""
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    config = DataConfig(
        **{**{key: value for key, value in settings.items() if key in fields}, 'data_csv': str(data_dir / IMAGES_FILE)}
    )
    rows = list_images(*create_datasets(config))
    folder.mkdir(parents=True, exist_ok=True)
    keep_images(rows, folder)
    write_rows([row for row in rows if row['split'] != 'test'], folder / 'images-train.csv')
    return [str(folder / 'images-train.csv'), str(folder / IMAGES_FILE)]


def train_stages(name: str, train: Dict[str, Any], csvs: List[str], output: Path) -> List[Path]:
    """Train teacher and student in all stages, as far as they are not yet. Returns the folders of the runs."""
    settings = {key: value for key, value in train['settings'].items() if key not in SPLIT_SETTINGS}
    networks: Dict[str, str] = {}
    runs = []
    for i, stage in enumerate(train['stages']):
        config = DistillConfig(
            **{
                **settings,
                **networks,
                **stage,
                'data_csv': csvs[i == len(train['stages']) - 1],
                'output': str(output),
                'experiment': f'{name}-stage{i + 1}',
            }
        )
        runs.append(output / config.experiment)
        distill(config, resume=(runs[-1] / 'config.yaml').exists())
        networks = {'teacher': f'local-dir:{runs[-1]}/teacher/best', 'model': f'local-dir:{runs[-1]}/student/best'}
    return runs


def read_stage(run: Path, network: str) -> Dict[str, Any]:
    """What a stage did to a network: size, epochs, the best of them, and its results on the validation images."""
    config = read_yaml(run / 'config.yaml')
    metrics = json.loads((run / network / 'metrics.json').read_text(encoding='utf-8'))
    with (run / network / 'summary.csv').open(newline='') as file:
        best = next(row for row in csv.DictReader(file) if int(row['epoch']) == metrics['epoch'])
    return {
        'img_size': config['img_size'],
        'epochs': metrics['epochs'],
        'lr': config['teacher_lr' if network == 'teacher' else 'lr'],
        'best_epoch': metrics['epoch'] + 1,
        'train_seconds': metrics['train_seconds'],
        **{f'val_{key}': float(best[f'val_{key}']) for key in ('accuracy', 'balanced_accuracy')},
    }


def describe_stages(stages: List[Dict[str, Any]], device: str, note: str) -> str:
    head = ('image size', 'epochs', 'learning rate', 'best epoch', 'validation accuracy', 'balanced', 'minutes')
    rows = [
        [
            stage['img_size'],
            stage['epochs'],
            stage['lr'],
            stage['best_epoch'],
            f'{stage["val_accuracy"]:.1%}',
            f'{stage["val_balanced_accuracy"]:.1%}',
            f'{stage["train_seconds"] / 60:.0f}',
        ]
        for stage in stages
    ]
    lines = [head, ['---:'] * len(head), *rows]
    table = '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines).replace('%', ' %')
    text = f'Each stage goes on from the best epoch of the one before. Trained on {device}. {note}'.strip()
    return f'{text}\n\n{table}'


def write_release(tag: str, train: Dict[str, Any], runs: List[Path], vals: Dict[int, float], out: Path) -> None:
    """The folder of released weights, in the Hub's layout: float16, and metrics of just this file."""
    network = tag.split('.')[0].removeprefix('hdkd_')
    cfg = timm.get_pretrained_cfg(tag)
    last = runs[-1]
    stages = [read_stage(run, network) for run in runs]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'a CPU'
    with new_folder(out) as folder:
        config = json.loads((last / network / 'best' / 'config.json').read_text(encoding='utf-8'))
        config['pretrained_cfg'].update(tag=cfg.tag, license=cfg.license)
        write_json(config, folder / 'config.json')
        tensors = safetensors.torch.load_file(last / network / 'best' / WEIGHTS)
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
        overflown = [name for name, t in tensors.items() if not torch.isfinite(t).all()]
        if overflown:
            raise FloatingPointError(f'Too large for float16: {", ".join(overflown)}.')
        (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={'format': 'pt'}))

        settings = read_yaml(last / 'config.yaml')
        report, _ = evaluate_model(
            str(folder),
            EvalConfig(data_csv=str(last / IMAGES_FILE), split='test', batch_size=settings['batch_size'], workers=0),
        )
        metrics = json.loads((last / network / 'metrics.json').read_text(encoding='utf-8'))
        metrics = {
            'name': tag,
            'classes': metrics['classes'],
            'parameters': metrics['parameters'],
            'seed': settings['seed'],
            'val_balanced_accuracy_of_seeds': vals,
            'device': device,
            'stages': stages,
            'train_seconds': sum(stage['train_seconds'] for stage in stages),
            'test': {key: value for key, value in report.items() if key not in ('model', 'classes', 'split')},
        }
        write_json(metrics, folder / METRICS_FILE)
        plot_confusion_matrix(report['confusion_matrix'], metrics['classes'], folder / CONFUSION_PICTURE)

        # what the run tells, without what another machine has elsewhere and what the stages tell
        told = {*SPLIT_SETTINGS, *(key for stage in train['stages'] for key in stage)}
        effective = {
            **{key: train['settings'][key] for key in SPLIT_SETTINGS if key in train['settings']},
            **{
                key: value
                for key, value in settings.items()
                if key not in told and (key not in MACHINE_SETTINGS or key in ('cache', 'workers'))
            },
            'model': 'hdkd_student',
            'teacher': 'hdkd_teacher',
            'seed': train['settings']['seed'],
        }
        listed = {key: list(value) if isinstance(value, tuple) else value for key, value in effective.items()}
        (folder / 'train.yaml').write_text(
            yaml.dump({**train, 'settings': listed}, Dumper=Dumper, sort_keys=False, allow_unicode=True),
            encoding='utf-8',
        )
        card = write_card(
            tag,
            config,
            {**metrics, 'name': network},
            {**effective, 'seed': settings['seed']},
            count_images(last / IMAGES_FILE),
            cfg.license,
            train['data'],
            tag,
            more={'Stages of the training': describe_stages(stages, device, train['note'])},
        )
        (folder / 'README.md').write_text(card, encoding='utf-8')
        sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    print(f"{tag}: '{out}'\n  sha256 {sha256}\n  test balanced accuracy {report['balanced_accuracy']:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'tag', choices=RELEASES, metavar='TAG', help=f'{", ".join(RELEASES)}; teacher and student are trained together'
    )
    parser.add_argument('--data-dir', required=True, type=Path, help="the data set's folder")
    parser.add_argument(
        '--changes', type=Path, help='YAML file of settings and stages that take precedence, such as gpu.yaml'
    )
    parser.add_argument('--seeds', type=int, nargs='+', help='train with each, release the best on validation')
    parser.add_argument('--output', default='runs', type=Path, help='folder for runs')
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('hdkd_timm').setLevel(logging.INFO)

    train = read_training(args.tag, args.changes)
    data = args.tag.split('.')[1]
    name = f'{data}-{args.changes.stem}' if args.changes else data
    csvs = write_splits(args.output / name, args.data_dir, train['settings'])
    runs: Dict[int, List[Path]] = {}
    for seed in args.seeds or [train['settings']['seed']]:
        of_seed = {**train, 'settings': {**train['settings'], 'seed': seed}}
        runs[seed] = train_stages(f'{name}-seed{seed}' if args.seeds else name, of_seed, csvs, args.output)
    for network in ('teacher', 'student'):
        vals = {seed: read_stage(of_seed[-1], network)['val_balanced_accuracy'] for seed, of_seed in runs.items()}
        out = args.output / f'{name}-released' / f'hdkd_{network}.{data}'
        if out.exists():
            print(f"'{out}' is there already.")
        else:
            write_release(out.name, train, runs[max(vals, key=vals.get)], vals, out)


if __name__ == '__main__':
    main()

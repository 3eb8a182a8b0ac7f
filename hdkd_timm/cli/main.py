"""The command `hdkd`, the same as `python -m hdkd_timm`: it parses and calls, the work is done elsewhere."""
import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from ..utils.text import PrintableFormatter, PrintableStream, printable
from ..version import __version__
from .run_script import run_script

CHECKED_IMAGES = 20_000  # at most, among which the report of a run that has ended looks for duplicates
# settings of `hdkd demo`: small enough for a minute or two on a laptop
DEMO = dict(img_size=64, epochs=6, student_alone=True, channels_last=True, color_jitter=0.2)


def _train(args: argparse.Namespace) -> None:
    from ..evaluation.run_results import format_table
    from ..training.train import train
    from ..utils.config import from_arguments
    metrics = train(from_arguments(args.config_cls, args), args.resume, args.overwrite)
    _print_on_primary(format_table(metrics), f"The model is in '{metrics['run']}/best'.")
    _report_run(metrics, args)


def _distill(args: argparse.Namespace) -> None:
    from ..evaluation.run_results import format_table
    from ..training.distill import distill
    from ..utils.config import from_arguments
    metrics = distill(from_arguments(args.config_cls, args), args.resume, args.overwrite)
    _print_on_primary(
        format_table(metrics), f"Models (student/best, ...), summaries and metrics are in '{metrics['run']}'.")
    _report_run(metrics, args)


def _is_primary() -> bool:
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0


def _print_on_primary(*lines: str) -> None:
    if _is_primary():
        print('\n'.join(lines))


def _report_run(metrics: Dict[str, Any], args: argparse.Namespace) -> None:
    """The report of a run that has ended, which is no worse without."""
    if not (args.report and _is_primary()):
        return
    run = metrics['run']
    try:
        from ..analysis.report import write_report
        is_quick = sum(metrics['images'].values()) <= CHECKED_IMAGES
        print(f"The report is '{write_report([run], check=is_quick, device=args.device)}'.")
    except Exception as e:
        if args.debug:
            raise
        print(f"There is no report ({' '.join(str(e).split()) or type(e).__name__}); hdkd report '{run}' tries again.")


def _demo(args: argparse.Namespace) -> None:
    if args.data_dir is None and args.data_csv is None and args.dataset is None:
        from ..data.phantoms import write_phantoms
        from ..utils.config import from_arguments
        from_arguments(args.config_cls, args)  # checks the settings before anything is drawn
        folder = Path(args.output) / 'phantoms'
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another demo has drawn the same ones meanwhile
                write_phantoms(folder)
                print(f"Drew phantom images into '{folder}'.")
        args.data_dir = str(folder)
    _distill(args)


def _eval(args: argparse.Namespace) -> None:
    from ..evaluation.evaluate import evaluate_model
    from ..evaluation.predictions import write_predictions
    from ..utils.config import from_arguments
    from ..utils.files import new_folder, write_json
    if args.out_dir and os.path.exists(args.out_dir):
        raise FileExistsError(f"'{args.out_dir}' exists already: choose another --out-dir, nothing is overwritten.")
    report, images = evaluate_model(args.checkpoint, from_arguments(args.config_cls, args))
    print(f"{report['images']} images of split '{report['split']}'")
    intervals = report.get('intervals_95', {})
    for key, value in report.items():
        if isinstance(value, float):
            low_high = '   95 % interval {:.4f} to {:.4f}'.format(*intervals[key]) if key in intervals else ''
            print(f"{key.replace('_', ' '):<20}{value:.4f}{low_high}")
    print(f"{'class':<20}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}"
          + (f"{'recall, 95 % interval':>24}" if intervals else ''))
    for name, scores in report['per_class'].items():
        cells = ''.join(f'{scores[key]:>10.4f}' for key in ('precision', 'recall', 'f1'))
        low_high = '{:.4f} to {:.4f}'.format(*scores['recall_95']) if scores.get('recall_95') else ''
        print(f"{printable(name):<20}{cells}{scores['support']:>10}{low_high:>24}".rstrip())
    if args.out_dir:
        with new_folder(args.out_dir) as folder:
            write_json(report, folder / 'metrics.json')
            write_predictions(
                folder / 'predictions.csv', images['names'], images['probs'], report['classes'], images['targets'])
        print(f"metrics.json and predictions.csv are in '{args.out_dir}'.")


def _predict(args: argparse.Namespace) -> None:
    from ..evaluation.predict import predict
    from ..evaluation.predictions import write_predictions
    from ..utils.config import from_arguments
    if os.path.exists(args.out):
        raise FileExistsError(f"'{args.out}' exists already: choose another --out, nothing is overwritten.")
    if not os.path.isdir(os.path.dirname(args.out) or '.'):
        raise FileNotFoundError(f"Folder '{os.path.dirname(args.out)}' of --out does not exist.")
    files, probs, classes = predict(
        args.checkpoint, args.paths, from_arguments(args.config_cls, args), args.on_bad_image)
    write_predictions(Path(args.out), files, probs, classes)
    print(f"{len(files)} images labelled, see '{args.out}'.")


def _convert(args: argparse.Namespace) -> None:
    from ..models.checkpoint import convert_checkpoint, read_model_config
    name, model_args = convert_checkpoint(
        args.checkpoint, args.out_dir, args.model, label_names=args.label_names, use_ema=args.use_ema,
        **args.model_kwargs)
    print(f"{name} with {model_args['num_classes']} classes written to '{args.out_dir}'")
    shown = ', '.join(f'{k}={v}' for k, v in model_args.items())
    print(f'({shown}), load it with')
    print(f"timm.create_model('local-dir:{args.out_dir}', pretrained=True)")
    names = read_model_config(args.out_dir).get('label_names')
    print(f"Its classes are {', '.join(names)}." if names else (
        'It has no class names: --label-names NAME ... gives them, by index. Without them the order is a guess where'
        ' trainers may sort names differently.'))


def _export(args: argparse.Namespace) -> None:
    from ..evaluation.metrics import format_metric
    from ..sharing.export import export_model
    report = export_model(
        args.checkpoint, args.out, args.format, args.opset, args.images, args.int8, args.calibration,
        args.calibration_images, args.img_size, args.model, args.model_kwargs, args.use_ema, args.label_names)
    shown = f"{report['images']} images and random ones" if report['images'] else 'random images'
    print(
        f"Largest difference of logits from PyTorch's on {shown}: {report['difference']:.2g} (largest logit"
        f" {report['largest_logit']:.3g})")
    if args.int8:
        print(f"int8 and float32 on the {report['calibration_images']} calibration images:")
        if 'accuracy_int8' in report:
            print(f"accuracy float32 {report['accuracy_float32']:.4f}, int8 {report['accuracy_int8']:.4f}")
        agreement = format_metric('accuracy', report['agreement']).replace(' ', '')
        print(
            f"same label for {agreement}, largest difference of probabilities"
            f" {report['prob_difference']:.4f}; {report['bytes_float32'] / 1e6:.1f} MB in float32")
    print(f"{report['bytes'] / 1e6:.1f} MB written to '{args.out}'.")


def _check(args: argparse.Namespace) -> int:
    from ..analysis import data_check as check
    from ..utils.config import from_arguments
    from ..utils.files import with_free_name
    if args.data:
        given = [flag for flag in ('data_dir', 'data_csv', 'dataset') if getattr(args, flag)]
        if args.data.lower().endswith('.csv') and 'data_csv' not in given:
            args.data_csv = args.data
        elif not given:
            args.data_dir = args.data
        else:
            raise ValueError(f"'{args.data}' and --{given[0].replace('_', '-')} both name the images: give one.")
    for path, flag in ((args.out, '--out'), (args.write_split, '--write-split')):
        if path and os.path.exists(path):
            raise FileExistsError(f"'{path}' exists already: choose another {flag}, nothing is overwritten.")
    if args.write_split and not os.path.isdir(os.path.dirname(args.write_split) or '.'):
        raise FileNotFoundError(f"Folder '{os.path.dirname(args.write_split)}' of --write-split does not exist.")
    config = from_arguments(args.config_cls, args)
    looked = check.check_data(config, only_files=bool(args.write_split))
    summary = check.summarize(looked)
    print(check.format_check(summary))

    def write(folder: Path) -> Path:
        check.write_check(looked, folder)
        return folder

    out = write(Path(args.out)) if args.out else with_free_name(time.strftime('runs/%Y%m%d-%H%M%S-check'), write)
    print(f"All of it is in '{out}': summary.json, images.csv, duplicates.csv"
          + (', pairs.png.' if os.path.exists(os.path.join(out, 'pairs.png')) else '.'))
    if args.write_split:
        counts = check.write_split(looked, args.write_split, config.seed)
        sizes = ', '.join(f'{split} {sum(of_class.values()):,}' for split, of_class in counts.items())
        print(f"'{args.write_split}' is a split without leaks ({sizes}), for --data-csv.")
        changed = {
            f'{split} {label}': f"{summary['images'][split][label]} -> {n}" for split, of_class in counts.items()
            for label, n in of_class.items() if n != summary['images'][split][label]}
        if changed:
            print('Its sizes differ: ' + ', '.join(f'{where} {words}' for where, words in changed.items()) + '.')
    return int(args.strict and check.has_leak(summary))


def _calibrate(args: argparse.Namespace) -> None:
    from ..evaluation.calibrate import calibrate_model
    from ..evaluation.run_results import find_run_data
    from ..utils.config import from_arguments
    if not (args.data_dir or args.data_csv or args.dataset):
        for name, value in find_run_data(args.checkpoint).items():
            setattr(args, name, value)
    result = calibrate_model(args.checkpoint, from_arguments(args.config_cls, args))
    temperature = result.pop('temperature')
    low, high = result[args.split]['temperature_95']
    print(f'temperature {temperature:.4f} (95 % interval {low:.2f} to {high:.2f}),'
          ' kept beside the model for --calibrated')
    print(f"{'split':<8}{'images':>8}{'log loss':>20}{'calibration error':>22}")
    for split, report in result.items():
        log_loss, ece = ('{before:.4f} -> {after:.4f}'.format(**report[key]) for key in ('log_loss', 'ece'))
        print(f"{split:<8}{report['images']:>8,}{log_loss:>20}{ece:>22}")


def _explain(args: argparse.Namespace) -> None:
    from ..analysis.explain import explain, write_explanations
    from ..utils.config import from_arguments
    if os.path.exists(args.out):
        raise FileExistsError(f"'{args.out}' exists already: choose another --out, nothing is overwritten.")
    number = write_explanations(explain(
        args.checkpoint, args.paths, from_arguments(args.config_cls, args), args.label, args.layer, args.on_bad_image),
        args.out)
    print(f"{number} images explained, see '{args.out}/sheet.png' and the overlays beside it.")


def _report(args: argparse.Namespace) -> None:
    from ..analysis.report import write_report
    page = write_report(args.runs, args.out, args.mistakes, args.check, args.device)
    print(f"The report is '{page}', its pictures are in '{page.parent}/report'.")


def _push(args: argparse.Namespace) -> None:
    from ..sharing.hub import push, write_hub_folder
    data = Path(args.data_card).read_text(encoding='utf-8') if args.data_card else None
    if args.out:
        write_hub_folder(args.checkpoint, args.out, args.repo_id, args.license, data)
        print(f"What would be on the Hub is in '{args.out}'.")
        return
    url = push(args.checkpoint, args.repo_id, args.private, args.license, data)
    print(f"Pushed to {url}. After `import hdkd_timm`, load it with")
    print(f"timm.create_model('hf-hub:{args.repo_id}', pretrained=True)")


def _bench(args: argparse.Namespace) -> None:
    from ..benchmark.benchmark import run_benchmark
    from ..utils.config import from_arguments
    run_benchmark(from_arguments(args.config_cls, args))
    print(f"\nAll figures are in '{args.out}'.")


def create_parser() -> argparse.ArgumentParser:
    from ..analysis.data_check import CheckConfig
    from ..benchmark.benchmark import BenchConfig
    from ..evaluation.classifier import InferenceConfig, ModelConfig
    from ..evaluation.evaluate import EvalConfig
    from ..training.config import DistillConfig, TrainConfig, recipe_names
    from ..utils.config import KeyValues, add_arguments

    parser = argparse.ArgumentParser(prog='hdkd', description='HDKD (arXiv 2407.07516) for timm.')
    parser.add_argument('--version', action='version', version=f'hdkd_timm {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add_command(name, func, help, config_cls=None, is_run=False, **defaults):
        command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + '.')
        command.set_defaults(func=func, config_cls=config_cls, parser=command)
        if func is not None:
            command.add_argument('--debug', action='store_true', help='show the traceback of an error')
        if config_cls is not None:
            command.add_argument('--config', metavar='FILE', help='YAML file of settings; flags win over it')
        if is_run:
            command.add_argument('--recipe', metavar='NAME', help=(
                f"settings of a recipe ({', '.join(recipe_names())}); --config and flags win over it"
                ' (default: default)'))
            group = command.add_mutually_exclusive_group()
            group.add_argument('--resume', action='store_true', help='go on with the run --experiment')
            group.add_argument('--overwrite', action='store_true', help='replace the run --experiment')
            command.add_argument('--report', default=True, action=argparse.BooleanOptionalAction,
                                 help='write report.html at the end')
        if config_cls is not None:
            add_arguments(command, config_cls, **defaults)
        return command

    def add_checkpoint_arguments(command):
        command.add_argument('--label-names', nargs='+', metavar='NAME',
                             help='class names by index, of a model that tells none')
        command.add_argument('--use-ema', default=True, action=argparse.BooleanOptionalAction,
                             help='of a checkpoint file with weights and their moving average, take the average')

    add_command('train', _train, 'train or fine-tune a timm model on labelled images', TrainConfig, True)
    add_command('distill', _distill, 'train a teacher on labelled images and distil it into a student', DistillConfig,
                True)
    add_command('demo', _demo, 'run distill on phantom images that it draws itself, or on a folder, at 64 px',
                DistillConfig, True, **DEMO)

    saved = 'model folder or run, checkpoint file, released weights (hdkd_student.brain_mri), hf-hub:NAME'
    command = add_command('eval', _eval, 'test a saved model on a split', EvalConfig)
    command.add_argument('checkpoint', help=f'{saved}, or ONNX file')
    command.add_argument('--out-dir', help='folder to write metrics.json and predictions.csv into')

    command = add_command('predict', _predict, 'label images by a saved model', InferenceConfig)
    command.add_argument('checkpoint', help=f'{saved}, or ONNX file')
    command.add_argument('paths', nargs='+', help='image files, and folders that are searched for them')
    command.add_argument('--out', default='predictions.csv', metavar='FILE',
                         help='CSV file to write: path, label and the probability of each class (default: %(default)s)')
    command.add_argument('--on-bad-image', default='error', choices=('error', 'skip'),
                         help='images that cannot be read end it, or are left out')

    command = add_command(
        'calibrate', _calibrate, "find a saved model's temperature on validation images, for --calibrated", EvalConfig,
        split='val')
    command.add_argument('checkpoint', help="model folder, a network's folder in a run, or a run of one network")

    command = add_command('explain', _explain, 'show where a saved model looks in images', ModelConfig)
    command.add_argument('checkpoint', help=saved)
    command.add_argument('paths', nargs='+', help='image files, and folders that are searched for them')
    command.add_argument('--on-bad-image', default='error', choices=('error', 'skip'),
                         help='images that cannot be read end it, or are left out')
    command.add_argument('--out', default='explained', metavar='FOLDER', help='folder to write (default: %(default)s)')
    command.add_argument('--label', metavar='CLASS', help='class to explain (default: the predicted one)')
    command.add_argument('--layer', metavar='NAME', help="module to look at (default: the last stage with maps)")

    command = add_command('convert', _convert, "write a model folder for timm from a checkpoint of the published code")
    command.add_argument('checkpoint', help='file with a state dict')
    command.add_argument('out_dir', help='folder to write, config.json and model.safetensors')
    command.add_argument('--model', help='model name, where the keys leave a choice (hdkd_student_s4)')
    command.add_argument(
        '--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='NAME=VALUE',
        help='model arguments, where the keys leave a choice (num_heads=8 head_dim=32 img_size=224)')
    add_checkpoint_arguments(command)

    command = add_command('export', _export, 'write a saved model as one ONNX or torch.export file, and compare both')
    command.add_argument('checkpoint', help=saved)
    command.add_argument('--out', required=True, metavar='FILE', help='file to write, .onnx or .pt2 (torch-export)')
    command.add_argument('--format', default='onnx', choices=('onnx', 'torch-export'), help='default: %(default)s')
    command.add_argument('--opset', type=int, metavar='N', help="ONNX opset version (default: PyTorch's choice)")
    command.add_argument('--images', nargs='+', default=(), metavar='PATH',
                         help='image files and folders to compare the file with the model on')
    command.add_argument('--int8', action='store_true', help='quantise the ONNX file')
    command.add_argument('--calibration', nargs='+', default=(), metavar='PATH',
                         help='image files and folders for its ranges, some of the training')
    command.add_argument('--calibration-images', type=int, default=200, metavar='N',
                         help='how many of them at most, spread evenly (default: %(default)s)')
    command.add_argument('--img-size', type=int, help="height and width in pixels (default: the model's)")
    command.add_argument('--model', help='model name of a checkpoint file, where its keys leave a choice (_s4)')
    command.add_argument(
        '--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='NAME=VALUE',
        help='its other arguments, where the keys leave a choice')
    add_checkpoint_arguments(command)

    command = add_command('check', _check, 'look at a data set: images, classes, duplicates, leaks', CheckConfig)
    command.add_argument('data', nargs='?', metavar='DATA', help='data folder or CSV file (--data-dir, --data-csv)')
    command.add_argument('--out', metavar='FOLDER', help='where to write what it found (default: runs/DATE-TIME-check)')
    command.add_argument('--write-split', metavar='FILE',
                         help='CSV file to write: a split of the same sizes without duplicates or groups on two sides')
    command.add_argument('--strict', action='store_true', help='exit code 1 if two splits share something')

    command = add_command(
        'report', _report, 'write a page about a run, or about several beside each other')
    command.add_argument('runs', nargs='+', metavar='RUN', help="runs, or networks' folders in them")
    command.add_argument(
        '--out', metavar='FOLDER', help="folder for report.html and the pictures (default: the run's, if it is one)")
    command.add_argument('--mistakes', type=int, default=12, metavar='N',
                         help='how many mistakes of each network to show (default: %(default)s)')
    command.add_argument('--device', help='where networks look at their mistakes again (default: the best there is)')
    command.add_argument('--check', default=True, action=argparse.BooleanOptionalAction,
                         help='look for duplicates among the images')

    command = add_command(
        'push', _push, 'put a trained model on the Hugging Face Hub, with a model card made from its run')
    command.add_argument('checkpoint', help=(
        "model folder, a network's folder in a run, or released weights (hdkd_student.brain_mri)"))
    command.add_argument('repo_id', metavar='ORG/NAME', help='where; it is made if it is not there')
    command.add_argument('--private', action='store_true', help='make it private')
    command.add_argument(
        '--license', metavar='NAME', help="licence of the weights as the Hub names it, such as cc-by-nc-4.0")
    command.add_argument('--data-card', metavar='FILE', help='Markdown about the data: source, licence, attribution')
    command.add_argument('--out', metavar='FOLDER', help='write what would be on the Hub there instead')

    add_command('bench', _bench, 'measure training steps, inference, epochs and their growth beside alternatives',
                BenchConfig)

    # for its help: main() hands a script's arguments on before argparse could read them
    command = add_command('run', None, "run a Python script, such as timm's validate.py, with the models registered")
    command.add_argument('script', help='Python file')
    command.add_argument('args', nargs='*', help='its arguments, all that follow')
    return parser


def _settings_of_files(args: argparse.Namespace) -> Dict[str, Any]:
    """Settings of --recipe and --config, the latter win."""
    from ..analysis.data_check import CheckConfig
    from ..evaluation.classifier import ModelConfig
    from ..training.config import DistillConfig, recipe_settings
    from ..utils.config import check_settings, read_yaml
    values: Dict[str, Any] = {}
    if getattr(args, 'recipe', None):
        values.update(recipe_settings(args.recipe, args.config_cls))
    if args.config:
        classes = [args.config_cls]
        if issubclass(args.config_cls, (ModelConfig, CheckConfig)):  # take that of a run, and need a part of it
            classes.insert(0, DistillConfig)
        found = check_settings(read_yaml(args.config), classes, f"'{args.config}'")
        fields = {field.name for field in dataclasses.fields(args.config_cls)}
        values.update({name: value for name, value in found.items() if name in fields})
    return values


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command. Errors end in one line on stderr and exit code 1, with `--debug` in a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:2] == ['run', '--']:
        del argv[1]
    if len(argv) > 1 and argv[0] == 'run' and not argv[1].startswith('-'):
        script, *script_args = argv[1:]
        if not os.path.isfile(script):
            print(f"hdkd run: error: script '{script}' does not exist, or is no file.", file=sys.stderr)
            return 1
        run_script(script, script_args)
        return 0

    parser = create_parser()
    args = parser.parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter('%(message)s'))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger('hdkd_timm').setLevel(logging.INFO)
    warnings.filterwarnings('ignore', 'Image size .* exceeds limit')  # Pillow's, beside our error that says the same
    with contextlib.redirect_stdout(PrintableStream(sys.stdout)):
        return _run_command(parser, args, argv)


def _run_command(parser: argparse.ArgumentParser, args: argparse.Namespace, argv: Sequence[str]) -> int:
    from ..utils.signals import Interrupted
    try:
        if args.config_cls is not None:
            settings = _settings_of_files(args)
            if settings:
                args.parser.set_defaults(**settings)
                args = parser.parse_args(argv)
        return args.func(args) or 0
    except Interrupted as e:
        command = 'distill' if args.command == 'demo' else args.command
        print(
            f'hdkd {args.command}: {e.signal_name}, the state is saved. Go on with: hdkd {command} --config'
            f" '{printable(str(e.folder))}/config.yaml' --resume", file=sys.stderr)
        return 128 + e.signum
    except KeyboardInterrupt:
        print(f'hdkd {args.command}: interrupted.', file=sys.stderr)
        return 130
    except Exception as e:
        if args.debug:
            raise
        expected = isinstance(e, (ValueError, OSError, FloatingPointError, ImportError, MemoryError))
        message = ' '.join(str(e).split()) or type(e).__name__
        hint = '' if expected else f' ({type(e).__name__}; --debug shows where)'
        print(f'hdkd {args.command}: error: {printable(message)}{hint}', file=sys.stderr)
        return 1

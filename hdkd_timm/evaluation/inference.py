"""A saved model at work: `evaluate_model` tests it on a split, `predict` labels images."""
import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Type

import numpy as np
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from ..data.image_io import IMG_EXTENSIONS, IMG_MODES
from ..data.loader import SplitLoader
from ..data.samples import (
    MOST_BAD,
    DataConfig,
    FileReader,
    SampleDataset,
    Samples,
    SourceConfig,
    SplitNotFoundError,
    create_datasets,
    inspect_samples,
    warn_of_ranges,
)
from ..data.sources.folders import count_suffixes, natural_order, sort_files, walk_folder, warn_left_out
from ..models.checkpoint import (
    SOURCE_PREFIXES,
    check_preprocessing,
    download,
    find_model_folder,
    has_two_orders,
    load_saved,
    match_label_names,
)
from ..models.pretrained import find_folder, full_name
from ..utils.config import KeyValues, check_values, read_yaml, setting
from ..utils.distributed import World, pick_device
from ..utils.files import PathLike, iterate_rows
from ..utils.memory import kept_memory
from ..utils.parsing import parse_json
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE
from .evaluate import evaluate
from .metrics import full_report
from .temperature import (
    CALIBRATION,
    describe,
    fit_temperature,
    read_temperature,
    scale,
    temperature_interval,
    write_temperature,
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass
class ModelConfig:
    """Settings of a saved model that is loaded."""
    model: Optional[str] = setting(
        None, 'architecture of a checkpoint file, if its keys fit more than one (hdkd_student_s4)', group='model')
    model_kwargs: Dict[str, Any] = setting(
        {}, 'further model arguments of a checkpoint file, if its keys leave them open', nargs='*', action=KeyValues,
        metavar='NAME=VALUE')
    img_size: Optional[int] = setting(
        None, "height and width in pixels to which images are resized (default: the model's)", at_least=1, common=True)
    use_ema: bool = setting(True, 'prefer the moving average of the weights in a checkpoint file that has both')
    label_names: Optional[Tuple[str, ...]] = setting(
        None, 'class names by index, of a model without class names', common=True)
    device: Optional[str] = setting(
        None, 'cpu, cuda, mps, ... (default: the best available)', group='device and speed', common=True)
    calibrated: bool = setting(
        False, 'scale the probabilities with the temperature of `hdkd calibrate`', group='model', common=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range; names the flag, the value and the range."""
        check_values(self)
        if self.img_size is not None and 'img_size' in self.model_kwargs:
            raise ValueError(
                f"--img-size {self.img_size} and --model-kwargs img_size={self.model_kwargs['img_size']}: give one of"
                ' them.')


@dataclasses.dataclass
class InferenceConfig(ModelConfig):
    """Settings of `load_classifier` and of how images go through it."""
    batch_size: int = setting(64, 'batch size', flags=('-b',), at_least=1, group='device and speed', common=True)
    amp: bool = setting(False, 'mixed precision')
    amp_dtype: str = setting('float16', 'autocast dtype', choices=('float16', 'bfloat16'))
    channels_last: bool = setting(False, 'channels-last memory layout')
    workers: int = setting(2, 'loader processes', flags=('-j',), at_least=0, common=True)


@dataclasses.dataclass
class EvalConfig(InferenceConfig, DataConfig):
    """Settings of `evaluate_model`."""
    in_chans: Optional[int] = setting(
        None, "image channels, 3 (RGB) or 1 (greyscale) (default: the model's)", group='data')
    split: str = setting(
        'test', 'split to evaluate on', choices=('train', 'val', 'test'), group='evaluation', common=True)
    bootstrap: int = setting(
        1000, 'bootstrap resamples for the 95 %% intervals, 0 for no intervals', at_least=0, common=True)


@dataclasses.dataclass
class Classifier:
    """A model, its class names by index (or None), what it wants of its images, and a temperature to scale by."""
    model: nn.Module
    classes: Optional[List[str]]
    data_config: Dict[str, Any]
    device: torch.device
    temperature: Optional[float] = None

    @property
    def in_chans(self) -> int:
        return self.data_config['input_size'][0]

    @property
    def img_mode(self) -> str:
        """Pillow mode of its images."""
        if self.in_chans not in IMG_MODES:
            raise ValueError(f'Image files are read with 1 or 3 channels, the model takes {self.in_chans}.')
        return IMG_MODES[self.in_chans]


class OnnxModel(nn.Module):
    """A file of `export_model`, run by onnxruntime: images (B, C, H, W), normalised, to logits (B, K).

    Args:
        path: ONNX file.
        device: Where it runs, the CPU or a CUDA device.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: without onnxruntime.
        ValueError: if it cannot be run, is not of `export_model`, or onnxruntime has no provider for the device.
    """

    def __init__(self, path: PathLike, device: torch.device = torch.device('cpu')):
        super().__init__()
        if not os.path.isfile(path):
            raise FileNotFoundError(f"Model '{path}' does not exist, or is no file.")
        ort = _import_onnxruntime()
        providers: List[Any] = ['CPUExecutionProvider']
        if device.type != 'cpu':
            if not _runs_on(ort, device):
                raise ValueError(
                    f"onnxruntime cannot use device '{device}' here: take --device cpu, or for CUDA install"
                    ' onnxruntime-gpu.')
            providers.insert(0, ('CUDAExecutionProvider', {'device_id': device.index or 0, 'use_tf32': 0}))
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, it raises them too
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as e:  # onnxruntime's have no common base
            raise ValueError(
                f"'{path}' is no ONNX file that onnxruntime {ort.__version__} runs, or it is damaged"
                f' ({str(e).splitlines()[0]}).') from e
        try:
            self.metadata = parse_json(self.session.get_modelmeta().custom_metadata_map['hdkd_timm'], f"'{path}'")
            self.num_classes = self.metadata['num_classes']
            self.in_chans = self.metadata['data_config']['input_size'][0]
            self.pretrained_cfg = dict(label_names=self.metadata['label_names'])
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"'{path}' does not tell its classes and preprocessing as files of `hdkd export` do (metadata"
                " 'hdkd_timm'): export the model with that command.") from e
        check_preprocessing(self.metadata['data_config'], f"ONNX file '{path}'")
        expected = [list(value.shape[1:]) for value in (*self.session.get_inputs(), *self.session.get_outputs())]
        told = [list(self.metadata['data_config']['input_size']), [self.num_classes]]
        if told != expected:
            raise ValueError(
                f"ONNX file '{path}': its metadata tell images {told[0]} and {self.num_classes} classes, its input and"
                f' output are {expected}: export the model again.')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(['logits'], {'input': x.float().cpu().numpy()})[0]).to(x.device)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ImportError("ONNX files need onnxruntime: pip install 'hdkd-timm[onnx]'.") from e
    return onnxruntime


def _runs_on(ort: Any, device: torch.device) -> bool:
    return device.type == 'cpu' or device.type == 'cuda' and 'CUDAExecutionProvider' in ort.get_available_providers()


def _download_temperature(name: str) -> Optional[Path]:
    """Folder of the Hub's cache that holds the temperature of 'hf-hub:ORG/NAME', if that is calibrated."""
    try:
        return download(name, CALIBRATION).parent
    except EntryNotFoundError:
        return None


def _load_temperature(name: str) -> float:
    name = name.removeprefix('local-dir:')
    if name.startswith(SOURCE_PREFIXES):
        folder = _download_temperature(name)
    else:
        name = name.removesuffix('/model.safetensors')
        folder = find_model_folder(name) if os.path.isdir(name) else find_folder(full_name(name) or '')
    temperature = read_temperature(folder) if folder is not None else None
    if temperature is None:
        raise ValueError(f"Model '{name}' is not calibrated: run `hdkd calibrate`, or leave --calibrated out.")
    return temperature


def _load_onnx(name: str, config: InferenceConfig) -> Classifier:
    if config.calibrated:
        raise ValueError(f"'{name}' is an ONNX file, which holds no temperature: leave --calibrated out.")
    if config.amp or config.channels_last:
        word = 'amp' if config.amp else 'channels-last'
        raise ValueError(f"'{name}' is an ONNX file, which has no --{word}: leave it out, or say --no-{word}.")
    device = pick_device(config.device)
    if config.device is None and not _runs_on(_import_onnxruntime(), device):
        device = torch.device('cpu')
    model = OnnxModel(name, device)
    data_config = {k: tuple(v) if isinstance(v, list) else v for k, v in model.metadata['data_config'].items()}
    height, width = data_config['input_size'][-2:]
    if config.img_size is not None and (height, width) != (config.img_size, config.img_size):
        raise ValueError(
            f"'{name}' takes images of {height} x {width} pixels, not --img-size {config.img_size}: leave it out, or"
            f' export the model with --img-size {config.img_size}.')
    return Classifier(
        model.eval(), match_label_names(model, config.label_names, f"ONNX file '{name}'"), data_config, device)


def load_classifier(name: PathLike, config: Optional[ModelConfig] = None) -> Classifier:
    """A saved model, ready to label images.

    Args:
        name: As `load_saved` takes it, or an ONNX file of `export_model` (ending in .onnx).
        config: Image size, class names of a model that tells none, device and memory layout.

    Raises:
        FileNotFoundError, ValueError: if there is no such model; if it tells other classes than are given, or not as
            many as it has; if it is an ONNX file, of another image size, or mixed precision or a memory layout is asked
            for.
        ImportError: if it is an ONNX file and onnxruntime is missing.
    """
    name = str(name)
    if not isinstance(config, InferenceConfig):
        config = InferenceConfig(**vars(config or ModelConfig()))
    if name.endswith('.onnx') and not (os.path.isdir(name) or name.startswith(SOURCE_PREFIXES)):
        return _load_onnx(name, config)
    if name.endswith('.pt2') and os.path.isfile(name):
        raise ValueError(
            f"'{name}' is a program of torch.export, reading it can run code that it holds: take an ONNX file, or the"
            ' model that it was exported from.')
    device = pick_device(config.device)
    model, _ = load_saved(name, config.model, config.img_size, config.use_ema, **config.model_kwargs)
    args = {} if config.img_size is None else dict(
        input_size=(model.in_chans, config.img_size, config.img_size))
    data_config = timm.data.resolve_data_config(args, model=model)
    labels = match_label_names(model, config.label_names, f"Model '{name}'")
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    return Classifier(
        model.eval().to(device=device, memory_format=layout), labels,
        dict(data_config, input_size=(model.in_chans, *data_config['input_size'][-2:])), device,
        _load_temperature(name) if config.calibrated else None)


def image_dataset(files: Sequence[str], img_mode: str, targets: Optional[Sequence[int]] = None) -> SampleDataset:
    """Image files as a dataset, with class indices (0 if none are given)."""
    targets = np.zeros(len(files), int) if targets is None else np.asarray(targets)
    samples = Samples(FileReader([(path, 0) for path in files]), np.arange(len(files)), targets)
    return SampleDataset(samples, img_mode)


def _run(classifier: Classifier, dataset: Any, config: InferenceConfig) -> Tuple[np.ndarray, np.ndarray]:
    loader = SplitLoader(
        dataset, classifier.data_config, config.batch_size, num_workers=config.workers, device=classifier.device)
    with kept_memory(classifier.device):
        probs, targets = evaluate(
            classifier.model, loader, World(classifier.device),
            getattr(torch, config.amp_dtype) if config.amp else None, config.channels_last)
    return probs if classifier.temperature is None else scale(probs, classifier.temperature), targets


def _name_classes(classifier: Classifier, classes: List[str], name: str) -> List[str]:
    """Class names of the model by index: its own, else those of the data in the likelier of two orders.

    Raises:
        ValueError: if it tells none, and has another number of classes than the data.
    """
    if classifier.classes is not None:
        return classifier.classes
    if len(classes) != classifier.model.num_classes:
        raise ValueError(
            f"Model '{name}' has {classifier.model.num_classes} classes without names, the data {len(classes)}.")
    # those who write no names into a file sort them as text, as a rule; an order that a dataset gives is its own
    return sorted(classes) if classes == sorted(classes, key=natural_order) else classes


def _match_classes(names: List[str], classes: List[str], model: str) -> List[int]:
    """Index in the model, whose class names are `names`, of each class of the data."""
    unknown = [label for label in classes if label not in names]
    if unknown:
        raise ValueError(
            f"Class '{unknown[0]}' of the data is none of model '{model}' ({', '.join(names)}).")
    return [names.index(label) for label in classes]


def _warn_of_order(model: str, taken: List[str], classes: List[str], predicted: np.ndarray, labels: np.ndarray) -> None:
    """Say in which order the classes of a model without names were taken, and what the other one would give.

    Args:
        model: The model.
        taken: Class names by index, as they were taken.
        classes: Class names of the data by index.
        predicted: Indices in the model, (N,).
        labels: Indices in the data, (N,).
    """
    orders = {'as text, like ImageFolder of torchvision': sorted(classes), 'of the data': classes}
    (first, accuracy), (second, other) = (
        (f"{order} ({', '.join(names)})", np.mean(np.array(names)[predicted] == np.array(classes)[labels]))
        for order, names in sorted(orders.items(), key=lambda item: item[1] != taken))
    _logger.warning(
        f"Model '{model}' tells no class names, and their order is a guess. Taken is that {first}: accuracy"
        f' {accuracy:.1%}. With that {second} it would be {other:.1%}. Name the classes by index: --label-names NAME'
        ' ...')


def evaluate_model(name: str, config: EvalConfig) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Test a saved model on a split. Its classes may be some of the model's.

    Args:
        name: As `load_classifier` takes it.
        config: Data, split and how images go through the model.

    Returns:
        What `full_report` returns with 'model', 'classes' (by index in the model), 'split', and 'classes_guessed' where
        the model tells no class names and their order was a guess, which is warned of; and 'names', 'probs' (N, K),
        'targets' (N,) and 'groups' (N,), None without, of the images.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `create_datasets`; if a class of the data is none of the
            model's, or its images have another number of channels.
    """
    classifier = load_classifier(name, config)
    if config.in_chans not in (None, classifier.in_chans):
        raise ValueError(f"Model '{name}' takes {classifier.in_chans} channels, not --in-chans {config.in_chans}.")
    config = dataclasses.replace(config, in_chans=classifier.in_chans)
    datasets, found = create_datasets(config, config.batch_size, only=config.split)
    dataset = datasets[config.split]
    classes = _name_classes(classifier, found, name)
    index_of = np.array(_match_classes(classes, found, name))
    probs, targets = _run(classifier, dataset, config)
    is_guess = classifier.classes is None and has_two_orders(found)
    if is_guess:
        _warn_of_order(name, classes, found, probs.argmax(axis=1), targets)
    targets = index_of[targets]
    named = isinstance(dataset, SampleDataset)
    report = full_report(
        probs, targets, classes, dataset.samples.groups if named else None, config.bootstrap, config.seed)
    images = {
        'names': dataset.samples.filenames() if named else [str(i) for i in range(len(targets))], 'probs': probs,
        'targets': targets, 'groups': dataset.samples.groups if named else None}
    guessed = dict(classes_guessed=True) if is_guess else {}
    return dict(model=name, split=config.split, classes=classes, **guessed, **report), images


def find_run_data(name: PathLike) -> Dict[str, Any]:
    """Settings that read the images of the run that a model folder belongs to, in its splits.

    Raises:
        FileNotFoundError: if it belongs to no run.
    """
    folder = find_model_folder(name).resolve()
    near = (folder, *list(folder.parents)[:2])
    run = next((f for f in near if (f / CONFIG_FILE).is_file() and (f / IMAGES_FILE).is_file()), None)
    if run is None:
        raise FileNotFoundError(
            f"'{name}' belongs to no run (folder with {CONFIG_FILE} and {IMAGES_FILE}): name the images with --data-dir"
            ' or --data-csv.')
    settings = read_yaml(run / CONFIG_FILE)
    return dict(read_source(run, settings, DataConfig), in_chans=settings.get('in_chans'))


def read_source(run: Path, settings: Dict[str, Any], config_cls: Type[SourceConfig]) -> Dict[str, Any]:
    """Settings that read the images of a run, by its images.csv if they are files, else as it read them.

    Args:
        run: Folder of the run.
        settings: Its config.yaml.
        config_cls: Whose settings are wanted.
    """
    if all(os.path.isabs(row['path']) for row in iterate_rows(run / IMAGES_FILE)):
        return dict(data_csv=str(run / IMAGES_FILE))
    return {field.name: settings[field.name] for field in dataclasses.fields(config_cls) if field.name in settings}


def calibrate_model(name: PathLike, config: EvalConfig) -> Dict[str, Any]:
    """Find the temperature of a saved model on its validation images, and write it beside the model, for `calibrated`.

    Args:
        name: Model folder, a network's folder in a run, or a run of one network.
        config: Data, whose split `split` is that of the fit, and how images go through the model.

    Returns:
        'temperature', and split -> what `describe` returns: of the fit, with 'temperature_95', [low, high], and of the
        test split where there is one of other images.

    Raises:
        FileNotFoundError, ValueError: as `evaluate_model` and `find_model_folder`.
    """
    folder = find_model_folder(name)
    try:
        report, images = evaluate_model(str(name), dataclasses.replace(config, calibrated=False, bootstrap=0))
    except SplitNotFoundError as e:
        raise SplitNotFoundError(
            f"{e} The temperature is found on images that the network was not trained on: train with --val-fraction, or"
            ' name such images with --data-dir or --data-csv (and --split).') from e
    if report.get('classes_guessed'):
        raise ValueError(
            f"Model '{name}' tells no class names, and by a guess of their order no temperature is found: name them by"
            ' index, --label-names NAME ...')
    temperature = fit_temperature(images['probs'], images['targets'])
    results = {config.split: describe(images['probs'], images['targets'], temperature)}
    low, high = temperature_interval(images['probs'], images['targets'], temperature, images['groups'])
    results[config.split]['temperature_95'] = [low, high]
    if low <= 1 <= high:
        _logger.warning(
            f"The {len(images['targets'])} images of split '{config.split}' do not tell the temperature from 1, which"
            f' changes nothing (95 % interval {low:.2f} to {high:.2f}): take more images, or leave --calibrated out.')
    if config.split != 'test':
        try:
            _, tested = evaluate_model(
                str(name), dataclasses.replace(config, split='test', calibrated=False, bootstrap=0))
        except SplitNotFoundError:
            tested = images
        if not (tested['names'] == images['names'] and np.array_equal(tested['probs'], images['probs'])):
            results['test'] = describe(tested['probs'], tested['targets'], temperature)
            before, after = results['test']['log_loss'].values()
            if after > before:
                _logger.warning(
                    f'On the test images the log loss rises, from {before:.4f} to {after:.4f}: there are too few'
                    f" images of split '{config.split}' ({results[config.split]['images']}), or they are of another"
                    ' kind.')
    write_temperature(folder, temperature, results)
    return dict(temperature=temperature, **results)


def find_images(paths: Sequence[str], on_bad_image: str = 'error') -> List[str]:
    """Image files among files and folders (searched through), each once, in natural order within a folder.

    Files that are named are taken as they are; in folders, those that are neither images nor known side files are left
    out with a warning.

    Args:
        paths: Files and folders.
        on_bad_image: 'skip' to leave folders out that cannot be read.

    Raises:
        FileNotFoundError: if a path does not exist or a folder holds no images.
        OSError: if a folder cannot be read.
        ValueError: if a path is neither file nor folder.
    """
    found: Dict[str, str] = {}  # real place -> path
    real_folder = functools.lru_cache(maxsize=None)(os.path.realpath)
    number = 0
    for path in map(str, paths):
        files = _list_files(path, on_bad_image) if os.path.isdir(path) else [_check_file(path)]
        number += len(files)
        for file in files:
            found.setdefault(os.path.join(real_folder(os.path.dirname(file)), os.path.basename(file)), file)
    if number > len(found):
        _logger.warning(f'{number - len(found):,} images are named more than once: each is taken once.')
    if len({os.path.splitext(file)[1].lower() for file in found}) > 1:
        _logger.info(f'{len(found):,} images, by suffix: {count_suffixes(found)}.')
    return list(found.values())


def _check_file(path: str) -> str:
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"'{path}' is a link to '{os.readlink(path)}', which does not exist." if os.path.islink(path)
            else f"'{path}' does not exist.")
    if not os.path.isfile(path):
        raise ValueError(f"'{path}' is neither a regular file nor a directory.")
    return path


def _list_files(folder: str, on_bad_image: str) -> List[str]:
    """Image files in a folder."""
    images: List[str] = []
    others: List[str] = []
    for _, files in walk_folder(folder, skip_unreadable=on_bad_image == 'skip'):
        listing = sort_files(files)
        images += listing.images
        others += listing.others
    warn_left_out([os.path.relpath(path, folder) for path in others], folder)
    if not images:
        raise FileNotFoundError(f"No images in folder '{folder}' (looked for {' '.join(IMG_EXTENSIONS)}).")
    return sorted(images, key=natural_order)


def drop_bad_images(files: Sequence[str], img_mode: str, on_bad_image: str = 'error') -> List[str]:
    """The files that can be read as images; those that cannot are named.

    Raises:
        ValueError: if one cannot be read, with 'skip' if none can.
    """
    samples = Samples(FileReader([(path, 0) for path in files]), np.arange(len(files)), np.zeros(len(files), int))
    records = inspect_samples(samples, img_mode, MOST_BAD if on_bad_image == 'error' else None)
    bad = {path: record.error for path, record in zip(files, records) if record.error}
    if bad and on_bad_image == 'error':
        path, error = next(iter(bad.items()))
        more = ' or more' if len(records) < len(files) else ''
        raise ValueError(
            f"Cannot read image '{path}' ({error}); {len(bad)}{more} such. Leave such images out with --on-bad-image"
            ' skip.')
    good = [path for path in files if path not in bad]
    if not good:
        raise ValueError(
            f"None of the images can be read, the first of {len(files):,} is '{files[0]}' ({bad[files[0]]}).")
    for path, error in bad.items():
        _logger.warning(f"Left out image '{path}', cannot read it ({error})")
    warn_of_ranges([record.values for record in records], [samples])
    if bad:
        _logger.warning(f'Left out {len(bad):,} of {len(files):,} images, which cannot be read.')
    return good


def predict(
        name: str,
        paths: Sequence[str],
        config: Optional[InferenceConfig] = None,
        on_bad_image: str = 'error',
) -> Tuple[List[str], np.ndarray, List[str]]:
    """Label images by a saved model.

    Args:
        name: As `load_classifier` takes it.
        paths: Image files, and folders that are searched for them.
        config: How images go through the model.
        on_bad_image: 'error', or 'skip' to leave images out that cannot be read.

    Returns:
        Files (N), probabilities (N, K), and class names by index ('0', '1', ... if the model tells none).

    Raises:
        FileNotFoundError, ValueError: as `load_classifier` and `find_images`; if an image cannot be read.
    """
    config = config or InferenceConfig()
    files = find_images(paths, on_bad_image)
    classifier = load_classifier(name, config)
    files = drop_bad_images(files, classifier.img_mode, on_bad_image)
    probs, _ = _run(classifier, image_dataset(files, classifier.img_mode), config)
    return files, probs, classifier.classes or [str(i) for i in range(probs.shape[1])]

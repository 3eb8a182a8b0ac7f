"""Trained networks on disk: model folders (`config.json` + `model.safetensors`), and one loader for all forms.

A model folder is what `timm.create_model('local-dir:FOLDER', pretrained=True)` and the Hugging Face Hub accept. It is
written completely or not at all.
"""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import safetensors.torch
import timm
import torch
from huggingface_hub import hf_hub_download
from timm.models import is_model_pretrained, save_for_hf
from timm.utils import unwrap_model
from torch import nn

from .._compat import complete_model_args, image_size, remove_model_arg, reset_classifier
from ..layers.reparam import is_fused
from ..utils.files import PathLike, add_sums, atomic_write, check_sums, new_folder
from ..utils.image_size import ImageSize
from ..utils.parsing import read_json
from ..utils.run_files import CALIBRATION_FILE
from .architecture import infer_architecture, is_same_argument
from .checkpoint_file import abbreviate, read_checkpoint
from .checkpoint_metadata import CheckpointMetadata, read_metadata, read_run_metadata
from .checkpoint_networks import choose_network
from .hdkd import HDKDStudent, HDKDTeacher
from .labels import match_label_names
from .preprocessing import adapt_stats, check_preprocessing
from .pretrained import find_packaged

__all__ = [
    'SOURCE_PREFIXES',
    'convert_checkpoint',
    'download',
    'find_label_settings',
    'find_model_folder',
    'is_checkpoint_file',
    'load_model',
    'read_model_config',
    'save_model',
]

_logger = logging.getLogger(__name__)

SOURCE_PREFIXES = ('local-dir:', 'hf-hub:', 'hf_hub:')  # of names of models that timm loads from elsewhere

_PROBLEM = ('problem_type', 'thresholds')  # keys of a config.json whose model gives an image any number of labels

# arguments of timm's factory, not of a network: in a config.json they would change how its weights are loaded
_FACTORY_ARGS = (
    'pretrained',
    'pretrained_cfg',
    'pretrained_cfg_overlay',
    'pretrained_filter_fn',
    'checkpoint_path',
    'cache_dir',
    'features_only',
    'model_cfg',
    'feature_cfg',
    'kwargs_filter',
    'device',
    'dtype',
)


# -- model folders -----------------------------------------------------------------------------------------------------


def save_model(
    model: nn.Module,
    folder: PathLike,
    label_names: Optional[Sequence[str]] = None,
    model_args: Optional[Dict[str, Any]] = None,
    input_size: Optional[Tuple[int, int, int]] = None,
    replace: bool = False,
    problem: Optional[Mapping[str, Any]] = None,
) -> None:
    """Write a model folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads.

    Args:
        model: A timm model.
        folder: Output folder; must not exist or be empty.
        label_names: Class names by index.
        model_args: Arguments that the model was created with. timm >= 1.0.31 records them for all models, older
            releases do not; the models of this package record their own.
        input_size: (C, H, W) of the training images, for models that do not record it.
        replace: Replace the weights of the same model in this folder; a temperature of theirs is removed.
        problem: What its config.json says of images with any number of labels: 'problem_type', as transformers names
            it, and 'thresholds', label -> probability from which on an image is given it.

    Raises:
        FileExistsError: if the folder is not empty.
        ValueError: if the model is fused, which no loader could build.
    """
    if is_fused(model):
        raise ValueError(
            f'This {type(unwrap_model(model)).__name__} is fused for inference (timm.utils.reparameterize_model): save'
            ' the model that it was made from.'
        )
    model = copy.deepcopy(unwrap_model(model)).cpu().to(memory_format=torch.contiguous_format)
    if replace and (Path(folder) / 'model.safetensors').exists():
        if (Path(folder) / CALIBRATION_FILE).exists():
            (Path(folder) / CALIBRATION_FILE).unlink()  # first: it is never beside weights that it does not fit
            _logger.warning(
                f"Removed '{Path(folder) / CALIBRATION_FILE}', the temperature of weights that are replaced: run"
                ' `hdkd calibrate` again.'
            )
        with atomic_write(Path(folder) / 'model.safetensors', 'wb', summed=True) as file:
            file.write(safetensors.torch.save(model.state_dict()))
        if problem:
            with atomic_write(Path(folder) / 'config.json', summed=True) as file:
                file.write(json.dumps({**read_model_config(folder), **problem}, indent=2) + '\n')
        return
    adapt_stats(model)
    if label_names or model.num_classes != model.pretrained_cfg.get('num_classes'):
        _drop_label_names(model)  # they belong to the weights that it started from
    model_config = {**({'label_names': list(label_names)} if label_names else {}), **(problem or {})}
    with new_folder(folder) as temporary:
        save_for_hf(
            model,
            temporary,
            model_config=model_config,
            model_args=complete_model_args(model, model_args),
            safe_serialization=True,
        )
        _complete_config(temporary / 'config.json', model, input_size)
        if replace:  # a run's, which is read again
            add_sums(temporary, 'config.json', 'model.safetensors')


def _complete_config(path: Path, model: nn.Module, input_size: Optional[Tuple[int, int, int]]) -> None:
    """Correct what timm writes as metadata of the source, in some releases or for some models."""
    config = json.loads(path.read_text())
    cfg = config['pretrained_cfg']
    args = config.get('model_args', {})
    size = input_size[-2:] if input_size else image_size(model, args.get('img_size'))
    cfg.update(input_size=[model.in_chans, *size], num_classes=model.num_classes)
    reduction = (getattr(model, 'feature_info', None) or [{}])[-1].get('reduction')  # not every network has it
    if cfg.get('pool_size') and reduction:  # timm's is that of the default size
        cfg['pool_size'] = [math.ceil(length / reduction) for length in size]
    for key in ('test_input_size', 'test_crop_pct', *_PROBLEM):
        cfg.pop(key, None)
    args.pop('num_classes', None)  # transformers refuses a second one beside the top level's
    path.write_text(json.dumps(config, indent=2) + '\n')


def _drop_label_names(model: nn.Module) -> None:
    model.pretrained_cfg = {
        k: v for k, v in model.pretrained_cfg.items() if k not in ('label_names', 'label_descriptions', *_PROBLEM)
    }


def read_model_config(folder: PathLike) -> Dict[str, Any]:
    """The content of a model folder's config.json.

    Raises:
        OSError, ValueError: as `read_json`; if it is not a mapping.
    """
    config = read_json(Path(folder) / 'config.json')
    if not isinstance(config, dict):
        raise ValueError(f"'{Path(folder) / 'config.json'}' must be a mapping of names to values")
    return config


def find_model_folder(path: PathLike) -> Path:
    """The model folder that a path refers to: itself, a network's folder in a run (its `best`), or a run of one
    network.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds several models.
    """
    folder = Path(path)
    if not folder.is_dir():
        reason = 'is not a directory' if folder.exists() else 'does not exist'
        raise FileNotFoundError(
            f"Model '{path}' {reason}: specify a model folder, such as a run's 'best', or a network's folder in a run."
        )
    if (folder / 'best' / 'config.json').is_file():
        return folder / 'best'
    several = [str(config.parent.parent) for config in sorted(folder.glob('*/best/config.json'))]
    if len(several) == 1 and not (folder / 'config.json').is_file():
        return Path(several[0]) / 'best'
    if several and not (folder / 'config.json').is_file():
        raise ValueError(f"'{path}' holds several models: specify one of {', '.join(several)}.")
    return folder


def is_checkpoint_file(path: PathLike) -> bool:
    """Whether a path is a file of its own, not a model folder nor the weights in one."""
    path = Path(path)
    return path.is_file() and not (path.name == 'model.safetensors' and (path.parent / 'config.json').is_file())


def download(name: str, file: str) -> Path:
    """Path, in the Hub's cache, of a file of 'hf-hub:ORG/NAME' or 'hf-hub:ORG/NAME@REVISION'."""
    repo_id, _, revision = name.partition(':')[2].partition('@')
    return Path(hf_hub_download(repo_id, file, revision=revision or None))


# -- loading -----------------------------------------------------------------------------------------------------------


def load_model(
    name: PathLike,
    model_name: Optional[str] = None,
    img_size: Optional[ImageSize] = None,
    num_classes: Optional[int] = None,
    use_ema: bool = True,
    model_kwargs: Optional[Dict[str, Any]] = None,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A trained network, in whatever form it was saved, and the arguments that rebuild it.

    All of its weights are loaded, whatever a config.json says about strictness; only a head for another number of
    classes is new.

    Args:
        name: Model folder, run folder (its `best` is loaded), checkpoint file of an HDKD network, 'local-dir:FOLDER',
            'hf-hub:NAME', or the name of a pretrained timm model, such as 'hdkd_student.brain_mri'.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        img_size: Height and width in pixels, one number for both, or two, for models that have a size; None for the
            training's.
        num_classes: Number of classes; None for the training's. The head, or heads, for another number is new.
        use_ema: Prefer the moving average of the weights in a checkpoint file that holds both.
        model_kwargs: Other arguments of the model; for a checkpoint file those that keys and shapes leave open
            (see `infer_architecture`).

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it cannot be loaded, if weights are missing or unexpected, if config.json is invalid, or if a
            folder holds several models.
    """
    path, name = Path(name), find_packaged(str(name))
    if is_checkpoint_file(path):
        model, args = _load_checkpoint_file(path, model_name, img_size, use_ema, model_kwargs or {})
    else:
        if path.exists():
            name = f'local-dir:{find_model_folder(path.parent if path.is_file() else path)}'
        elif not name.startswith(SOURCE_PREFIXES) and not is_model_pretrained(name):
            raise FileNotFoundError(
                f"Model '{name}' does not exist: specify a model folder, such as a run's 'best', a checkpoint file,"
                ' hf-hub:NAME, or the name of a pretrained timm model, such as hdkd_student.'
            )
        model, args = _load_pretrained(name, img_size, model_kwargs or {})
    if num_classes is None:
        return model, args
    if num_classes != model.num_classes:
        reset_classifier(model, num_classes)
        _drop_label_names(model)
    return model, dict(args, num_classes=num_classes)


def _load_pretrained(
    name: str,
    img_size: Optional[ImageSize],
    model_kwargs: Dict[str, Any],
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A pretrained timm model, by the name that `timm.create_model` takes, and the arguments that rebuild it."""
    if 'num_classes' in model_kwargs:  # timm would draw a new head
        raise ValueError(f"'num_classes' is not a model argument for '{name}': its weights determine it.")
    folder = Path(name.partition(':')[2]) if name.startswith('local-dir:') else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"Model folder '{folder}' does not exist.")
    if folder is not None:
        check_sums(folder)
    saved_args: Dict[str, Any] = {}
    config: Dict[str, Any] = {}
    args = {k: v for k, v in model_kwargs.items() if k != 'pretrained'}
    try:
        if name.startswith(SOURCE_PREFIXES):
            config = read_model_config(download(name, 'config.json').parent if folder is None else folder)
            saved_args = _read_source_args(config)
        strict = {'pretrained_strict': True} if 'pretrained_strict' in saved_args else {}
        try:
            sized_args = args if img_size is None else {'img_size': img_size, **args}
            model = timm.create_model(name, pretrained=True, **sized_args, **strict)
            args = sized_args
        except TypeError:  # it has no such argument
            model = timm.create_model(name, pretrained=True, **args, **strict)
    except Exception as e:  # whatever a damaged file or a network raises
        reason = ' '.join(str(e).split())[:400]
        hint = '' if folder is None else ' Expected a complete model folder, with config.json and model.safetensors.'
        raise ValueError(f"Cannot load '{name}' ({type(e).__name__}: {reason}).{hint}") from e
    check_preprocessing(model.pretrained_cfg, f"Model '{name}'")
    remove_model_arg(model, 'pretrained_strict')
    _set_problem(model, config, f"Model '{name}'")
    return model, {k: v for k, v in {**saved_args, **args}.items() if k != 'pretrained_strict'}


def find_label_settings(model: nn.Module) -> Dict[str, Any]:
    """What a model says of images with any number of labels, as `save_model` takes it; empty if they have one class."""
    return {key: model.pretrained_cfg[key] for key in _PROBLEM if key in model.pretrained_cfg}


def _set_problem(model: nn.Module, source: Mapping[str, Any], what: str) -> None:
    """Record in a model that its images have any number of labels, and their thresholds, if its source says so.

    Raises:
        ValueError: if the thresholds are not numbers by label.
    """
    problem = {key: source[key] for key in _PROBLEM if source.get(key)}
    limits = problem.get('thresholds', {})
    if not isinstance(limits, dict) or not all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in limits.values()):
        raise ValueError(f'{what}: its thresholds must be numbers from 0 to 1 by label, got {str(limits)[:80]}.')
    if problem:
        model.pretrained_cfg = dict(model.pretrained_cfg, **problem)


def _read_source_args(config: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments that a model was built with, from its config.json.

    Raises:
        ValueError: if the file contradicts itself, or changes how weights are loaded.
    """
    cfg, args = config.get('pretrained_cfg') or {}, config.get('model_args') or {}
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise ValueError('its pretrained_cfg and model_args must be mappings of names to values')
    forbidden = [key for key in _FACTORY_ARGS if args.get(key)]
    if forbidden:
        raise ValueError(f"its model_args hold '{forbidden[0]}', which is not an argument of a network")
    numbers = {
        place: values['num_classes']
        for place, values in (('the top level', config), ('model_args', args), ('pretrained_cfg', cfg))
        if values.get('num_classes') is not None
    }
    if len(set(map(str, numbers.values()))) > 1:
        found = ', '.join(f'{number} in {place}' for place, number in numbers.items())
        raise ValueError(f'its num_classes contradict each other, {found}')
    if list(numbers) == ['model_args']:  # timm would assume weights of 1,000 classes, and draw a new head
        raise ValueError('its num_classes is in model_args only: move it to the top level')
    return args


# -- checkpoint files --------------------------------------------------------------------------------------------------


def _load_checkpoint_file(
    path: Path,
    model_name: Optional[str],
    img_size: Optional[ImageSize],
    use_ema: bool,
    model_kwargs: Dict[str, Any],
) -> Tuple[nn.Module, Dict[str, Any]]:
    """The HDKD network of a checkpoint file, the published code's, ours or another trainer's, and the arguments that
    rebuild it.

    What keys and shapes leave open (see `infer_architecture`) is taken from the arguments, else from the file ('arch',
    'args', ...) or, for the training state of a run, from that run; else defaults are assumed, with a warning. The
    file's class names become the `label_names` of the model's `pretrained_cfg`.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, `choose_network` and `infer_architecture`; if keys are
            missing or unexpected, or shapes differ (they are named).
    """
    checkpoint = read_checkpoint(path)
    metadata = read_metadata(checkpoint)
    model_kwargs = {k: v for k, v in model_kwargs.items() if v is not None}
    is_training_state = 'progress' in checkpoint and 'optimizer' in checkpoint  # of a run of this package
    if is_training_state:
        run = read_run_metadata(path)
        metadata = metadata._replace(preprocessing=run.preprocessing) if metadata.model_name else run
    try:
        network = choose_network(checkpoint, path, model_name or metadata.model_name, use_ema)
        tensors = {name: value for name, value in network.state_dict.items() if isinstance(value, torch.Tensor)}
        name, model_args = infer_architecture(tensors, model_name, metadata, model_kwargs)
    except KeyError as e:
        raise ValueError(f"'{path}' is not a complete checkpoint of an HDKD network, {e} is missing.") from e
    except (IndexError, TypeError, ZeroDivisionError) as e:
        raise ValueError(
            f"'{path}' is not a checkpoint of an HDKD network, its tensors have other shapes ({e})."
        ) from e
    except ValueError as e:
        if not is_training_state:
            raise
        raise ValueError(f"{e} '{path}' is the training state of a run: use its model, 'best' beside it.") from e
    try:
        model = timm.create_model(name, **model_args)
    except (TypeError, ValueError) as e:
        raise ValueError(f"Cannot build the {name} of '{path}' with {model_args}: {e}") from e
    recorded_size = metadata.model_args.get('img_size') if 'img_size' not in model_kwargs else None
    hint = (
        ''
        if recorded_size is None
        else (
            f' {metadata.source} records an image size of {recorded_size} pixels: specify another one, --model-kwargs'
            ' img_size=SIZE.'
        )
    )
    _load_state_dict(path, model, network.state_dict, hint)
    known_args = {**metadata.model_args, **model_kwargs}
    if img_size and isinstance(model, HDKDTeacher):  # it takes any size, and its shapes show none
        known_args['img_size'] = img_size
    _warn_of_defaults(path, model, bool(model_name or metadata.model_name), known_args)
    if img_size and not is_same_argument(img_size, model.img_size):
        model.set_input_size(img_size)
        model_args = dict(model_args, img_size=img_size)
    _set_pretrained_cfg(model, metadata)
    _set_problem(model, checkpoint, f"'{path}'")
    return model, model_args


def _load_state_dict(path: Path, model: nn.Module, state_dict: Dict[str, Any], hint: str) -> None:
    """Load weights strictly.

    Raises:
        ValueError: for missing or unexpected keys and for other shapes or types; ends in the hint on a possible cause.
    """
    expected = model.state_dict()
    shapes = {k: tuple(v.shape) if isinstance(v, torch.Tensor) else v for k, v in state_dict.items()}
    common = sorted(set(expected) & set(shapes))
    problems = []
    for problem, keys in (
        ('missing', sorted(set(expected) - set(state_dict))),
        ('unexpected', sorted(set(state_dict) - set(expected))),
        (
            'of another shape',
            [
                f'{k} {shapes[k]} instead of {tuple(expected[k].shape)}'
                for k in common
                if shapes[k] != tuple(expected[k].shape)
            ],
        ),
        (
            'not floating-point',
            [  # quantised values would be copied without their scale
                k for k in common if expected[k].is_floating_point() and not _is_floating_point(state_dict[k])
            ],
        ),
    ):
        if keys:
            problems.append(f'{len(keys)} {problem}: {abbreviate(keys, 5)}')
    if problems:
        name = model.pretrained_cfg['architecture']
        raise ValueError(f"'{path}' does not fit {name} ({'; '.join(problems)}).{hint}")
    model.load_state_dict(state_dict)


def _is_floating_point(value: Any) -> bool:
    """Whether it is a tensor of real numbers that can be copied directly."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        and not value.is_meta
    )


def _warn_of_defaults(path: Path, model: nn.Module, is_named: bool, known_args: Dict[str, Any]) -> None:
    """Warn about arguments that neither keys and shapes nor the file determine, for which defaults are assumed."""
    assumed = []
    if not is_named and 'stem_stride' not in known_args:
        name = model.pretrained_cfg['architecture']
        assumed.append(f'a stem of stride {model.feature_info[0]["reduction"]} ({name}; --model {name}_s4 has 4)')
    if isinstance(model, HDKDStudent) and not is_named and not {'head_dim', 'num_heads'} & set(known_args):
        assumed.append(f'attention heads of width {model.blocks[0].attn.head_dim} (--model-kwargs head_dim=WIDTH)')
    if 'img_size' not in known_args:
        size = ' x '.join(map(str, model.img_size))
        assumed.append(f"images of {size} pixels (--model-kwargs 'img_size=(HEIGHT, WIDTH)')")
    if assumed:
        _logger.warning(f"'{path}' does not determine its network completely, assuming {'; '.join(assumed)}.")


def _set_pretrained_cfg(model: nn.Module, metadata: CheckpointMetadata) -> None:
    """Record preprocessing, input size and class names of a checkpoint file in the model."""
    model.pretrained_cfg = dict(
        model.pretrained_cfg, **metadata.preprocessing, input_size=(model.in_chans, *model.img_size)
    )
    if metadata.label_names:
        model.pretrained_cfg['label_names'] = tuple(metadata.label_names)


def convert_checkpoint(
    path: PathLike,
    folder: PathLike,
    model_name: Optional[str] = None,
    label_names: Optional[Sequence[str]] = None,
    use_ema: bool = True,
    **model_kwargs: Any,
) -> Tuple[str, Dict[str, Any]]:
    """Convert a checkpoint file of an HDKD network to a model folder.

    Args:
        path: The file.
        folder: Output folder; must not exist or be empty.
        model_name, use_ema, model_kwargs: As in `load_model`.
        label_names: Class names by index; by default those in the file, if any.

    Returns:
        Model name and arguments.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `load_model` and `save_model`; if the number of label names
            is not the number of classes.
    """
    model, model_args = _load_checkpoint_file(Path(path), model_name, None, use_ema, model_kwargs)
    label_names = match_label_names(model, label_names, f"Checkpoint '{path}'")
    save_model(model, folder, label_names=label_names, model_args=model_args, problem=find_label_settings(model))
    return model.pretrained_cfg['architecture'], model_args

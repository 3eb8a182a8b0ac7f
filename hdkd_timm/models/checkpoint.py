"""Model folders (`config.json` + `model.safetensors`) and checkpoints of the published code.

A folder is what `timm.create_model('local-dir:FOLDER', pretrained=True)` and the Hugging Face Hub take. It is written
whole or not at all.
"""
import copy
import inspect
import json
import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import safetensors.torch
import timm
import torch
from huggingface_hub import hf_hub_download
from timm.data.loader import adapt_to_chs
from timm.models import is_model_pretrained, save_for_hf
from timm.utils import unwrap_model
from torch import nn

from .checkpoint_file import Told, choose_network, read_checkpoint, read_told, read_told_beside
from .hdkd import HDKDStudent, HDKDTeacher, is_fused
from ..utils.files import PathLike, add_sums, check_sums, new_folder, atomic_write
from ..utils.parsing import read_json

__all__ = [
    'SOURCE_PREFIXES', 'adapt_stats', 'check_preprocessing', 'convert_checkpoint', 'describe_orders', 'download',
    'find_model_folder', 'has_two_orders', 'load_checkpoint', 'load_model', 'load_saved', 'load_teacher',
    'match_label_names', 'read_checkpoint', 'read_model_config', 'infer_architecture', 'save_model']

_logger = logging.getLogger(__name__)

SOURCE_PREFIXES = ('local-dir:', 'hf-hub:', 'hf_hub:')  # how timm tells models that are saved elsewhere


def adapt_stats(model: nn.Module) -> None:
    """Let a timm model's mean and std be of as many channels as it takes."""
    for key in ('mean', 'std'):
        stats = tuple(adapt_to_chs(model.pretrained_cfg[key], model.in_chans))
        model.pretrained_cfg = dict(model.pretrained_cfg, **{key: stats})


def save_model(
        model: nn.Module,
        folder: PathLike,
        label_names: Optional[Sequence[str]] = None,
        model_args: Optional[Dict[str, Any]] = None,
        input_size: Optional[Tuple[int, int, int]] = None,
        replace: bool = False,
) -> None:
    """Write a model folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads.

    Args:
        model: A timm model.
        folder: Where to write; must not exist or be empty.
        label_names: Class names by index.
        model_args: Arguments that the model was created with. timm >= 1.0.31 records them for all models, before that
            they are known for those of this package.
        input_size: (C, H, W) of the images that it was trained on, where the model does not tell.
        replace: Take the place of the weights of the same model there.

    Raises:
        FileExistsError: if the folder holds something.
        ValueError: if the model is fused, which no loader could build.
    """
    if is_fused(model):
        raise ValueError(
            f'This {type(unwrap_model(model)).__name__} is fused for inference (timm.utils.reparameterize_model): save'
            ' the model that it was made from.')
    model = copy.deepcopy(unwrap_model(model)).cpu().to(memory_format=torch.contiguous_format)
    adapt_stats(model)
    if label_names or model.num_classes != model.pretrained_cfg.get('num_classes'):  # not those that it came with
        model.pretrained_cfg = {
            k: v for k, v in model.pretrained_cfg.items() if k not in ('label_names', 'label_descriptions')}
    if not hasattr(timm.models, 'get_model_args'):  # timm < 1.0.31
        pool = getattr(model, 'global_pool', None)
        pool = getattr(pool, 'pool_type', pool)
        model_args = {
            **getattr(model, '_model_args', {}), **(model_args or {}), 'num_classes': model.num_classes,
            'in_chans': model.in_chans, **({'global_pool': pool} if isinstance(pool, str) else {})}
    model_config = {'label_names': list(label_names)} if label_names else {}
    if replace and (Path(folder) / 'model.safetensors').exists():
        with atomic_write(Path(folder) / 'model.safetensors', 'wb', summed=True) as file:
            file.write(safetensors.torch.save(model.state_dict()))
        return
    with new_folder(folder) as temporary:
        save_for_hf(model, temporary, model_config=model_config, model_args=model_args, safe_serialization=True)
        path = temporary / 'config.json'
        config = json.loads(path.read_text())
        # what timm writes is the source's metadata, in some versions or for some models
        cfg = config['pretrained_cfg']
        img_size = input_size[-2:] if input_size else getattr(model, 'img_size', None) or cfg['input_size'][-2:]
        cfg.update(
            input_size=[model.in_chans, *(img_size if isinstance(img_size, (list, tuple)) else [img_size] * 2)],
            num_classes=model.num_classes)
        for key in ('test_input_size', 'test_crop_pct'):
            cfg.pop(key, None)
        # it stands at the top already; transformers takes no second one
        config.get('model_args', {}).pop('num_classes', None)
        path.write_text(json.dumps(config, indent=2) + '\n')
        if replace:  # that of a run, which is read again
            add_sums(temporary, 'config.json', 'model.safetensors')


def _count(names: Sequence[str], prefix: str) -> int:
    """How many numbered layers stand below `prefix`."""
    return len({name[len(prefix):].split('.')[0] for name in names if name.startswith(prefix)})


def infer_architecture(
        state_dict: Dict[str, torch.Tensor],
        model_name: Optional[str] = None,
        told: Optional[Told] = None,
        **model_kwargs: Any,
) -> Tuple[str, Dict[str, Any]]:
    """Name and arguments of the HDKD network that a state dict (with our names) belongs to.

    Read off the keys and shapes, except for what these don't show: the stem's stride (2 unless an `_s4` model is
    named), the width of the heads (32 unless told), an image size that is not square or no whole number of patches,
    and that of a teacher.

    Args:
        state_dict: As `convert_state_dict` returns it.
        model_name: Model name, to choose among those that fit.
        told: What its file says of it, which must not contradict the keys and shapes.
        model_kwargs: Model arguments that win over what is read off and told.

    Raises:
        ValueError: if it is none of the networks, or not the one named.
    """
    told = told or Told()
    model_kwargs = {k: v for k, v in model_kwargs.items() if v is not None}
    named, model_name = model_name, model_name or told.model_name
    said = '' if named or not model_name else f" The file says so ({told.source}): name the right one, --model NAME."
    names = list(state_dict)
    lacking = [name for name in ('stages.0.0.conv.weight', 'head.weight') if name not in state_dict]
    if lacking:
        raise ValueError(
            f"Not a whole checkpoint of an HDKD network, it has no {' and no '.join(lacking)} (its first keys:"
            f" {', '.join(names[:4])}).")
    student, distilled = 'cls_token' in state_dict, 'dist_token' in state_dict
    if model_name is None:
        model_name = ('hdkd_student' if distilled else 'hdkd_student_plain') if student else 'hdkd_teacher'
    if not (timm.is_model(model_name) and model_name.startswith('hdkd_')):
        raise ValueError(f"Unknown model '{model_name}', choose from {', '.join(timm.list_models('hdkd_*'))}.{said}")
    model = timm.create_model(model_name, device='meta')
    if isinstance(model, HDKDStudent) != student or (student and model.distilled != distilled):
        kind = f"student {'with' if distilled else 'without'} distillation token" if student else 'teacher'
        raise ValueError(f"The checkpoint is that of a {kind}, not of '{model_name}'.{said}")
    parameters = inspect.signature(HDKDStudent if student else HDKDTeacher).parameters
    hints = {k: v for k, v in told.model_args.items() if k in parameters and k not in ('device', 'dtype')}
    given = {**hints, **model_kwargs}
    if {'head_dim', 'num_heads'} & set(model_kwargs):  # one of them tells the other
        given = {k: v for k, v in given.items() if k not in ('head_dim', 'num_heads') or k in model_kwargs}
    stem_stride = given.get('stem_stride') or (4 if '_s4' in model_name else 2)
    args = dict(
        num_classes=state_dict['head.weight'].shape[0],
        in_chans=state_dict['stages.0.0.conv.weight'].shape[1],
        depths=tuple(_count(names, f'stages.{i}.') for i in range(3)),
        dims=(
            state_dict['stages.0.0.conv.weight'].shape[0],
            *(state_dict[f'stages.{i}.0.conv_pwl.weight'].shape[0] for i in (1, 2))),
        attn='cbam' if any('.attn.channel.' in name for name in names) else 'se',
    )
    if student:
        embed_dim = state_dict['patch_embed.proj.weight'].shape[0]
        patch_size = math.isqrt(state_dict['patch_embed.proj.weight'].shape[1] // args['dims'][-1])
        num_patches = state_dict['pos_embed'].shape[1] - 1 - distilled
        attn_dim = state_dict['blocks.0.attn.qkv.weight'].shape[0] // 3
        head_dim = given.get('head_dim') or (attn_dim // given['num_heads'] if given.get('num_heads') else 32)
        if attn_dim % head_dim:
            raise ValueError(
                f'The attention is {attn_dim} wide, no whole number of heads of {head_dim}: name their width,'
                ' --model-kwargs head_dim=WIDTH.')
        side = math.isqrt(num_patches)
        if side ** 2 != num_patches and 'img_size' not in given:
            raise ValueError(
                f'The position embedding has {num_patches} patches, not those of a square image: name its size,'
                " --model-kwargs 'img_size=(HEIGHT, WIDTH)'.")
        args.update(
            depths=(*args['depths'], _count(names, 'blocks.')),
            embed_dim=embed_dim,
            patch_size=patch_size,
            num_heads=attn_dim // head_dim,
            head_dim=head_dim,
            mlp_ratio=state_dict['blocks.0.mlp.fc1.weight'].shape[0] / embed_dim,
            img_size=side * patch_size * stem_stride * 4,
            distilled=distilled,
        )
    else:
        args.update(hidden_size=state_dict['head_hidden.weight'].shape[0])
    # what the shapes show is no matter of opinion; of the image size they show the number of patches alone
    for key, value in hints.items():
        if key in args and key not in (*model_kwargs, 'img_size') and not _is_same(value, args[key]):
            raise ValueError(
                f'The file says {key}={value} ({told.source}), its tensors say {args[key]}: name the right one,'
                f' --model-kwargs {key}=VALUE.')
    return model_name, {**args, **given}


def _is_same(a: Any, b: Any) -> bool:
    """Are arguments the same, lists as tuples, and a number for a square?"""
    a, b = (tuple(x) if isinstance(x, (list, tuple)) else x for x in (a, b))
    return a == b or a == (b, b) or (a, a) == b


def _warn_of_guesses(path: PathLike, model: nn.Module, is_named: bool, given: Dict[str, Any]) -> None:
    """Say what of a network stands neither in its keys and shapes nor in its file, and was taken."""
    guesses = []
    if not is_named and 'stem_stride' not in given:
        name = model.pretrained_cfg['architecture']
        guesses.append(f'a stem of stride {model.feature_info[0]["reduction"]} ({name}; --model {name}_s4 has 4)')
    if isinstance(model, HDKDStudent) and not is_named and not {'head_dim', 'num_heads'} & set(given):
        guesses.append(f'heads {model.blocks[0].attn.head_dim} wide (--model-kwargs head_dim=WIDTH)')
    if 'img_size' not in given:
        size = ' x '.join(map(str, model.img_size))
        guesses.append(f"images of {size} pixels (--model-kwargs 'img_size=(HEIGHT, WIDTH)')")
    if guesses:
        _logger.warning(f"'{path}' does not tell all of its network, taken for granted: {'; '.join(guesses)}.")


def load_checkpoint(
        path: PathLike,
        model_name: Optional[str] = None,
        use_ema: bool = True,
        resize: Optional[int] = None,
        **model_kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """The HDKD network of a checkpoint file, the published code's, ours or another trainer's, and the arguments that it
    is built with.

    What keys and shapes leave open (see `infer_architecture`) is taken from the arguments, else from the file ('arch',
    'args', ...) or, for a training state of a run, from that run; else it is assumed, and said. Class names that the
    file tells are those of the model's `pretrained_cfg`.

    Args:
        path: A state dict, bare or within what a trainer saved, with or without a prefix of its keys.
        model_name: Model name, where file and keys leave a choice (`_s4`).
        use_ema: Take the moving average of the weights where the file holds one.
        resize: Height and width of images in pixels, if not those of the training.
        model_kwargs: Model arguments, where file, keys and shapes leave a choice (num_heads, head_dim, img_size).

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`, `choose_network` and `infer_architecture`; if keys are
            missing or left over, or shapes differ (they are named).
    """
    checkpoint = read_checkpoint(path)
    told = read_told(checkpoint)
    given = {k: v for k, v in model_kwargs.items() if v is not None}
    is_state = 'progress' in checkpoint and 'optimizer' in checkpoint  # of a run of this package
    if is_state:
        beside = read_told_beside(path)
        told = told._replace(cfg=beside.cfg) if told.model_name else beside
    try:
        network = choose_network(checkpoint, path, model_name or told.model_name, use_ema)
        tensors = {name: value for name, value in network.state_dict.items() if isinstance(value, torch.Tensor)}
        name, model_args = infer_architecture(tensors, model_name, told, **given)
    except KeyError as e:
        raise ValueError(f"'{path}' is no whole checkpoint of an HDKD network, it lacks {e}.") from e
    except (IndexError, TypeError, ZeroDivisionError) as e:
        raise ValueError(f"'{path}' is no checkpoint of an HDKD network, its tensors have other shapes ({e}).") from e
    except ValueError as e:
        if not is_state:
            raise
        raise ValueError(f"{e} '{path}' is the training state of a run: take its model, 'best' beside it.") from e
    model = _build(path, name, model_args)
    size = told.model_args.get('img_size') if 'img_size' not in given else None
    said = '' if size is None else (
        f' {told.source} says that images have {size} pixels: name another size, --model-kwargs img_size=SIZE.')
    _load_strictly(path, model, network.state_dict, said)
    known = {**told.model_args, **given}
    if resize and isinstance(model, HDKDTeacher):  # it takes any size, and shows none
        known['img_size'] = resize
    _warn_of_guesses(path, model, bool(model_name or told.model_name), known)
    if resize and not _is_same(resize, model.img_size):
        model.set_input_size(resize)
        model_args = dict(model_args, img_size=resize)
    model.pretrained_cfg = dict(model.pretrained_cfg, **told.cfg, input_size=(model.in_chans, *model.img_size))
    if told.label_names:
        model.pretrained_cfg['label_names'] = tuple(told.label_names)
    return model, model_args


def _build(path: PathLike, model_name: str, model_args: Dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model_name, **model_args)
    except (TypeError, ValueError) as e:
        raise ValueError(f"Cannot build the {model_name} of '{path}' with {model_args}: {e}") from e


def _is_floating_point(value: Any) -> bool:
    """Is it a tensor of real numbers that can be copied as they are?"""
    return (isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout is torch.strided
            and not value.is_meta)


def _load_strictly(path: PathLike, model: nn.Module, state_dict: Dict[str, Any], said: str) -> None:
    """Raises ValueError for keys that are missing or left over and for other shapes or types, with a word on why that
    may be."""
    expected = model.state_dict()
    shapes = {k: tuple(v.shape) if isinstance(v, torch.Tensor) else v for k, v in state_dict.items()}
    both = sorted(set(expected) & set(shapes))
    problems = []
    for what, keys in (
            ('missing', sorted(set(expected) - set(state_dict))),
            ('left over', sorted(set(state_dict) - set(expected))),
            ('of another shape', [
                f'{k} {shapes[k]} instead of {tuple(expected[k].shape)}' for k in both
                if shapes[k] != tuple(expected[k].shape)]),
            ('not floating-point', [  # quantised values would be copied without their scale
                k for k in both if expected[k].is_floating_point() and not _is_floating_point(state_dict[k])]),
    ):
        if keys:
            problems.append(f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}")
    if problems:
        name = model.pretrained_cfg['architecture']
        raise ValueError(f"'{path}' does not fit {name} ({'; '.join(problems)}).{said}")
    model.load_state_dict(state_dict)


def convert_checkpoint(
        path: PathLike,
        folder: PathLike,
        model_name: Optional[str] = None,
        label_names: Optional[Sequence[str]] = None,
        use_ema: bool = True,
        **model_kwargs: Any,
) -> Tuple[str, Dict[str, Any]]:
    """Write the model folder of a checkpoint file, see `load_checkpoint` and `save_model`. Without label names it has
    those that the file tells, if any.

    Returns:
        Model name and arguments.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as these; if there are not as many label names as classes.
    """
    model, model_args = load_checkpoint(path, model_name, use_ema, **model_kwargs)
    label_names = match_label_names(model, label_names, f"Checkpoint '{path}'")
    save_model(model, folder, label_names=label_names, model_args=model_args)
    return model.pretrained_cfg['architecture'], model_args


def _check_label_names(names: Any, num_classes: int, what: str) -> List[str]:
    """Class names by index, as a list.

    Raises:
        ValueError: if they are not as many different strings as there are classes.
    """
    if isinstance(names, dict):  # index -> name, as timm takes it too
        keys = [str(i) for i in range(len(names))]
        by_key = {str(key): name for key, name in names.items()}
        names = [by_key[key] for key in keys] if set(by_key) == set(keys) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f'{what}: label_names must be a list of names, got {str(names)[:80]}.')
    if len(names) != num_classes:
        raise ValueError(f'{what}: {len(names)} label names for the {num_classes} classes of the model.')
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise ValueError(f"{what}: label name '{repeated}' is there twice.")
    return list(names)


def match_label_names(model: nn.Module, given: Optional[Sequence[str]], what: str) -> Optional[List[str]]:
    """Class names of a model by index: those that it tells, else those given, else None.

    Args:
        model: A timm model.
        given: Names by the user.
        what: What the model is, for messages.

    Raises:
        ValueError: if they are not as many different names as there are classes, or the model tells others.
    """
    told = model.pretrained_cfg.get('label_names') or None
    if given:
        given = _check_label_names(list(given), model.num_classes, f'{what}, names given')
    if told:
        try:
            told = _check_label_names(told, model.num_classes, what)
        except ValueError as e:
            if not given:
                raise ValueError(f'{e} Name its classes by index, --label-names NAME ...') from e
            _logger.warning(f'{e} Those given are taken.')
            return given
    if given and told and given != told:
        raise ValueError(
            f"{what} tells its classes, {', '.join(told)}, which are not those given, {', '.join(given)}: leave these"
            ' out.')
    return told or given or None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_preprocessing(cfg: Dict[str, Any], what: str) -> None:
    """Can images be prepared by this, a `pretrained_cfg` or timm's data config?

    Raises:
        ValueError: if a size, mean, std or crop is not what it must be; names it and its value.
    """
    size = cfg.get('input_size')
    if not (isinstance(size, (list, tuple)) and len(size) == 3
            and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size)):
        raise ValueError(f'{what}: input_size must be (channels, height, width), got {size}.')
    for key, lowest in (('mean', -math.inf), ('std', 0)):
        stats = cfg.get(key)
        if not (isinstance(stats, (list, tuple)) and len(stats) in (1, 3, size[0])
                and all(_is_number(value) and value > lowest for value in stats)):
            raise ValueError(
                f"{what}: {key} must be {size[0]} numbers{' above 0' if key == 'std' else ''}, one a channel, got"
                f' {stats}.')
    if not (_is_number(cfg.get('crop_pct')) and cfg['crop_pct'] > 0):
        raise ValueError(f"{what}: crop_pct must be a number above 0, got {cfg.get('crop_pct')}.")
    for key, known in (('crop_mode', ('center', 'squash', 'border')),
                       ('interpolation', ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random'))):
        if cfg.get(key) not in known:
            raise ValueError(f"{what}: {key} must be one of {', '.join(known)}, got {cfg.get(key)!r}.")


# arguments of timm's factory that are no model's own: in a config.json they would change how its weights are loaded
_FACTORY_ARGS = (
    'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'pretrained_filter_fn', 'checkpoint_path', 'cache_dir',
    'features_only', 'model_cfg', 'feature_cfg', 'kwargs_filter', 'device', 'dtype')


def download(name: str, file: str) -> Path:
    """A file of 'hf-hub:ORG/NAME' or 'hf-hub:ORG/NAME@REVISION', as it is in the Hub's cache then."""
    repo_id, _, revision = name.partition(':')[2].partition('@')
    return Path(hf_hub_download(repo_id, file, revision=revision or None))


def read_model_config(folder: PathLike) -> Dict[str, Any]:
    """What a model folder's config.json holds.

    Raises:
        OSError, ValueError: as `read_json`; if it holds no names and values.
    """
    config = read_json(Path(folder) / 'config.json')
    if not isinstance(config, dict):
        raise ValueError(f"'{Path(folder) / 'config.json'}' must hold names and values")
    return config


def _check_source(name: str, folder: Optional[Path]) -> Dict[str, Any]:
    """Arguments that the model of a folder or of the Hub was built with, from its config.json.

    Raises:
        ValueError: if the file contradicts itself, or says how weights are to be loaded.
    """
    config = read_model_config(download(name, 'config.json').parent if folder is None else folder)
    cfg, args = config.get('pretrained_cfg') or {}, config.get('model_args') or {}
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        raise ValueError('its pretrained_cfg and model_args must hold names and values')
    meddling = [key for key in _FACTORY_ARGS if args.get(key)]
    if meddling:
        raise ValueError(f"its model_args hold '{meddling[0]}', which is no argument of a network")
    numbers = {
        place: values['num_classes'] for place, values in (
            ('itself', config), ('model_args', args), ('pretrained_cfg', cfg)) if values.get('num_classes') is not None}
    if len(set(map(str, numbers.values()))) > 1:
        said = ', '.join(f'{number} in {place}' for place, number in numbers.items())
        raise ValueError(f'its num_classes contradict each other, {said}')
    if list(numbers) == ['model_args']:  # timm would take the weights for those of 1,000 classes, and draw a new head
        raise ValueError('its num_classes is in model_args alone: move it to the top level')
    return args


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Give a model a new head, or heads, for another number of classes."""
    default = inspect.signature(model.reset_classifier).parameters.get('global_pool')
    pool = getattr(getattr(model, 'global_pool', None), 'pool_type', None)
    if default is not None and isinstance(default.default, str) and pool:  # timm < 1.0.31 would go back to 'avg'
        model.reset_classifier(num_classes, pool)
    else:
        model.reset_classifier(num_classes)
    model.pretrained_cfg = {  # those of the weights are not the model's
        k: v for k, v in model.pretrained_cfg.items() if k not in ('label_names', 'label_descriptions')}


def load_model(
        name: str,
        optional: Optional[Dict[str, Any]] = None,
        num_classes: Optional[int] = None,
        **kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A pretrained timm model, and the arguments that it is built with. All of its weights are there, whatever its
    config.json says of that; a head for another number of classes is new.

    Args:
        name: As `timm.create_model` takes it: model name, 'local-dir:FOLDER' or 'hf-hub:NAME'.
        optional: Arguments for models that take them.
        num_classes: Number of classes, that of the weights by default.
        kwargs: Other arguments of the model.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no whole model folder, config.json and model.safetensors, weights are missing or left over,
            or config.json is wrong; names what.
    """
    folder = Path(name.partition(':')[2]) if name.startswith('local-dir:') else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"Model folder '{folder}' does not exist.")
    if folder is not None:
        check_sums(folder)
    saved_args: Dict[str, Any] = {}
    kwargs.pop('pretrained', None)
    try:
        if name.startswith(SOURCE_PREFIXES):
            saved_args = _check_source(name, folder)
        strict = {'pretrained_strict': True} if 'pretrained_strict' in saved_args else {}
        try:
            every = {**(optional or {}), **kwargs}
            model = timm.create_model(name, pretrained=True, **every, **strict)
        except TypeError:
            every = kwargs
            model = timm.create_model(name, pretrained=True, **every, **strict)
    except Exception as e:  # whatever a damaged file or a network raises
        first = ' '.join(str(e).split())[:400]
        expected = '' if folder is None else ' Expected a whole model folder, with config.json and model.safetensors.'
        raise ValueError(f"Cannot load '{name}' ({type(e).__name__}: {first}).{expected}") from e
    check_preprocessing(model.pretrained_cfg, f"Model '{name}'")
    args = {k: v for k, v in {**saved_args, **every}.items() if k != 'pretrained_strict'}
    if hasattr(model, '_model_args'):
        model._model_args = {k: v for k, v in model._model_args.items() if k != 'pretrained_strict'}
    if num_classes not in (None, model.num_classes):
        _replace_head(model, num_classes)
    return model, args if num_classes is None else dict(args, num_classes=num_classes)


def find_model_folder(path: PathLike) -> Path:
    """The model folder that a path means: itself, a network's folder in a run (its `best`), or a run of one network.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds several models.
    """
    folder = Path(path)
    if not folder.is_dir():
        wrong = 'is no folder' if folder.exists() else 'does not exist'
        raise FileNotFoundError(
            f"Model '{path}' {wrong}: give a model folder, such as a run's 'best', or a network's folder in a run.")
    if (folder / 'best' / 'config.json').is_file():
        return folder / 'best'
    several = [str(config.parent.parent) for config in sorted(folder.glob('*/best/config.json'))]
    if several and not (folder / 'config.json').is_file():
        raise ValueError(f"'{path}' holds several models: give one of {', '.join(several)}.")
    return folder


def load_saved(
        name: PathLike,
        model_name: Optional[str] = None,
        img_size: Optional[int] = None,
        use_ema: bool = True,
        **model_kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A trained model wherever it was saved, and the arguments that it is built with.

    Args:
        name: Model folder, run folder (its `best` is meant), checkpoint file of an HDKD network, 'local-dir:FOLDER',
            'hf-hub:NAME', or the name of a pretrained timm model, such as 'hdkd_student.brain_mri'.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        img_size: Image size in pixels, for models that take one; None for that of the training.
        use_ema: Of a checkpoint file that holds a moving average of the weights too, take that.
        model_kwargs: Model arguments of a checkpoint file, where keys and shapes leave a choice.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it cannot be loaded, or the folder holds several.
    """
    size = {} if img_size is None else dict(img_size=img_size)
    path = Path(name)
    if str(name).startswith(SOURCE_PREFIXES) and not path.exists():
        return load_model(str(name), optional=size)
    if path.name == 'model.safetensors' and (path.parent / 'config.json').is_file():
        path = path.parent
    if path.is_file():
        return load_checkpoint(path, model_name, use_ema, img_size, **model_kwargs)
    if not path.exists():
        if is_model_pretrained(str(name)):
            return load_model(str(name), optional=size)
        raise FileNotFoundError(
            f"Model '{name}' does not exist: give a model folder, such as a run's 'best', a checkpoint file,"
            ' hf-hub:NAME, or the name of a pretrained timm model, such as hdkd_student.')
    return load_model(f'local-dir:{find_model_folder(path)}', optional=size)


def _permute_classes(model: nn.Module, order: Sequence[int], what: str) -> None:
    """Bring the classes of a model into another order: index i is that of before in `order[i]`.

    Raises:
        ValueError: if its classifiers are no linear layers.
    """
    heads = model.get_classifier()
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    if not all(isinstance(head, nn.Linear) and head.out_features == len(order) for head in heads):
        raise ValueError(f'{what} has a head whose classes cannot be reordered: take one with the order of the data.')
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                parameter.copy_(parameter[list(order)].clone())


def load_teacher(
        name: PathLike,
        classes: List[str],
        in_chans: int = 3,
        model_name: Optional[str] = None,
        label_names: Optional[Sequence[str]] = None,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A trained teacher, and the arguments that it is built with.

    Args:
        name: As `load_saved` takes it.
        classes: Class names of the data by index. A model that names its classes must name the same in this order. Of
            one that does not, only the number can be compared: the names have one order by whatever a trainer may sort
            them, or they must be given.
        in_chans: Image channels that the student takes.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        label_names: Class names of the teacher by index; in another order than the data's, its head is brought into
            that.

    Raises:
        FileNotFoundError, ValueError: if there is no such model, or if its classes or channels differ.
    """
    what = f"Teacher '{name}'"
    try:
        model, model_args = load_saved(name, model_name)
    except ValueError as e:
        if not Path(name).is_file():
            raise
        raise ValueError(
            f'{e} What is to be named of a teacher is named to `hdkd convert {name} FOLDER`; FOLDER then is the'
            ' teacher.') from e
    labels = match_label_names(model, label_names, what)
    if labels and labels != classes:
        different = [label for label in labels if label not in classes] \
            or [label for label in classes if label not in labels]
        if different or not label_names:
            reason = f"class '{different[0]}' is not in both" if different else (
                'the order differs (--teacher-label-names with its own names brings it into that of the data)')
            raise ValueError(
                f"The classes of teacher '{name}' ({', '.join(labels)}) are not those of the data"
                f" ({', '.join(classes)}): {reason}.")
        _permute_classes(model, [labels.index(label) for label in classes], what)
    if model.num_classes != len(classes):
        raise ValueError(f"Teacher '{name}' has {model.num_classes} classes, the data {len(classes)}.")
    if not labels and has_two_orders(classes):
        raise ValueError(
            f"Teacher '{name}' does not tell its classes, and their order is a guess: {describe_orders(classes)}. Name"
            ' them by index, --teacher-label-names NAME ...')
    if model.in_chans != in_chans:
        raise ValueError(f"Teacher '{name}' takes {model.in_chans} channels, the student {in_chans}.")
    adapt_stats(model)
    if label_names:
        model.pretrained_cfg['label_names'] = tuple(classes)
    return model, model_args


def has_two_orders(classes: Sequence[str]) -> bool:
    """Do trainers that sort class names as text index them otherwise than those that sort them as timm does?"""
    return list(classes) != sorted(classes)


def describe_orders(classes: Sequence[str]) -> str:
    """Both orders, to be told."""
    return (
        f"the data has {', '.join(classes)}, a trainer with torchvision's ImageFolder (the published code is one)"
        f" {', '.join(sorted(classes))}")

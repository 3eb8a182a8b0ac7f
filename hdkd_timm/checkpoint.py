"""Model folders (`config.json` + `model.safetensors`) and checkpoints of the published code.

A folder is what `timm.create_model('local-dir:FOLDER', pretrained=True)` and the Hugging Face Hub take. It is written
whole or not at all.
"""
import copy
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import safetensors.torch
import timm
import torch
from timm.data.loader import adapt_to_chs
from timm.models import is_model_pretrained, save_for_hf
from timm.utils import unwrap_model
from torch import nn

from .files import PathLike, new_folder, whole_file
from .models.hdkd import HDKDStudent, convert_state_dict, is_fused
from .parsing import read_json

HUBS = ('local-dir:', 'hf-hub:', 'hf_hub:')  # how timm tells models that are saved elsewhere


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
        with whole_file(Path(folder) / 'model.safetensors', 'wb') as file:
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
        path.write_text(json.dumps(config, indent=2) + '\n')


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Read a checkpoint file, .safetensors or torch.save, without running any code that it holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file would execute code on loading, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint '{path}' does not exist, or is no file.")
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        is_zip = zipfile.is_zipfile(path)
        if not is_zip and path.read_bytes()[:1] != pickle.PROTO:
            raise ValueError(f"'{path}' is no checkpoint: neither safetensors nor written by torch.save.") from e
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        raise ValueError(
            f"Refused '{path}': loading it would execute code, it holds {', '.join(names) or 'more than tensors'}."
            ' Where you trust it, load it once with the code that wrote it and save its state dict,'
            ' torch.save(model.state_dict(), FILE).') from e
    except Exception as e:  # a damaged file can raise anything
        raise ValueError(f"'{path}' is no checkpoint, or it is damaged ({type(e).__name__}).") from e
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a state dict.")
    if not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"'{path}' is no state dict: its keys are no names.")
    return checkpoint


def _count(names: Sequence[str], prefix: str) -> int:
    """How many numbered layers stand below `prefix`."""
    return len({name[len(prefix):].split('.')[0] for name in names if name.startswith(prefix)})


def recognize(
        state_dict: Dict[str, torch.Tensor],
        model_name: Optional[str] = None,
        **model_kwargs: Any,
) -> Tuple[str, Dict[str, Any]]:
    """Name and arguments of the HDKD network that a state dict (with our names) belongs to.

    Read off the keys and shapes, except for what these don't show: the stem's stride (2 unless an `_s4` model is
    named), the width of the heads (32 unless told), and an image size that is not square or no whole number of patches.

    Args:
        state_dict: As `convert_state_dict` returns it.
        model_name: Model name, to choose among those that fit.
        model_kwargs: Model arguments that win over what is read off.

    Raises:
        ValueError: if it is none of the networks, or not the one named.
    """
    names = list(state_dict)
    if 'stages.0.0.conv.weight' not in state_dict or 'head.weight' not in state_dict:
        raise ValueError(
            f"Not a checkpoint of an HDKD network, it has no stage 1 and head (first keys: {', '.join(names[:4])}).")
    student, distilled = 'cls_token' in state_dict, 'dist_token' in state_dict
    if model_name is None:
        model_name = ('hdkd_student' if distilled else 'hdkd_student_plain') if student else 'hdkd_teacher'
    if not (timm.is_model(model_name) and model_name.startswith('hdkd_')):
        raise ValueError(f"Unknown model '{model_name}', choose from {', '.join(timm.list_models('hdkd_*'))}.")
    stem_stride = 4 if '_s4' in model_name else 2
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
        head_dim = model_kwargs.get('head_dim') or (
            attn_dim // model_kwargs['num_heads'] if model_kwargs.get('num_heads') else 32)
        if attn_dim % head_dim:
            raise ValueError(
                f'The attention is {attn_dim} wide, no whole number of heads of {head_dim}: name their width,'
                ' --model-kwargs head_dim=WIDTH.')
        args.update(
            depths=(*args['depths'], _count(names, 'blocks.')),
            embed_dim=embed_dim,
            patch_size=patch_size,
            num_heads=attn_dim // head_dim,
            head_dim=head_dim,
            mlp_ratio=state_dict['blocks.0.mlp.fc1.weight'].shape[0] / embed_dim,
            img_size=math.isqrt(num_patches) * patch_size * stem_stride * 4,
            distilled=distilled,
        )
    else:
        args.update(hidden_size=state_dict['head_hidden.weight'].shape[0])
    args.update({k: v for k, v in model_kwargs.items() if v is not None})

    model = timm.create_model(model_name, device='meta')
    if isinstance(model, HDKDStudent) != student or (student and model.distilled != distilled):
        kind = f"student {'with' if distilled else 'without'} distillation token" if student else 'teacher'
        raise ValueError(f"The checkpoint is that of a {kind}, not of '{model_name}'.")
    return model_name, args


def load_checkpoint(
        path: PathLike,
        model_name: Optional[str] = None,
        **model_kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """The HDKD network of a checkpoint file, the published code's or ours, and the arguments that it is built with.

    Args:
        path: A state dict, bare or under 'state_dict' or 'model', with or without the prefix 'module.'.
        model_name: Model name, where the keys leave a choice (`_s4`).
        model_kwargs: Model arguments, where keys and shapes leave a choice (num_heads, head_dim, img_size).

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint` and `recognize`; if keys are missing or left over, or
            shapes differ (they are named).
    """
    state_dict = convert_state_dict(read_checkpoint(path))
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    try:
        model_name, model_args = recognize(tensors, model_name, **model_kwargs)
    except KeyError as e:
        raise ValueError(f"'{path}' is no whole checkpoint of an HDKD network, it lacks {e}.") from e
    except (IndexError, TypeError, ZeroDivisionError) as e:
        raise ValueError(f"'{path}' is no checkpoint of an HDKD network, its tensors have other shapes ({e}).") from e
    model = timm.create_model(model_name, **model_args)
    expected = model.state_dict()
    problems = []
    for what, keys in (
            ('missing', sorted(set(expected) - set(state_dict))),
            ('left over', sorted(set(state_dict) - set(expected))),
            ('of another shape', sorted(
                f'{k} {tuple(tensors[k].shape)} instead of {tuple(expected[k].shape)}'
                for k in set(expected) & set(tensors) if tensors[k].shape != expected[k].shape)),
    ):
        if keys:
            problems.append(f"{len(keys)} {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}")
    if problems:
        raise ValueError(f"'{path}' does not fit {model_name} ({'; '.join(problems)}).")
    model.load_state_dict(tensors)
    return model, model_args


def convert_checkpoint(
        path: PathLike,
        folder: PathLike,
        model_name: Optional[str] = None,
        label_names: Optional[Sequence[str]] = None,
        **model_kwargs: Any,
) -> Tuple[str, Dict[str, Any]]:
    """Write the model folder of a checkpoint file, see `load_checkpoint` and `save_model`.

    Returns:
        Model name and arguments.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as these; if there are not as many label names as classes.
    """
    model, model_args = load_checkpoint(path, model_name, **model_kwargs)
    if label_names and len(label_names) != model.num_classes:
        raise ValueError(f'{len(label_names)} label names for the {model.num_classes} classes of the checkpoint.')
    save_model(model, folder, label_names=label_names, model_args=model_args)
    return model.pretrained_cfg['architecture'], model_args


def load_model(
        name: str,
        optional: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A pretrained timm model, and the arguments that it is built with.

    Args:
        name: As `timm.create_model` takes it: model name, 'local-dir:FOLDER' or 'hf-hub:NAME'.
        optional: Arguments for models that take them.
        kwargs: Other arguments of the model.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no whole model folder, config.json and model.safetensors.
    """
    folder = Path(name.partition(':')[2]) if name.startswith('local-dir:') else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"Model folder '{folder}' does not exist.")
    saved_args: Dict[str, Any] = {}
    kwargs.pop('pretrained', None)
    try:
        if folder is not None:
            saved_args = read_json(folder / 'config.json').get('model_args') or {}
        try:
            every = {**(optional or {}), **kwargs}
            return timm.create_model(name, pretrained=True, **every), {**saved_args, **every}
        except TypeError:
            return timm.create_model(name, pretrained=True, **kwargs), {**saved_args, **kwargs}
    except Exception as e:  # whatever a damaged file or a network raises
        first = str(e).splitlines()[0] if str(e) else ''
        expected = '' if folder is None else ' Expected a whole model folder, with config.json and model.safetensors.'
        raise ValueError(f"Cannot load '{name}' ({type(e).__name__}: {first}).{expected}") from e


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
        **model_kwargs: Any,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A trained model wherever it was saved, and the arguments that it is built with.

    Args:
        name: Model folder, run folder (its `best` is meant), checkpoint file of an HDKD network, 'local-dir:FOLDER',
            'hf-hub:NAME', or the name of a pretrained timm model, such as 'hdkd_student.brain_mri'.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).
        img_size: Image size in pixels, for models that take one; None for that of the training.
        model_kwargs: Model arguments of a checkpoint file, where keys and shapes leave a choice.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it cannot be loaded, or the folder holds several.
    """
    size = {} if img_size is None else dict(img_size=img_size)
    path = Path(name)
    if str(name).startswith(HUBS) and not path.exists():
        return load_model(str(name), optional=size)
    if path.name == 'model.safetensors' and (path.parent / 'config.json').is_file():
        path = path.parent
    if path.is_file():
        return load_checkpoint(path, model_name, **size, **model_kwargs)
    if not path.exists():
        if is_model_pretrained(str(name)):
            return load_model(str(name), optional=size)
        raise FileNotFoundError(
            f"Model '{name}' does not exist: give a model folder, such as a run's 'best', a checkpoint file,"
            ' hf-hub:NAME, or the name of a pretrained timm model, such as hdkd_student.')
    return load_model(f'local-dir:{find_model_folder(path)}', optional=size)


def load_teacher(
        name: PathLike,
        classes: List[str],
        in_chans: int = 3,
        model_name: Optional[str] = None,
) -> Tuple[nn.Module, Dict[str, Any]]:
    """A trained teacher, and the arguments that it is built with.

    Args:
        name: As `load_saved` takes it.
        classes: Class names of the data by index. A model that names its classes must name the same in this order, of
            others only the number can be compared.
        in_chans: Image channels that the student takes.
        model_name: Model name of a checkpoint file, where its keys leave a choice (`_s4`).

    Raises:
        FileNotFoundError, ValueError: if there is no such model, or if its classes or channels differ.
    """
    model, model_args = load_saved(name, model_name)
    labels = list(model.pretrained_cfg.get('label_names') or [])
    if labels and labels != classes:
        different = [label for label in labels if label not in classes] \
            or [label for label in classes if label not in labels]
        reason = f"class '{different[0]}' is not in both" if different else 'the order differs'
        raise ValueError(
            f"The classes of teacher '{name}' ({', '.join(labels)}) are not those of the data ({', '.join(classes)}):"
            f' {reason}.')
    if model.num_classes != len(classes):
        raise ValueError(f"Teacher '{name}' has {model.num_classes} classes, the data {len(classes)}.")
    if model.in_chans != in_chans:
        raise ValueError(f"Teacher '{name}' takes {model.in_chans} channels, the student {in_chans}.")
    adapt_stats(model)
    return model, model_args

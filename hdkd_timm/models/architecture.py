"""Which HDKD network a state dict belongs to: its model name and arguments, from keys and shapes."""

import inspect
import math
from typing import Any, Dict, Iterable, Optional, Tuple, Type

import timm
import torch
from torch import nn

from .checkpoint_metadata import CheckpointMetadata
from .hdkd import HDKDStudent

__all__ = ['infer_architecture', 'is_same_argument']

StateDict = Dict[str, torch.Tensor]


def infer_architecture(
    state_dict: StateDict,
    model_name: Optional[str] = None,
    metadata: Optional[CheckpointMetadata] = None,
    model_kwargs: Optional[Dict[str, Any]] = None,
) -> Tuple[str, Dict[str, Any]]:
    """Model name and arguments of the HDKD network that a state dict (with our names) belongs to.

    Keys and shapes determine everything except the stride of the stem (2 unless an `_s4` model is named), the width of
    the attention heads (32 by default), and the image size of a teacher, or of a student whose image is not square or
    not a whole number of patches.

    Args:
        state_dict: As `convert_state_dict` returns it.
        model_name: Model name, to choose among those that fit.
        metadata: What the file records about the network, which must not contradict keys and shapes.
        model_kwargs: Model arguments that take precedence over inferred and recorded ones; None values are ignored.

    Raises:
        ValueError: if it is not an HDKD network, or not the one named.
    """
    metadata = metadata or CheckpointMetadata()
    model_kwargs = {k: v for k, v in (model_kwargs or {}).items() if v is not None}
    _check_complete(state_dict)
    model_name, model_cls = _choose_model(state_dict, model_name, metadata)

    parameters = inspect.signature(model_cls).parameters
    recorded = {k: v for k, v in metadata.model_args.items() if k in parameters and k not in ('device', 'dtype')}
    given = {**recorded, **model_kwargs}
    if {'head_dim', 'num_heads'} & set(model_kwargs):  # each determines the other
        given = {k: v for k, v in given.items() if k not in ('head_dim', 'num_heads') or k in model_kwargs}

    args = _infer_stage_args(state_dict)
    if model_cls is HDKDStudent:
        args.update(_infer_transformer_args(state_dict, args, given, _get_stem_stride(model_name, given)))
    else:
        args.update(hidden_size=state_dict['head_hidden.weight'].shape[0])
    _check_recorded(recorded, args, model_kwargs, metadata.source)
    return model_name, {**args, **given}


def _check_complete(state_dict: StateDict) -> None:
    missing = [name for name in ('stages.0.0.conv.weight', 'head.weight') if name not in state_dict]
    if missing:
        raise ValueError(
            f'Not a complete checkpoint of an HDKD network, it has no {" and no ".join(missing)} (its first keys:'
            f' {", ".join(list(state_dict)[:4])}).'
        )


def _choose_model(
    state_dict: StateDict,
    model_name: Optional[str],
    metadata: CheckpointMetadata,
) -> Tuple[str, Type[nn.Module]]:
    """Name and class of the named model, or of the one that has the same tokens as the state dict.

    Raises:
        ValueError: if the named model is not an HDKD network, or has other tokens.
    """
    is_student, distilled = 'cls_token' in state_dict, 'dist_token' in state_dict
    hint = ''
    if model_name is None and metadata.model_name:
        model_name = metadata.model_name
        hint = f' The name was read from the file ({metadata.source}): specify the right one, --model NAME.'
    if model_name is None:
        model_name = ('hdkd_student' if distilled else 'hdkd_student_plain') if is_student else 'hdkd_teacher'
    if not (timm.is_model(model_name) and model_name.startswith('hdkd_')):
        raise ValueError(f"Unknown model '{model_name}', choose from {', '.join(timm.list_models('hdkd_*'))}.{hint}")
    model = timm.create_model(model_name, device='meta')
    if isinstance(model, HDKDStudent) != is_student or (is_student and model.distilled != distilled):
        kind = f'student {"with" if distilled else "without"} distillation token' if is_student else 'teacher'
        raise ValueError(f"The checkpoint holds a {kind}, not '{model_name}'.{hint}")
    return model_name, type(model)


def _get_stem_stride(model_name: str, given: Dict[str, Any]) -> int:
    return given.get('stem_stride') or (4 if '_s4' in model_name else 2)


def _count_layers(names: Iterable[str], prefix: str) -> int:
    """Number of numbered layers below `prefix`."""
    return len({name[len(prefix) :].split('.')[0] for name in names if name.startswith(prefix)})


def _infer_stage_args(state_dict: StateDict) -> Dict[str, Any]:
    """Arguments that teacher and student share."""
    first_conv = state_dict['stages.0.0.conv.weight']
    return dict(
        num_classes=state_dict['head.weight'].shape[0],
        in_chans=first_conv.shape[1],
        depths=tuple(_count_layers(state_dict, f'stages.{i}.') for i in range(3)),
        dims=(first_conv.shape[0], *(state_dict[f'stages.{i}.0.conv_pwl.weight'].shape[0] for i in (1, 2))),
        attn='cbam' if any('.attn.channel.' in name for name in state_dict) else 'se',
    )


def _infer_transformer_args(
    state_dict: StateDict,
    stage_args: Dict[str, Any],
    given: Dict[str, Any],
    stem_stride: int,
) -> Dict[str, Any]:
    """Arguments of a student beside those of its stages.

    Raises:
        ValueError: if the width of the heads does not divide that of the attention, or if the image size cannot be
            inferred.
    """
    distilled = 'dist_token' in state_dict
    embed_dim, patch_dim = state_dict['patch_embed.proj.weight'].shape
    patch_size = math.isqrt(patch_dim // stage_args['dims'][-1])
    num_patches = state_dict['pos_embed'].shape[1] - 1 - distilled
    attn_dim = state_dict['blocks.0.attn.qkv.weight'].shape[0] // 3
    head_dim = given.get('head_dim') or (attn_dim // given['num_heads'] if given.get('num_heads') else 32)
    if attn_dim % head_dim:
        raise ValueError(
            f'The attention is {attn_dim} wide, not a whole number of heads of {head_dim}: specify their width,'
            ' --model-kwargs head_dim=WIDTH.'
        )
    side = math.isqrt(num_patches)
    if side**2 != num_patches and 'img_size' not in given:
        raise ValueError(
            f'The position embedding has {num_patches} patches, which do not form a square: specify the image size,'
            " --model-kwargs 'img_size=(HEIGHT, WIDTH)'."
        )
    return dict(
        depths=(*stage_args['depths'], _count_layers(state_dict, 'blocks.')),
        embed_dim=embed_dim,
        patch_size=patch_size,
        num_heads=attn_dim // head_dim,
        head_dim=head_dim,
        mlp_ratio=state_dict['blocks.0.mlp.fc1.weight'].shape[0] / embed_dim,
        img_size=side * patch_size * stem_stride * 4,
        distilled=distilled,
    )


def _check_recorded(
    recorded: Dict[str, Any],
    inferred: Dict[str, Any],
    model_kwargs: Dict[str, Any],
    source: str,
) -> None:
    """Raises ValueError where recorded arguments contradict inferred ones that the user did not override.

    Of the image size only the number of patches can be inferred, it is not compared.
    """
    for key, value in recorded.items():
        if key in inferred and key not in (*model_kwargs, 'img_size') and not is_same_argument(value, inferred[key]):
            raise ValueError(
                f'The file records {key}={value} ({source}), its tensors have {inferred[key]}: specify the right one,'
                f' --model-kwargs {key}=VALUE.'
            )


def is_same_argument(a: Any, b: Any) -> bool:
    """Whether two model arguments are equal, where lists equal tuples and a number equals a square."""
    a, b = (tuple(x) if isinstance(x, (list, tuple)) else x for x in (a, b))
    return a == b or a == (b, b) or (a, a) == b

"""Reading checkpoint files, as trainers write them, without running any code that they hold."""

import argparse
import pickle
import re
import zipfile
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import safetensors.torch
import torch

from ..utils.files import PathLike, check_sums

__all__ = ['abbreviate', 'read_checkpoint']


class _NumpyDtype:
    """Stand-in for `numpy.dtype`, whose own `__setstate__` trusts a file more than is safe."""

    def __init__(self, code: str, *_: Any):
        if not re.fullmatch(r'[biuf]\d', code):
            raise pickle.UnpicklingError(f'NumPy values of type {code!r} are not supported.')
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] in ('<', '>', '|', '='):
            self.code = state[1] + self.code


def _numpy_scalar(dtype: _NumpyDtype, data: bytes) -> Any:
    """Stand-in for NumPy's scalars, a best accuracy for example: returns a Python number."""
    return np.frombuffer(data, dtype.code, count=1)[0].item()


def _path(*parts: str) -> str:
    """Stand-in for the paths of pathlib: returns a string."""
    return str(PurePath(*parts))


# what checkpoints hold beside tensors, none of which can run code, with the names that files use for it. Namespace is
# argparse's: unpickling it sets attributes and does nothing else
_SAFE_GLOBALS: List[Tuple[Callable, str]] = [
    (argparse.Namespace, 'argparse.Namespace'),
    (_NumpyDtype, 'numpy.dtype'),
    *((_numpy_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    *(
        (_path, f'{module}.{kind}Path')
        for module in ('pathlib', 'pathlib._local')
        for kind in ('Posix', 'Windows', 'PurePosix', 'PureWindows')
    ),
]


def read_checkpoint(path: PathLike) -> Dict[str, Any]:
    """Read a checkpoint file, .safetensors or torch.save, without running any code that it holds.

    Besides tensors and plain values it may hold argparse's Namespace, as those of timm's train.py do, NumPy numbers and
    paths; the latter two are returned as Python numbers and strings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file would execute code on loading, is not a checkpoint, or does not match the SHA256SUMS
            beside it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint '{path}' does not exist, or is not a file.")
    check_sums(path.parent, path.name)
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        damaged = _find_damaged_record(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as e:
        raise _explain_unpickling_error(path, e) from e
    except Exception as e:  # a damaged file can raise anything
        raise ValueError(f"'{path}' is not a checkpoint, or it is damaged ({type(e).__name__}).") from e
    if damaged:
        raise ValueError(f"'{path}' is damaged: the checksum of '{damaged}' in it is wrong. Use another copy.")
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a state dict.")
    if not all(isinstance(key, str) for key in checkpoint):
        raise ValueError(f"'{path}' is not a state dict: its keys are not strings.")
    return checkpoint


def _find_damaged_record(path: Path) -> Optional[str]:
    """The first record of a checkpoint that does not match its checksum, which `torch.load` does not verify."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        has_sums = any(info.CRC for info in file.infolist())  # torch.serialization.set_crc32_options can disable them
        return file.testzip() if has_sums else None


def _explain_unpickling_error(path: Path, error: pickle.UnpicklingError) -> ValueError:
    """The error for a file that `torch.load` refuses: not a checkpoint, damaged, or one that would execute code."""
    with open(path, 'rb') as file:
        if not file.read(2).startswith((pickle.PROTO, b'PK')):  # a pickle, a zip file
            return ValueError(f"'{path}' is not a checkpoint: neither safetensors nor written by torch.save.")
    names = _find_unsafe_names(path, error)
    if not names:
        reason = str(error).partition('WeightsUnpickler error:')[2]
        reason = re.split('Check the documentation|Please use', reason)[0]
        return ValueError(
            f"'{path}' is damaged, or holds what cannot be read safely ({' '.join(reason.split())}). Use another copy,"
            ' or write it again with torch.save(model.state_dict(), FILE).'
        )
    return ValueError(
        f"Refused '{path}': loading it would execute code, it holds {abbreviate(names)}. If you trust it, load it once"
        ' with the code that wrote it and save its state dict, torch.save(model.state_dict(), FILE).'
    )


def _find_unsafe_names(path: Path, error: Exception) -> List[str]:
    """What a checkpoint would call on loading; empty if it is merely damaged.

    Args:
        path: The file.
        error: The error of `torch.load`, which names the first one. For files that are not zip files, no more is known.
    """
    names = re.findall(r'GLOBAL (\w[\w.]*)', str(error))
    with suppress(Exception), torch.serialization.safe_globals(_SAFE_GLOBALS):  # a damaged file can raise anything
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) or names
    return sorted(set(names))


def abbreviate(names: Sequence[str], number: int = 8) -> str:
    """The first `number` names, for a message."""
    return ', '.join(list(names)[:number]) + (', ...' if len(names) > number else '') or 'none'

"""Released weights and where their files are: shipped with the package, in the Hub's cache, or on the Hub.

Only model.safetensors is downloaded from the Hub, and a file is loaded only if its sha256 is the released one.
"""

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Set, Union

from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained

_logger = logging.getLogger(__name__)

# organisation on the Hugging Face Hub; HDKD_HUB_ORG names another one with the same files
HUB_ORG = os.environ.get('HDKD_HUB_ORG') or 'hdkd-timm'
WEIGHTS = 'model.safetensors'
# in an installed package, and in a clone of the repository
_PACKAGE = Path(__file__).parents[1]
FOLDERS = (_PACKAGE / 'weights', _PACKAGE.parent / 'weights')


class Release(NamedTuple):
    """Facts about released weights that are not in their `pretrained_cfg`."""

    sha256: str
    data: str  # training data, with the attribution that its licence requires


_BRAIN_MRI = 'the Brain Tumor MRI Dataset (Msoud Nickparvar, Kaggle 2021, doi 10.34740/KAGGLE/DSV/2645886)'
_HAM10K = (
    'HAM10000 (Tschandl et al., Sci. Data 5, 180161, 2018, doi 10.7910/DVN/DBW86T; ViDIR Group, Department of'
    ' Dermatology, Medical University of Vienna)'
)
_CHEST_XRAY = 'chest X-rays of children (Kermany et al., Cell 172, 1122, 2018, doi 10.17632/rscbjbr9sj.2)'
_warned: Set[str] = set()
RELEASES: Dict[str, Release] = {
    'hdkd_teacher.brain_mri': Release('92a08816c81e91feaa9a41c4179be925369a516b82154ef13a3682ee2e6e8eb1', _BRAIN_MRI),
    'hdkd_student.brain_mri': Release('4119363dcc6db7a14ea793a97eca423dc62f20a08a3ede90a4c3a5065327f76e', _BRAIN_MRI),
    'hdkd_teacher.brain_mri_64': Release(
        '7823416fae349b6b35e349db74ffaf13140ef6c6d4da4d80efbefd3cca99fa38', _BRAIN_MRI
    ),
    'hdkd_student.brain_mri_64': Release(
        '388a79b65efc797b511cd5f323188c35d3563c610d0696c2f4c07b6f85f0ab3b', _BRAIN_MRI
    ),
    'hdkd_teacher.ham10k': Release('b935f1832c9b9d414751b7a7a02f5ae7e3d5a7e206643866b20a8d73baebab99', _HAM10K),
    'hdkd_student.ham10k': Release('e6a1793aeb2e55a619093b61588658a89e3fe5276067b8a45ebd3689f69fc39e', _HAM10K),
    'hdkd_student.derm': Release('81cfdd1a6a4546a05fc2ff5d05a52047c3db667719f5479ecca8a33222db6fc6', _HAM10K),
    'hdkd_student.chest_xray': Release('e3aa3f4eeff8643e7a00bc8fe509edf8db2ce7a0e42c7afa437832dcd7b97dce', _CHEST_XRAY),
    'hdkd_student_s4.chest_xray': Release(
        'bbd9e6dfd8ef0daa586d374f83f3c3a489cbd9e049669382996d2d6de73dcb40', _CHEST_XRAY
    ),
}


def hub_id(name: str) -> str:
    """Hugging Face Hub repository of released weights such as 'hdkd_student.brain_mri'."""
    return f'{HUB_ORG}/{name}'


def find_folder(name: str) -> Optional[Path]:
    """The folder of released weights that is shipped with the package; None if there is none."""
    if name not in RELEASES:
        return None
    return next((folder / name for folder in FOLDERS if (folder / name / WEIGHTS).is_file()), None)


def _is_released(path: Union[str, Path], name: str) -> bool:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() == RELEASES[name].sha256


def full_name(name: str) -> Optional[str]:
    """The name of released weights with its tag, 'hdkd_student.brain_mri' for 'hdkd_student'; None for other models."""
    cfg = get_pretrained_cfg(name) if is_model_pretrained(name) else None
    name = f'{cfg.architecture}.{cfg.tag}' if cfg is not None else name
    return name if name in RELEASES else None


def _download(name: str, cache_dir: Optional[Union[str, Path]], is_cached: bool) -> str:
    """Download released weights; `is_cached`: the cache holds a file, but not the released one."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    what = f"'{name}' did not come with this installation, and " + (
        "the file in the Hub's cache is damaged or of another version" if is_cached else "is not in the Hub's cache"
    )
    where = f"'{hub_id(name)}' on {constants.ENDPOINT}"
    ways = (
        f'install hdkd_timm with its weights, set HDKD_HUB_ORG to an organisation that has them, or put {WEIGHTS} into'
        f" '{FOLDERS[0] / name}'."
    )
    try:
        return hf_hub_download(hub_id(name), WEIGHTS, cache_dir=cache_dir, force_download=is_cached)
    except Exception as e:  # errors of the client, or of the HTTP library that it uses
        cause = e.__cause__ or e if isinstance(e, LocalEntryNotFoundError) else e
        reason = f'({type(cause).__name__}: {" ".join(str(cause).split())})'
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(f'{what}; HF_HUB_OFFLINE is set: unset it once to download it, {ways}') from e
        if isinstance(cause, (RepositoryNotFoundError, EntryNotFoundError)):
            raise FileNotFoundError(
                f'{what}; there is no {WEIGHTS} at {where}, or your token may not see it: {ways}'
            ) from e
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            raise OSError(f'{what}; {where} answered {status} {reason}: try again later, or {ways}') from e
        if isinstance(e, LocalEntryNotFoundError):
            raise ConnectionError(
                f'{what}; cannot reach {where} {reason}: check the network and the proxy, or {ways}'
            ) from e
        raise OSError(f'{what}; downloading {where} failed {reason}: try again, or {ways}') from e


def find_weights(name: str, cache_dir: Optional[Union[str, Path]] = None) -> str:
    """Path of the file of released weights, whose sha256 has been checked.

    Args:
        name: Name with tag, such as 'hdkd_student.brain_mri'.
        cache_dir: The Hub's cache, if not the default of the Hub's client.

    Raises:
        ConnectionError: if it must be downloaded, but there is no network or HF_HUB_OFFLINE is set.
        FileNotFoundError: if the Hub does not have it.
        OSError: if the download failed.
        ValueError: if the file is not the one that was released.
    """
    folder = find_folder(name)
    if folder is not None:
        if not _is_released(folder / WEIGHTS, name):
            raise ValueError(
                f"'{folder / WEIGHTS}' is damaged, or not of this version of hdkd_timm: its sha256 is not"
                f' {RELEASES[name].sha256}. Reinstall hdkd_timm.'
            )
        return str(folder / WEIGHTS)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id(name), WEIGHTS, cache_dir=cache_dir)
    except HFValidationError as e:
        raise ValueError(f"HDKD_HUB_ORG='{HUB_ORG}' is not a valid organisation name on the Hub: {e}") from e
    is_cached = isinstance(path, str)
    if not is_cached or not _is_released(path, name):
        path = _download(name, cache_dir, is_cached)
        if not _is_released(path, name):
            raise ValueError(
                f"Refused '{path}', downloaded from '{hub_id(name)}': its sha256 is not {RELEASES[name].sha256}, so it"
                ' belongs to another version of hdkd_timm or is not ours. Upgrade hdkd_timm, or check HDKD_HUB_ORG.'
            )
    return path


def find_packaged(name: str) -> str:
    """The name of released weights, 'hdkd_student.brain_mri', for their repository on the Hub,
    'hf-hub:hdkd-timm/hdkd_student.brain_mri', if that cannot be reached and the package has the same file, which is
    logged. Any other name as it is."""
    source, _, repo_id = name.partition(':')
    release = repo_id.rpartition('/')[2]
    if source not in ('hf-hub', 'hf_hub') or repo_id != hub_id(release) or find_folder(release) is None:
        return name
    from huggingface_hub import hf_hub_download

    try:
        for file in ('config.json', WEIGHTS):
            hf_hub_download(repo_id, file)
    except Exception as e:  # errors of the client, or of the HTTP library that it uses
        _logger.warning(
            f"'{name}' cannot be had of the Hub ({type(e).__name__}): the same file of the package is used."
        )
        return release
    return name


def release_overlay(
    cfg: PretrainedCfg,
    pretrained: bool,
    cache_dir: Optional[Union[str, Path]] = None,
) -> Dict[str, Any]:
    """Overlay for a `pretrained_cfg`: the file of released weights or, for random weights, no label names and no
    licence. Empty for other weights.

    Warns, once per name, about weights that may not be used commercially.

    Raises:
        As `find_weights`.
    """
    name = f'{cfg.architecture}.{cfg.tag}'
    is_own = bool(cfg.file or cfg.state_dict)
    is_release = name in RELEASES and cfg.hf_hub_id == hub_id(name) and not (cfg.source or is_own)
    if is_release and not pretrained:
        return dict(label_names=None, license=None)
    overlay = dict(file=find_weights(name, cache_dir)) if is_release else {}
    what = name if is_release else cfg.hf_hub_id or cfg.file
    if pretrained and '-nc' in (cfg.license or '') and (is_release or cfg.source) and what not in _warned:
        _warned.add(what)
        data = f' They were trained on {RELEASES[name].data}.' if is_release else ''
        warnings.warn(  # at the call of create_model
            f"The weights '{what}' are for non-commercial use only, {cfg.license}.{data}", stacklevel=5
        )
    return overlay

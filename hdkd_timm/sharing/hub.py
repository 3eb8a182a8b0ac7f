"""`hdkd push`: a trained model on the Hugging Face Hub, with a model card made from its run."""
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Optional

import timm
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ..evaluation.plots import plot_confusion_matrix
from ..evaluation.temperature import CALIBRATION
from ..models.checkpoint import SOURCE_PREFIXES, find_model_folder
from ..models.pretrained import find_folder, find_weights, full_name
from ..utils.config import read_yaml
from ..utils.csv_files import iterate_rows
from ..utils.files import PathLike, check_sums, new_folder, write_json
from ..utils.parsing import read_json, to_yaml
from ..utils.run_files import CONFIG_FILE, IMAGES_FILE, METRICS_FILE
from ..version import __version__
from .model_card import CONFUSION_PICTURE, write_card

CARD = 'README.md'
# settings that tell of the machine of the run
PLACES = (
    'data_dir', 'data_csv', 'class_map', 'smote', 'cache', 'cache_dir', 'workers', 'device', 'log', 'output',
    'experiment')


def _read(path: Path) -> Dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def count_images(path: Path) -> Dict[str, Dict[str, int]]:
    """Split -> class -> number of images, of a run's images.csv."""
    if not path.is_file():
        return {}
    counts = Counter((row['split'], row['label']) for row in iterate_rows(path))
    splits = [split for split in ('train', 'val', 'test') if any(split == s for s, _ in counts)]
    return {split: {label: n for (s, label), n in sorted(counts.items()) if s == split} for split in splits}


def _started_from_weights(network: Optional[str], settings: Dict[str, Any]) -> bool:
    """Did the training of a network of a run start from weights of before?"""
    is_teacher = network == 'teacher' and 'teacher' in settings
    name, pretrained = ('teacher', 'teacher_pretrained') if is_teacher else ('model', 'pretrained')
    return bool(settings.get(pretrained)) or str(settings.get(name)).startswith(SOURCE_PREFIXES)


def _without_paths(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings of a run without what they tell of its machine."""
    settings = {k: v for k, v in settings.items() if k not in PLACES}
    for key in ('model', 'teacher', 'teacher_checkpoint'):
        name = settings.get(key)
        if name and not name.startswith(('hf-hub:', 'hf_hub:')) and not timm.is_model(name.split('.')[0]):
            path = Path(name.removeprefix('local-dir:'))
            settings[key] = f"a model of before ({path.parent.name if path.name == 'best' else path.name})"
    if settings.get('class_weights'):
        settings['class_weights'] = Path(settings['class_weights']).name
    kind, _, place = (settings.get('dataset') or '').partition('/')
    if Path(place).is_absolute():
        settings['dataset'] = f'{kind}/{Path(place).name}'
    return settings


def _licences_of_beginnings(network: Optional[str], settings: Dict[str, Any], config: Dict[str, Any]) -> Dict[str, str]:
    """Sentence -> licence of each of the weights that a network was made from, as far as they tell one."""
    found = {}
    license = config['pretrained_cfg'].get('license')
    if license and (not settings or _started_from_weights(network, settings)):
        found[f'The weights that the training started from: {license}.'] = license
    teacher = settings.get('teacher_checkpoint') or ''
    if network not in ('teacher', 'student_alone') and timm.models.is_model_pretrained(teacher):
        license = timm.get_pretrained_cfg(teacher).license
        if license:
            found[f'Its teacher, {teacher}: {license}.'] = license
    return found


def _copy_folder(folder: Path, out: PathLike, is_described: bool) -> None:
    """What has its card is taken as it is."""
    if is_described:
        raise ValueError(
            f"'{folder}' has its model card, README.md, with data and licence: leave out --license and --data-card.")
    with new_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)


def write_hub_folder(
        model: PathLike,
        out: PathLike,
        name: str,
        license: Optional[str] = None,
        data: Optional[str] = None,
) -> None:
    """Write what a model is on the Hub: config.json, model.safetensors, calibration.json if it is calibrated, and of a
    run README.md (the model card), train.yaml, metrics.json and a picture of the confusion matrix. Nothing in them
    tells paths of this machine.

    Args:
        model: Model folder, a network's folder in a run, a run of one network, or released weights by their name. A
            folder that has its card, such as this function writes, is taken as it is.
        out: Folder to write; must not exist or be empty.
        name: Name of the model on the Hub, ORG/NAME.
        license: Licence of the weights as the Hub names it, such as 'cc-by-nc-4.0'; None for that of the weights that
            it was made from, if that forbids something.
        data: What it was trained on, with source, licence and attribution, Markdown.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the folder holds several, or what has a card is given another licence or data.
        FileExistsError: if `out` holds something.
        ImportError: without matplotlib, where there are results.
    """
    released = None if Path(model).exists() else full_name(str(model))
    if released:
        best = find_folder(released)
        if best is None:
            raise FileNotFoundError(f"The weights '{released}' did not come with this installation of hdkd_timm.")
        find_weights(released)  # checks them
    else:
        best = find_model_folder(model)
    for file in ('config.json', 'model.safetensors'):
        if not (best / file).is_file():
            raise FileNotFoundError(f"'{best}' is no model folder, it has no {file}.")
    check_sums(best)
    if (best / CARD).is_file():
        _copy_folder(best, out, bool(license or data))
        return
    network = best.parent if best.name == 'best' else best
    run = next((folder for folder in (network, network.parent) if (folder / CONFIG_FILE).is_file()), None)
    check_sums(network, METRICS_FILE)
    if run is not None:
        check_sums(run, CONFIG_FILE, IMAGES_FILE)
    config, metrics = _read(best / 'config.json'), _read(network / METRICS_FILE)
    metrics.pop('checkpoint', None)
    if 'num_classes' in config:  # once, as transformers takes it; runs of before have it twice
        (config.get('model_args') or {}).pop('num_classes', None)
    told = read_yaml(run / CONFIG_FILE) if run is not None else {}
    licences = _licences_of_beginnings(metrics.get('name'), told, config)
    license = license or next((name for name in licences.values() if re.search('-(nc|nd|sa)', name)), None)
    if told and not _started_from_weights(metrics.get('name'), told):  # what timm tells of other weights
        for key in ('license', 'tag'):
            config['pretrained_cfg'].pop(key, None)
    settings = _without_paths(told)
    with new_folder(out) as folder:
        write_json(config, folder / 'config.json')
        shutil.copyfile(best / 'model.safetensors', folder / 'model.safetensors')
        if (best / CALIBRATION).is_file():
            shutil.copyfile(best / CALIBRATION, folder / CALIBRATION)
        if settings:
            (folder / 'train.yaml').write_text(to_yaml(settings))
        split = next((split for split in ('test', 'val') if split in metrics), None)
        if split:
            write_json(metrics, folder / METRICS_FILE)
            plot_confusion_matrix(
                metrics[split]['confusion_matrix'], metrics['classes'], folder / CONFUSION_PICTURE)
        counts = count_images(run / IMAGES_FILE) if run is not None else {}
        card = write_card(name, config, metrics, settings, counts, license, data, origins=list(licences))
        (folder / CARD).write_text(card, encoding='utf-8')


def _explain(error: Exception, repo_id: str) -> Exception:
    """The same error in words that say what to do. None of them holds a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    where = f"'{repo_id}' on {constants.ENDPOINT}"
    if isinstance(error, HFValidationError):
        return ValueError(f"'{repo_id}' is no name of a model on the Hub, ORG/NAME: {error}")
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f'Cannot push to {where}: HF_HUB_OFFLINE is set, unset it.')
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return PermissionError(
            f'Cannot push to {where}: the Hub does not know who you are. Log in with `hf auth login`, or set HF_TOKEN'
            ' to a token that may write.')
    if status == 403:
        return PermissionError(
            f'Cannot push to {where}: your token may not write there. Take one with write access, or another ORG.')
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f'There is no {where}, or your token may not see it.')
    if isinstance(error, UnicodeEncodeError):  # of the header that holds it
        return PermissionError(f'Cannot push to {where}: your token (HF_TOKEN) has characters that no token has.')
    if isinstance(error, ValueError) and status in (None, 400):
        return ValueError(f"The Hub does not take the model card of '{repo_id}': {error}")
    if status is not None:
        return OSError(f'Cannot push to {where}: the Hub answered {status} ({error.server_message or error}).')
    return ConnectionError(f'Cannot reach {where} ({type(error).__name__}: {error}): is there a network, or a proxy?')


def push_folder(folder: PathLike, repo_id: str, private: bool = False) -> str:
    """Upload a folder that `write_hub_folder` wrote, by the token of `hf auth login` or HF_TOKEN. Returns its address.

    What is on the Hub already stays in its history.

    Raises:
        ValueError: if `repo_id` is no name, or the Hub does not take the model card (its licence, for one).
        PermissionError: if there is no token, or it may not write there; also if a private one was asked for and the
            repository is public.
        ConnectionError: if the Hub cannot be reached.
        OSError: if it refuses.
    """
    api = HfApi(library_name='hdkd_timm', library_version=__version__)
    try:
        ModelCard.load(Path(folder) / CARD).validate()  # before anything is made there
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise PermissionError(
                f"'{url.repo_id}' is there already, and public: make it private on the Hub first, or push without"
                ' --private.')
        api.upload_folder(
            repo_id=url.repo_id, folder_path=str(folder), commit_message=f'Model by hdkd_timm {__version__}')
    except PermissionError:
        raise
    except Exception as e:  # of the client, and of the HTTP library that it happens to use
        raise _explain(e, repo_id) from e
    return str(url)


def push(
        model: PathLike,
        repo_id: str,
        private: bool = False,
        license: Optional[str] = None,
        data: Optional[str] = None,
) -> str:
    """Upload a trained model with a model card made from its run. Returns its address.

    `timm.create_model('hf-hub:ORG/NAME', pretrained=True)` then loads it for all who `import hdkd_timm`.

    Args:
        model: Model folder, a network's folder in a run, a run of one network, or released weights by their name.
        repo_id: ORG/NAME, made if it is not there.
        private: Make it private.
        license: Licence of the weights as the Hub names it, such as 'cc-by-nc-4.0'; None for that of the weights that
            it was made from, if that forbids something.
        data: What it was trained on, with source, licence and attribution, Markdown.

    Raises:
        As `write_hub_folder` and `push_folder`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / 'model'
        write_hub_folder(model, folder, repo_id, license, data)
        return push_folder(folder, repo_id, private)

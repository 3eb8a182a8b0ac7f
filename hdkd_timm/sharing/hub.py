"""`hdkd push`: a trained model on the Hugging Face Hub, with a model card made from its run."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

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
from ..evaluation.problem import MULTI_LABEL
from ..evaluation.run_results import (
    count_images,
    count_per_split,
    is_teacher,
    read_json_file,
    read_settings,
    result_split,
)
from ..models.checkpoint import SOURCE_PREFIXES, find_model_folder
from ..models.pretrained import find_folder, find_weights, full_name
from ..utils.files import PathLike, check_sums, new_folder, write_json
from ..utils.parsing import to_yaml
from ..utils.run_files import CALIBRATION_FILE, CONFIG_FILE, IMAGES_FILE, METRICS_FILE, TEACHER_LOGITS_FILE
from ..version import __version__
from .model_card import CONFUSION_PICTURE, write_card

CARD = 'README.md'
# settings that are specific to the machine of the run
MACHINE_SETTINGS = (
    'data_dir',
    'data_csv',
    'class_map',
    'smote',
    'cache',
    'cache_dir',
    'workers',
    'device',
    'log',
    'output',
    'experiment',
)


class _TrainedModel(NamedTuple):
    """Files of a model and of its run, as far as they exist.

    Args:
        folder: Model folder.
        config: Its config.json.
        metrics: Its metrics.json.
        settings: Settings of the run.
        counts: Split -> class -> number of images.
        totals: Split -> number of all images.
    """

    folder: Path
    config: Dict[str, Any]
    metrics: Dict[str, Any]
    settings: Dict[str, Any]
    counts: Dict[str, Dict[str, int]]
    totals: Dict[str, int]

    @property
    def is_finetuned(self) -> bool:
        """Whether the training of the network started from other weights."""
        of_teacher = is_teacher(str(self.metrics.get('name'))) and 'teacher' in self.settings
        name, pretrained = ('teacher', 'teacher_pretrained') if of_teacher else ('model', 'pretrained')
        return bool(self.settings.get(pretrained)) or str(self.settings.get(name)).startswith(SOURCE_PREFIXES)


def _find_folder(model: PathLike) -> Path:
    """Model folder of a model folder, a run or released weights; its checksums are verified."""
    released = None if Path(model).exists() else full_name(str(model))
    if released:
        folder = find_folder(released)
        if folder is None:
            raise FileNotFoundError(f"The weights '{released}' are not part of this installation of hdkd_timm.")
        find_weights(released)  # verifies them
    else:
        folder = find_model_folder(model)
    for file in ('config.json', 'model.safetensors'):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"'{folder}' is not a model folder: it has no {file}.")
    check_sums(folder)
    return folder


def _read_model(folder: Path) -> _TrainedModel:
    network = folder.parent if folder.name == 'best' else folder
    run = next((path for path in (network, network.parent) if (path / CONFIG_FILE).is_file()), None)
    check_sums(network, METRICS_FILE)
    if run is not None:
        check_sums(run, CONFIG_FILE, IMAGES_FILE)
    config, metrics = read_json_file(folder / 'config.json'), read_json_file(network / METRICS_FILE)
    metrics.pop('checkpoint', None)
    if 'num_classes' in config:  # transformers rejects a second one, which older runs have
        (config.get('model_args') or {}).pop('num_classes', None)
    return _TrainedModel(
        folder,
        config,
        metrics,
        {} if run is None else _read_settings(run),
        {} if run is None else count_images(run / IMAGES_FILE, config.get('problem_type') == MULTI_LABEL),
        {} if run is None else count_per_split(run / IMAGES_FILE),
    )


def _read_settings(run: Path) -> Dict[str, Any]:
    """The settings of a run; where it has stored logits, with the teachers that they are of."""
    settings, origin = read_settings(run), read_json_file(run / TEACHER_LOGITS_FILE)
    return dict(settings, teacher_checkpoint=origin['checkpoints']) if origin else settings


def _list_teachers(settings: Dict[str, Any]) -> List[str]:
    """The given teachers; earlier versions have one as text."""
    given = settings.get('teacher_checkpoint') or []
    return [given] if isinstance(given, str) else list(given)


def _without_path(name: str) -> str:
    """A model's name; of one on this machine, no more than its last folder."""
    if name.startswith(('hf-hub:', 'hf_hub:')) or timm.is_model(name.split('.')[0]):
        return name
    path = Path(name.removeprefix('local-dir:'))
    return f'a locally trained model ({path.parent.name if path.name == "best" else path.name})'


def _remove_paths(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings of a run without those that reveal the machine."""
    settings = {k: v for k, v in settings.items() if k not in MACHINE_SETTINGS}
    for key in ('model', 'teacher'):
        if settings.get(key):
            settings[key] = _without_path(settings[key])
    if settings.get('teacher_checkpoint'):
        teachers = [_without_path(name) for name in _list_teachers(settings)]
        settings['teacher_checkpoint'] = teachers[0] if len(teachers) == 1 else teachers
    if settings.get('teacher_logits'):
        settings['teacher_logits'] = Path(settings['teacher_logits']).name
    if settings.get('class_weights'):
        settings['class_weights'] = Path(settings['class_weights']).name
    source, _, place = (settings.get('dataset') or '').partition('/')
    if Path(place).is_absolute():
        settings['dataset'] = f'{source}/{Path(place).name}'
    return settings


def _inherited_licences(model: _TrainedModel) -> Dict[str, str]:
    """Sentence -> licence of each set of weights that a network was made from, as far as it is known."""
    found = {}
    license = model.config['pretrained_cfg'].get('license')
    if license and (not model.settings or model.is_finetuned):
        found[f'The weights that the training started from: {license}.'] = license
    name = str(model.metrics.get('name'))
    if is_teacher(name) or name == 'student_alone':
        return found
    teachers = [(teacher, 'Its teacher,') for teacher in _list_teachers(model.settings)]
    if not teachers and model.settings.get('teacher_pretrained'):  # trained by the run
        teachers = [(str(model.settings['teacher']), 'Its teacher started from')]
    for teacher, role in teachers:
        license = timm.get_pretrained_cfg(teacher).license if timm.models.is_model_pretrained(teacher) else None
        if license:
            found[f'{role} {teacher}: {license}.'] = license
    return found


def _copy_described(folder: Path, out: PathLike) -> None:
    """Copy a model folder that already has its card."""
    with new_folder(out) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)


def _write_model(model: _TrainedModel, out: PathLike, name: str, license: Optional[str], data: Optional[str]) -> None:
    """Write the files of a model and of its run, and the card."""
    licences = _inherited_licences(model)
    license = license or next((name for name in licences.values() if re.search('-(nc|nd|sa)', name)), None)
    if model.settings and not model.is_finetuned:  # timm's information about weights that were not used
        for key in ('license', 'tag'):
            model.config['pretrained_cfg'].pop(key, None)
    settings, metrics = _remove_paths(model.settings), model.metrics
    with new_folder(out) as folder:
        write_json(model.config, folder / 'config.json')
        shutil.copyfile(model.folder / 'model.safetensors', folder / 'model.safetensors')
        if (model.folder / CALIBRATION_FILE).is_file():
            shutil.copyfile(model.folder / CALIBRATION_FILE, folder / CALIBRATION_FILE)
        if settings:
            (folder / 'train.yaml').write_text(to_yaml(settings))
        split = result_split(metrics)
        if split:
            write_json(metrics, folder / METRICS_FILE)
            if 'confusion_matrix' in metrics[split]:  # not of images with any number of labels
                matrix = metrics[split]['confusion_matrix']
                plot_confusion_matrix(matrix, metrics['classes'], folder / CONFUSION_PICTURE)
        card = write_card(
            name,
            model.config,
            metrics,
            settings,
            model.counts,
            license,
            data,
            origins=list(licences),
            totals=model.totals,
        )
        (folder / CARD).write_text(card, encoding='utf-8')


def write_hub_folder(
    model: PathLike,
    out: PathLike,
    name: str,
    license: Optional[str] = None,
    data: Optional[str] = None,
) -> None:
    """Write the files of a model for the Hub.

    These are config.json, model.safetensors, calibration.json if it is calibrated and, for a model of a run, README.md
    (the model card), train.yaml, metrics.json and a plot of the confusion matrix. None of them contains paths of this
    machine.

    Args:
        model: Model folder, folder of a network in a run, run of a single network, or name of released weights. A
            folder with a model card, such as this function writes, is copied unchanged.
        out: Folder to write; must not exist or be empty.
        name: Name of the model on the Hub, ORG/NAME.
        license: Licence of the weights as the Hub names it, such as 'cc-by-nc-4.0'; by default that of the weights
            that the training started from, if it has restrictions.
        data: Description of the training data, with source, licence and attribution, Markdown.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if the folder has several models, or a licence or data are given for a model that has a card.
        FileExistsError: if `out` is not empty.
        ImportError: without matplotlib, if there are results.
    """
    folder = _find_folder(model)
    if not (folder / CARD).is_file():
        _write_model(_read_model(folder), out, name, license, data)
    elif license or data:
        raise ValueError(
            f"'{folder}' already has a model card, README.md, with data and licence: omit --license and --data-card."
        )
    else:
        _copy_described(folder, out)


def _describe_error(error: Exception, repo_id: str) -> Exception:
    """An exception with a message on how to fix the error. None of them contains a token."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    where = f"'{repo_id}' on {constants.ENDPOINT}"
    if isinstance(error, HFValidationError):
        return ValueError(f"'{repo_id}' is not a valid name on the Hub, ORG/NAME: {error}")
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f'Cannot push to {where}: HF_HUB_OFFLINE is set, unset it.')
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return PermissionError(
            f'Cannot push to {where}: you are not logged in. Log in with `hf auth login`, or set HF_TOKEN to a token'
            ' with write access.'
        )
    if status == 403:
        return PermissionError(
            f'Cannot push to {where}: your token has no write access there. Use one that has, or another ORG.'
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(f'{where} does not exist, or your token has no access to it.')
    if isinstance(error, UnicodeEncodeError):  # of the header with the token
        return PermissionError(f'Cannot push to {where}: your token (HF_TOKEN) contains invalid characters.')
    if isinstance(error, ValueError) and status in (None, 400):
        return ValueError(f"The Hub rejects the model card of '{repo_id}': {error}")
    if isinstance(error, HfHubHTTPError) and status is not None:
        return OSError(f'Cannot push to {where}: the Hub answered {status} ({error.server_message or error}).')
    return ConnectionError(
        f'Cannot reach {where} ({type(error).__name__}: {error}): check the network connection and proxy.'
    )


def push_folder(folder: PathLike, repo_id: str, private: bool = False) -> str:
    """Upload a folder of `write_hub_folder`, with the token of `hf auth login` or HF_TOKEN. Returns its URL.

    Earlier versions on the Hub remain in its history.

    Raises:
        ValueError: if `repo_id` is not a valid name, or the Hub rejects the model card (for example its licence).
        PermissionError: if there is no token, or it has no write access; if a private repository was requested, and
            there is a public one.
        ConnectionError: if the Hub cannot be reached.
        OSError: if it refuses.
    """
    api = HfApi(library_name='hdkd_timm', library_version=__version__)
    try:
        ModelCard.load(Path(folder) / CARD).validate()  # before the repository is created
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(url.repo_id).private:
            raise PermissionError(
                f"'{url.repo_id}' already exists and is public: make it private on the Hub first, or push without"
                ' --private.'
            )
        api.upload_folder(
            repo_id=url.repo_id, folder_path=str(folder), commit_message=f'Model by hdkd_timm {__version__}'
        )
    except PermissionError:
        raise
    except Exception as e:  # of the client, and of the HTTP library that it uses
        raise _describe_error(e, repo_id) from e
    return str(url)


def push(
    model: PathLike,
    repo_id: str,
    private: bool = False,
    license: Optional[str] = None,
    data: Optional[str] = None,
) -> str:
    """Upload a trained model with a model card made from its run. Returns its URL.

    Everyone who runs `import hdkd_timm` can then load it with `timm.create_model('hf-hub:ORG/NAME', pretrained=True)`.

    Args:
        model: As in `write_hub_folder`.
        repo_id: ORG/NAME, created if it does not exist.
        private: Create a private repository.
        license, data: As in `write_hub_folder`.

    Raises:
        As `write_hub_folder` and `push_folder`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / 'model'
        write_hub_folder(model, folder, repo_id, license, data)
        return push_folder(folder, repo_id, private)

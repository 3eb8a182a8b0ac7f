"""The settings of a study: those of `distill`, and what is varied."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

from ..data.config import DataConfig
from ..training.config import HDKD_FLAGS, TRAINS_A_TEACHER, DistillConfig, method_names
from ..utils.config import check_settings, read_yaml, setting
from ..utils.run_files import CONFIG_FILE, METRICS_FILE

RUNS = 'runs'  # in the folder of a study

# settings that an arm cannot have for itself: they are those of the study
OF_THE_STUDY = {
    *('output', 'experiment', 'seed', 'seeds', 'arms', 'methods', 'models', 'baseline', 'jobs', 'student_alone'),
    *('train_fractions', 'only'),
    *(field.name for field in dataclasses.fields(DataConfig)),  # all runs have the same images
} - {'in_chans'}


@dataclasses.dataclass
class StudyConfig(DistillConfig):
    """Settings of `study`: those of `distill`, which all runs share, and the arms that are compared."""

    arms: Dict[str, Any] = setting({}, 'name -> settings of an arm, in a file')
    methods: Tuple[str, ...] = setting(
        (),
        "distillation methods to compare, each an arm: names as --method takes them, 'hdkd+ickd' for both at once,"
        " 'none' for the student alone",
        group='study',
        common=True,
    )
    models: Tuple[str, ...] = setting((), 'students to compare, each with all arms (default: --model)', common=True)
    seeds: Tuple[int, ...] = setting((1, 2, 3), 'random seeds, a run of each arm for each', at_least=0, common=True)
    train_fractions: Tuple[float, ...] = setting(
        (),
        'fractions of the training images, all arms with each (default: --train-fraction)',
        above=0,
        at_most=1,
        common=True,
    )
    baseline: Optional[str] = setting(
        None, 'arm to compare the others with (default: the first)', common=True, metavar='ARM'
    )
    only: Tuple[str, ...] = setting((), 'arms to train, if not all; the table has whatever is finished', metavar='ARM')
    jobs: int = setting(1, 'runs at a time, each in its own process', at_least=1, common=True)

    def __post_init__(self) -> None:
        """As that of `DistillConfig`; also for arms without a name, unknown settings, and a baseline that is none."""
        super().__post_init__()
        for what, values in (
            ('--seeds', self.seeds),
            ('--methods', self.methods),
            ('--models', self.models),
            ('--train-fractions', self.train_fractions),
        ):
            repeated = [value for value in values if values.count(value) > 1]
            if repeated:
                raise ValueError(f'{what} names {repeated[0]} twice: keep one of them.')
        self._check_fraction_names()
        if not self.seeds:
            raise ValueError('--seeds needs at least one seed.')
        if self.train_fractions and self.train_fraction != 1:
            raise ValueError('--train-fraction and --train-fractions contradict each other: give one of them.')
        if self.method_args:
            raise ValueError('A study has no method_args of its own: give them to the arms that have the method.')

    def _check_fraction_names(self) -> None:
        names: Dict[str, float] = {}
        for fraction in self.train_fractions:
            name = name_fraction(fraction)
            if name in names:
                raise ValueError(
                    f"--train-fractions {names[name]} and {fraction} would both name their runs 'ARM-{name}-SEED': keep"
                    ' one of them.'
                )
            names[name] = fraction


def name_fraction(fraction: float) -> str:
    """A fraction of the training images in the name of a run."""
    return f'{fraction:g}'


class Run(NamedTuple):
    """A run of a study.

    Args:
        arm: Its arm.
        seed: Its seed.
        config: Its settings.
        fraction: Its fraction of the training images, in a study of several.
    """

    arm: str
    seed: int
    config: DistillConfig
    fraction: Optional[float] = None

    @property
    def name(self) -> str:
        return str(self.config.experiment)


def teacher_name(fraction: Optional[float]) -> str:
    """Name of the teacher that a study trains for the runs of a fraction of the training images."""
    return 'teacher' if fraction is None else f'teacher-{name_fraction(fraction)}'


def list_arms(config: StudyConfig) -> Dict[str, Dict[str, Any]]:
    """Name -> settings of each arm: those of the file, then one for each of `methods`; for each of `models`.

    Raises:
        ValueError: if there are none, a name is unfit for a folder or given twice, a setting is unknown, wrong or that
            of the whole study, or the baseline is none of them.
    """
    unquoted = next((name for name in config.arms if not isinstance(name, str)), None)
    if unquoted is not None:
        raise ValueError(
            f'The name of an arm must be text, but YAML reads {unquoted!r}: put it in quotes'
            f'{" (unquoted yes, no, on and off are booleans)" * isinstance(unquoted, bool)}.'
        )
    arms = {name: {} if values is None else values for name, values in config.arms.items()}
    for method in config.methods:
        if method in arms:
            raise ValueError(f"Arm '{method}' is both in the file and among --methods: keep one of them.")
        arms[method] = dict(method=tuple(method.split('+')))
    if not arms:
        raise ValueError('A study needs arms: give --methods, or a file with `arms`.')
    if config.models:
        own = next((name for name, values in arms.items() if isinstance(values, dict) and 'model' in values), None)
        if own is not None:
            raise ValueError(f"Arm '{own}' has a model of its own: leave --models out, or the model of this arm.")
        arms = {
            f'{model}_{name}'.replace(':', '_').replace('/', '_'): {**values, 'model': model}
            for model in config.models
            for name, values in arms.items()
        }
    checked = {name: _check_arm(name, values) for name, values in arms.items()}
    for flag_name, names in (('--baseline', [config.baseline] if config.baseline else []), ('--only', config.only)):
        unknown = next((name for name in names if name not in checked), None)
        if unknown is not None:
            raise ValueError(f"{flag_name} '{unknown}' is none of the arms: {', '.join(checked)}.")
    return checked


def _check_arm(name: str, values: Any) -> Dict[str, Any]:
    if not re.fullmatch(r'[\w.+-]+', name) or name.startswith('.'):
        raise ValueError(f"Arm '{name}': use letters, digits and _ + - . for a name, which is that of a folder.")
    if not isinstance(values, dict):
        raise ValueError(f"Arm '{name}' must hold settings, NAME: VALUE, got {values!r}.")
    values = {key.replace('-', '_'): value for key, value in values.items()}
    for key in values:
        if key in OF_THE_STUDY:
            raise ValueError(f"Arm '{name}' sets '{key}', which is the same for all arms of a study: move it out.")
    checked = check_settings(values, [DistillConfig], f"arm '{name}'")
    given = checked.get('teacher_checkpoint')  # a file's architecture is its `teacher`
    own_teacher = next((key for key in checked if key in TRAINS_A_TEACHER or key == 'teacher' and not given), None)
    if own_teacher:
        raise ValueError(
            f"Arm '{name}' sets '{own_teacher}', but a study trains one teacher for all arms: move it out, or train the"
            " arm's own by hdkd train and give it as the arm's teacher_checkpoint."
        )
    methods = checked.get('method', ('hdkd',))
    for key in HDKD_FLAGS:
        if key in checked and 'hdkd' not in method_names(methods):
            raise ValueError(f"Arm '{name}' sets '{key}', a setting of the method 'hdkd', not of {' '.join(methods)}.")
    return checked


def keep_former(config: StudyConfig, folder: Path) -> StudyConfig:
    """The settings with the arms, seeds and fractions of the training images that have finished runs of an earlier
    command in this folder, so that the table loses none.

    Args:
        config: Settings of the study as they are given now.
        folder: Its folder.

    Raises:
        ValueError: if only one of them has several fractions of the training images, or the config.yaml in the folder
            is not that of a study.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return config
    former = StudyConfig(**check_settings(read_yaml(path), [StudyConfig], f"'{path}'"))
    runs = [run for run in list_runs(former, folder) if (folder / RUNS / run.name / METRICS_FILE).is_file()]
    if runs and bool(former.train_fractions) != bool(config.train_fractions):
        which = 'with' if former.train_fractions else 'without'
        raise ValueError(
            f"Study '{folder}' was started {which} --train-fractions, and a table cannot have both: choose another"
            ' --experiment.'
        )
    arms, before = list_arms(config), list_arms(former)
    with_runs = {run.arm for run in runs}
    seeds = sorted({run.seed for run in runs} - set(config.seeds))
    fractions = sorted({run.fraction for run in runs if run.fraction} - set(config.train_fractions))
    if not (with_runs - set(arms) or seeds or fractions):
        return config
    order = [name for name in before if name in arms or name in with_runs]
    baseline = config.baseline or (former.baseline if former.baseline in order else None)
    return dataclasses.replace(
        config,
        arms={name: arms.get(name, before.get(name)) for name in dict.fromkeys([*order, *arms])},
        methods=(),
        models=(),
        seeds=(*config.seeds, *seeds),
        train_fractions=(*config.train_fractions, *fractions),
        baseline=baseline,
    )


def _choose_teacher(shared: Dict[str, Any], values: Dict[str, Any], teacher: Any) -> Dict[str, Any]:
    """The teachers, or stored logits, of an arm that does not name its own: an arm's teachers replace the study's
    logits, and its logits the study's teachers. None where no teacher takes part."""
    of_arm = {**shared, **values}
    if of_arm['method'] == ('none',) and of_arm['init_from_teacher'] is None:
        return dict(teacher_logits=None, teacher_checkpoint=None)
    logits = None if values.get('teacher_checkpoint') else values.get('teacher_logits', shared['teacher_logits'])
    return dict(teacher_logits=logits, teacher_checkpoint=None if logits else teacher)


def split_seed(config: StudyConfig) -> int:
    """The seed of the splits, which all runs of a study and its teacher share: the teacher must not have seen the
    validation images of any of them."""
    return config.seed if config.split_seed is None else config.split_seed


def list_runs(config: StudyConfig, folder: Path) -> Iterator[Run]:
    """The runs of a study, seed by seed, so that all arms have as many if it is stopped; from few images to many.

    Args:
        config: Settings of the study.
        folder: Folder of the study. Runs that have neither teachers nor stored logits have its own teacher.

    Raises:
        ValueError: as `list_arms`, or for settings of an arm that contradict each other; names the arm.
    """
    fields = {field.name for field in dataclasses.fields(DistillConfig)}
    shared = {name: value for name, value in vars(config).items() if name in fields}
    arms = list_arms(config)
    own: Dict[str, Any] = dict(output=str(folder / RUNS), split_seed=split_seed(config))
    fractions = [(fraction, f'-{name_fraction(fraction)}', fraction) for fraction in sorted(config.train_fractions)]
    for seed in config.seeds:
        for fraction, suffix, of_images in fractions or [(None, '', config.train_fraction)]:
            teacher = config.teacher_checkpoint or str(folder / teacher_name(fraction) / 'best')
            for arm, values in arms.items():
                own.update(experiment=f'{arm}{suffix}-{seed}', seed=seed, train_fraction=of_images)
                values = {**shared, **_choose_teacher(shared, values, teacher), **values, **own}
                try:
                    yield Run(arm, seed, DistillConfig(**values), fraction)
                except ValueError as e:
                    raise ValueError(f"Arm '{arm}': {e}") from e

"""The runs of a study: each is `hdkd distill` in a process of its own, resumed if it was stopped, skipped if it is
finished."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Dict, List, Optional, Sequence, Set, Tuple

import torch

from ..training.config import DistillConfig, TrainConfig
from ..training.distill import check_distillation
from ..utils.config import to_yaml
from ..utils.files import atomic_write
from ..utils.run_files import CONFIG_FILE
from ..utils.signals import Interrupted, Signals
from ..utils.text import WARNING
from .checks import check_held_out, check_images, check_teachers, is_finished, quiet, update_paths
from .config import Run, StudyConfig, keep_former, list_runs, split_seed, teacher_name

_logger = logging.getLogger(__name__)

LOGS, SETTINGS = 'logs', 'settings'  # in the folder of a study
POLL_SECONDS = 0.2  # between two looks at the runs


def teacher_config(config: StudyConfig, folder: Path, fraction: Optional[float] = None) -> TrainConfig:
    """The settings of the teacher of all runs, or of those of a fraction of the training images, which is trained once
    where none is given."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in vars(config).items() if name in fields}
    values.update(
        model=config.teacher,
        model_kwargs=config.teacher_kwargs,
        pretrained=config.teacher_pretrained,
        opt=config.teacher_opt,
        lr=config.teacher_lr,
        weight_decay=config.teacher_weight_decay,
        sched=config.teacher_sched,
        epochs=config.teacher_epochs or config.epochs,
        img_size=config.teacher_img_size or config.img_size,
        freeze_stages=0,
        split_seed=split_seed(config),
        output=str(folder),
        experiment=teacher_name(fraction),
        train_fraction=config.train_fraction if fraction is None else fraction,
    )
    return TrainConfig(**values)


def _find_error(log: Path, start: int) -> str:
    """The error of a command in the log of its run, after so many bytes; '' if there is none. Other lines may be those
    of a process that a study which was killed has left, and which goes on."""
    lines = log.read_bytes()[start:].decode(errors='replace').splitlines()
    return next((line for line in reversed(lines) if line.startswith('hdkd ')), '')


class Runner:
    """Runs the processes of a study, repeats their warnings, and passes a signal that asks it to stop on to them.

    Args:
        folder: Folder of the study; gets the settings and the output of each run.
        jobs: Processes at a time.
        signals: Notes the signal.
    """

    def __init__(self, folder: Path, jobs: int, signals: Signals):
        self.folder = folder
        self.jobs = jobs
        self.signals = signals
        self.processes: List[subprocess.Popen] = []
        self.finished: List[str] = []
        self.failed: Dict[str, str] = {}
        self.warnings: Set[str] = set()
        self.lock = threading.Lock()  # between starting a process and stopping all, and of the warnings

    def environment(self) -> Dict[str, str]:
        """That of a process, which has its share of the cores unless the user decided otherwise."""
        threads = str(max(1, torch.get_num_threads() // self.jobs))
        return {**({'OMP_NUM_THREADS': threads} if self.jobs > 1 else {}), **os.environ}

    def run(self, command: str, config: TrainConfig) -> None:
        """Run `hdkd train` or `hdkd distill`, to its end or until the study is stopped.

        Raises:
            ChildProcessError: if it ends with an error.
        """
        name = str(config.experiment)
        settings, log = self.folder / SETTINGS / f'{name}.yaml', self.folder / LOGS / f'{name}.log'
        for path in (settings, log):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(settings) as file:
            file.write(to_yaml(config))
        arguments = [command, '--config', str(settings), '--no-report']
        if Path(config.output, name, CONFIG_FILE).is_file():
            update_paths(config)
            arguments.append('--resume')
        with log.open('ab') as output, log.open('rb') as written:
            start = read = log.stat().st_size
            with self.lock:
                if self.signals.received:
                    return
                process = subprocess.Popen(
                    [sys.executable, '-m', 'hdkd_timm', *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment(),
                    start_new_session=True,  # a Ctrl-C reaches the study alone, which passes it on
                )
                self.processes.append(process)
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                read = self._repeat_warnings(name, written, read)
            code = process.wait()
            self._repeat_warnings(name, written, read)
        if code and not self.signals.received:
            raise ChildProcessError(f'{_find_error(log, start) or f"exit code {code}"} (its output is in {log})')

    def _repeat_warnings(self, name: str, log: BinaryIO, start: int) -> int:
        """Repeat the warnings in a run's output, except those that another run has already had.

        Args:
            name: The run.
            log: The file of its output, open for reading.
            start: Byte from which it was not read yet.

        Returns:
            The byte after its last complete line.
        """
        log.seek(start)
        output = log.read()
        output = output[: output.rfind(b'\n') + 1]
        lines = output.decode(errors='replace').splitlines()
        with self.lock:
            new = [line for line in dict.fromkeys(lines) if line.startswith(WARNING) and line not in self.warnings]
            self.warnings.update(new)
        for line in new:
            _logger.warning(f'{name}  {line.removeprefix(WARNING)}')
        return start + len(output)

    def run_all(self, runs: Sequence[Run], total: int) -> None:
        """Run those that are not finished, of so many; the others go on if one fails.

        Raises:
            Interrupted: if a signal asked to stop.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._run_one, run, total - len(runs), total) for run in runs]
            self._wait(futures)

    def train_teachers(self, configs: Sequence[TrainConfig]) -> None:
        """Train them, to the end or until the study is stopped.

        Raises:
            Interrupted: if a signal asked to stop.
            ChildProcessError: if one fails.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            self._wait([pool.submit(self.run, 'train', config) for config in configs])

    def _run_one(self, run: Run, done: int, total: int) -> None:
        start = time.monotonic()
        try:
            self.run('distill', run.config)
        except ChildProcessError as e:
            self.failed[run.name] = str(e)
            _logger.error(f'{run.name}  failed: {e}')
            return
        if not self.signals.received:
            self.finished.append(run.name)
            minutes = (time.monotonic() - start) / 60
            _logger.info(f'{run.name}  is finished after {minutes:.1f} min ({done + len(self.finished)} of {total})')

    def _stop(self, futures: Sequence) -> None:
        for future in futures:
            future.cancel()
        with self.lock:  # none is started from now on
            for process in self.processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)

    def _wait(self, futures: Sequence) -> None:
        """Wait for the processes; a signal ends them, with their states saved."""
        is_stopping = False
        while not all(future.done() for future in futures):
            if self.signals.received and not is_stopping:
                is_stopping = True
                self._stop(futures)
            time.sleep(POLL_SECONDS)
        if self.signals.received:
            raise Interrupted(self.signals.received, self.folder)
        for future in futures:
            future.result()


def run_study(config: StudyConfig) -> Tuple[StudyConfig, List[Run], Dict[str, str]]:
    """Run what a study lacks: the teachers, if none is given, then every arm with every seed, or those of `only`.

    The images and teachers of the runs that were started are compared with the present ones, and all arms are checked
    with their first open run, before anything is trained or written.

    Returns:
        The settings, with the arms, seeds and fractions of the training images that earlier commands have finished in
        this folder; all runs of these; and name -> error of those that failed.

    Raises:
        FileNotFoundError, ValueError: for wrong settings, a run of this name with other ones, or runs that had other
            images or another teacher.
        Interrupted: if a signal asked to stop; the states are saved, and the same command goes on.
        ChildProcessError: if a teacher fails, or all runs do.
    """
    folder = Path(config.output, str(config.experiment)).absolute()  # as a part of settings, it must not change
    given = {run.name for run in list_runs(config, folder)}
    only = config.only
    config = keep_former(config, folder)
    runs = list(list_runs(config, folder))
    chosen = [run for run in runs if run.name in given and (not only or run.arm in only)]
    finished = {run.name for run in runs if is_finished(run.config, folder)}  # of all: the table has them
    open_runs = [run for run in chosen if run.name not in finished]
    used = {run.config.teacher_checkpoint for run in chosen}
    teachers, untrained = [], {}
    for fraction in dict.fromkeys(run.fraction for run in runs):
        teacher, path = teacher_config(config, folder, fraction), str(folder / teacher_name(fraction) / 'best')
        if (path,) in used and not config.teacher_checkpoint:
            teachers.append(teacher)
            if not is_finished(teacher, folder):
                untrained[path] = teacher
    _check_same(config, runs, teachers, bool(open_runs or untrained), list(untrained))
    _check_arms(open_runs, list(untrained))
    with Signals() as signals:
        runner = Runner(folder, config.jobs, signals)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / CONFIG_FILE) as file:
            file.write(to_yaml(config))
        if config.train_fractions and config.teacher_checkpoint:
            _logger.warning('The given teacher is that of all fractions: it may know more images than its students.')
        others = [run.name for run in runs if run.name in finished and run.name not in given]
        if others:
            shown = ', '.join(others[:3]) + ', ...' * (len(others) > 3)
            _logger.info(
                f'The table also has finished runs that this command does not name ({len(others)}: {shown}): their'
                f" arms, seeds and fractions stay in '{folder / CONFIG_FILE}'."
            )
        if untrained:
            _logger.info(
                f'{config.teacher}  is trained as the teacher of all runs'
                f'{" of a fraction of the training images, for each" if config.train_fractions else ""}.'
            )
            runner.train_teachers(list(untrained.values()))
            with quiet():
                check_teachers([run.config for run in runs], bool(open_runs))
        if len(open_runs) < len(chosen):
            _logger.info(f'{len(chosen) - len(open_runs)} of {len(chosen)} runs are finished already.')
        runner.run_all(open_runs, len(chosen))
    if len(runner.failed) == len(chosen):
        raise ChildProcessError(f'All runs failed, the first with: {next(iter(runner.failed.values()))}')
    return config, runs, runner.failed


def _check_same(
    config: StudyConfig, runs: Sequence[Run], teachers: Sequence[TrainConfig], has_open: bool, untrained: Sequence[str]
) -> None:
    """Compare the images and teachers of all runs, see `check_images`, `check_teachers` and `check_held_out`."""
    of_runs = [run.config for run in runs]
    with quiet():
        check_held_out(config)
        check_images([*teachers, *of_runs], has_open)
        check_teachers(of_runs, has_open, untrained)


def _check_arms(runs: Sequence[Run], untrained: Sequence[str] = ()) -> None:
    """Check each arm with its first open run, without its warnings, which the run gives.

    Args:
        runs: The open runs.
        untrained: The teachers that are not trained yet: they are ones without training here.

    Raises:
        ValueError: for a wrong setting, or if the pair cannot have a method; names the arm.
    """
    for arm in dict.fromkeys(run.arm for run in runs):
        settings: DistillConfig = next(run.config for run in runs if run.arm == arm)
        if settings.teacher_checkpoint and settings.teacher_checkpoint[0] in untrained:
            settings = dataclasses.replace(settings, teacher_checkpoint=None)
        try:
            with quiet():
                check_distillation(settings)
        except ValueError as e:
            raise ValueError(f"Arm '{arm}': {e}") from e

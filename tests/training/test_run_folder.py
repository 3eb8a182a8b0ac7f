"""The folder of a run among real processes, and real signals."""

import csv
import os
import pickle
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY_STUDENT
from kill_table import count_operations
from processes import run_on_a_small_disk, start

from hdkd_timm import TrainConfig, train
from hdkd_timm.data.config import DataConfig
from hdkd_timm.data.datasets import create_datasets
from hdkd_timm.training.run_folder import check_same_settings, keep_images, load_state, run_folder, save_state
from hdkd_timm.utils.files import SUMS, check_sums, new_folder, write_json
from hdkd_timm.utils.run_files import CONFIG_FILE, IMAGES_FILE, STATE_FILE
from hdkd_timm.utils.signals import Interrupted

SETTINGS = 'lr: 0.001\nscale:\n- 0.8\n- 1.0\nseed: 42\nworkers: 2\n'


def content(folder):
    """Names of all in it but the checksums, which have tests of their own."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.name != SUMS)


def snapshot(folder):
    """What links, files and folders hold, by name."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob('*')
        if path.name != SUMS
    }


@pytest.fixture
def runs(tmp_path):
    return tmp_path / 'runs'


@pytest.fixture
def begun(runs):
    """A run with a state."""
    with run_folder(str(runs), 'run', SETTINGS) as folder:
        (folder / 'student').mkdir()
        save_state({'progress': 1}, folder / 'student' / STATE_FILE)
    return folder


def test_state_there_and_back(tmp_path):
    state = {
        'progress': {'epoch': 3, 'best': None, 'rows': [{'loss': 0.5}]},
        'model': {'weight': torch.randn(2, 3)},
        'rng': torch.get_rng_state(),
    }
    save_state(state, tmp_path / STATE_FILE)
    loaded = load_state(tmp_path / STATE_FILE)
    assert loaded['progress'] == state['progress']
    assert torch.equal(loaded['model']['weight'], state['model']['weight'])
    assert torch.equal(loaded['rng'], state['rng'])

    class Unsavable:
        def __reduce__(self):
            raise TypeError('no')

    with pytest.raises(TypeError, match='no'):
        save_state({'progress': Unsavable()}, tmp_path / STATE_FILE)
    assert load_state(tmp_path / STATE_FILE)['progress'] == state['progress']


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_state_runs_no_code(tmp_path):
    torch.save({'progress': Harmful(tmp_path / 'harm')}, tmp_path / 'zip.pth')
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps({'progress': Harmful(tmp_path / 'harm')}, protocol=2))
    for name in ('zip.pth', 'plain.pth'):
        with pytest.raises(ValueError, match=f"Refused '.*{name}': loading it would execute code"):
            load_state(tmp_path / name)
    assert not (tmp_path / 'harm').exists()


def test_no_state(tmp_path):
    torch.save({'model': torch.zeros(1)}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r"weights\.pth' is not a training state: it holds no progress"):
        load_state(tmp_path / 'weights.pth')
    (tmp_path / 'text.pth').write_text('words')
    with pytest.raises(ValueError, match=r"text\.pth' is not a checkpoint"):
        load_state(tmp_path / 'text.pth')
    save_state({'progress': 1, 'model': torch.zeros(1000)}, tmp_path / 'cut.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'cut.pth').read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.pth' is damaged, or was edited"):
        load_state(tmp_path / 'cut.pth')
    (tmp_path / SUMS).unlink()
    with pytest.raises(ValueError, match=r"cut\.pth' is not a checkpoint"):
        load_state(tmp_path / 'cut.pth')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_state(tmp_path / 'nowhere')


def summed(folder):
    """Does `sha256sum -c` find all files as they were written?"""
    return subprocess.run(['sha256sum', '-c', SUMS], cwd=folder, capture_output=True, check=False).returncode == 0


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize('has_sums', [True, False])
def test_flipped_bits_of_a_state(tmp_path, has_sums):
    """Without SHA256SUMS, of earlier versions, the zip's own checksums tell, or nothing is changed."""
    state = {'progress': [{'epoch': 3}], 'weight': torch.randn(400)}
    save_state(state, tmp_path / STATE_FILE)
    if not has_sums:
        (tmp_path / SUMS).unlink()
    good = (tmp_path / STATE_FILE).read_bytes()
    found = 0
    for bit in random.Random(0).sample(range(8 * len(good)), 100):
        flip(tmp_path / STATE_FILE, bit)
        try:
            loaded = load_state(tmp_path / STATE_FILE)
            assert loaded['progress'] == state['progress']
            assert torch.equal(loaded['weight'], state['weight'])
        except ValueError as e:
            assert STATE_FILE in str(e)  # noqa: PT017
            found += 1
        (tmp_path / STATE_FILE).write_bytes(good)
    assert found == 100 if has_sums else found > 40
    assert torch.equal(load_state(tmp_path / STATE_FILE)['weight'], state['weight'])


def run_killed(root, limit, action):
    """Do it in a process that is killed before the file operation of this number. Returns whether it was."""
    pid = os.fork()
    if not pid:
        try:
            count_operations(root, limit)
            action()
        except ZeroDivisionError:
            os._exit(0)
        except BaseException as e:
            os.write(2, repr(e).encode())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def each_kill(root, action):
    """Do it again and again, killed before its first file operation, its second, ... until it comes through."""
    limit = 1
    while run_killed(root, limit, action):
        yield limit
        limit += 1
    assert limit > 8


def test_killed_while_a_file_is_replaced(tmp_path):
    def write():
        save_state({'progress': 2}, tmp_path / STATE_FILE)

    for with_sums in (True, False):
        save_state({'progress': 1}, tmp_path / STATE_FILE)
        if not with_sums:
            (tmp_path / SUMS).unlink()
        seen = []
        for _ in each_kill(tmp_path, write):
            seen.append(load_state(tmp_path / STATE_FILE)['progress'])  # the old one or the new one, and never refused
            save_state({'progress': 1}, tmp_path / STATE_FILE)
            if not with_sums:
                (tmp_path / SUMS).unlink()
        assert set(seen) == {1, 2}
        assert load_state(tmp_path / STATE_FILE)['progress'] == 2
        assert summed(tmp_path)


def live(runs, fails=False, settings=SETTINGS, **flags):
    """A run from its start to its end, or to an error before it has a state."""
    with run_folder(str(runs), 'run', settings, **flags) as folder:
        keep_images(ROWS, folder)
        (folder / 'student').mkdir(exist_ok=True)
        (folder / 'student' / 'summary.csv').write_text('new')
        if fails:
            raise ZeroDivisionError
        save_state({'progress': 'new'}, folder / 'student' / STATE_FILE)
        write_json({}, folder / 'student' / 'metrics.json', summed=True)


def is_new(folder):
    state = folder / 'student' / STATE_FILE
    return state.exists() and load_state(state)['progress'] == 'new'


@pytest.mark.parametrize('fails', [False, True])
def test_start_killed_anywhere(runs, fails, tmp_path):
    """A new run can be begun or resumed, and be overwritten, wherever it was killed."""
    for _ in each_kill(runs, lambda: live(runs, fails)):
        if runs.exists():
            shutil.copytree(runs, tmp_path / 'copy')
            live(tmp_path / 'copy', overwrite=True)
            assert is_new(tmp_path / 'copy' / 'run')
            shutil.rmtree(tmp_path / 'copy')
        try:
            live(runs, resume=True)
        except FileNotFoundError as e:
            assert 'start it without --resume' in str(e)  # noqa: PT017
            live(runs)
        assert is_new(runs / 'run')
        assert content(runs / 'run') == [
            CONFIG_FILE,
            IMAGES_FILE,
            'student',
            'student/last.pth',
            'student/metrics.json',
            'student/summary.csv',
        ]
        check_sums(runs / 'run')
        shutil.rmtree(runs)


@pytest.mark.parametrize(('fails', 'is_second'), [(False, False), (True, False), (False, True)])
def test_overwrite_killed_anywhere(begun, runs, fails, is_second, tmp_path):
    """The old run is there until the new one has a state, also if another start was killed before."""
    (begun / 'report').mkdir()
    (begun / 'report' / 'a.png').write_bytes(b'a')
    old, kept = snapshot(begun), tmp_path / 'kept'
    if is_second:
        with pytest.raises(Interrupted):
            fail_after_writing(runs, 'run', 'teacher/summary.csv', Interrupted(signal.SIGTERM, begun), overwrite=True)
    shutil.copytree(begun, kept)
    outcomes = set()
    for _ in each_kill(runs, lambda: live(runs, fails, 'lr: 1\n', overwrite=True)):
        if is_new(begun):
            outcomes.add('new')
            live(runs, settings='lr: 1\n', resume=True)
        else:
            outcomes.add('old')
            shutil.copytree(begun, tmp_path / 'copy' / 'run')
            live(tmp_path / 'copy', settings='lr: 1\n', overwrite=True)  # to its end
            assert is_new(tmp_path / 'copy' / 'run')
            with pytest.raises((ZeroDivisionError, ValueError)):  # ValueError: it is the old one, of other settings
                live(runs, fails=True, settings='lr: 1\n', resume=True)
            with pytest.raises(ZeroDivisionError):
                live(runs, fails=True, settings='lr: 2\n', overwrite=True)
            assert snapshot(begun) == old
        for folder in (begun, tmp_path / 'copy'):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, begun)
    assert outcomes == ({'old'} if fails else {'old', 'new'})
    if fails:
        assert snapshot(begun) == old
    else:
        assert is_new(begun)
        assert not (begun / '.before').exists()


def test_settings_that_were_edited(begun, runs):
    """`--config run/config.yaml --resume` would compare the edited file with itself."""
    edited = SETTINGS.replace('0.001', '0.002')
    (begun / CONFIG_FILE).write_text(edited)
    with (
        pytest.raises(ValueError, match=r"config\.yaml' is damaged, or was edited"),
        run_folder(str(runs), 'run', edited, resume=True),
    ):
        pass


def test_halves_of_a_killed_process_go(begun, runs):
    before = content(begun)
    half = begun / 'student' / '.best-x'
    half.mkdir()
    for path in (half / 'model.safetensors', half / f'.{SUMS}.12.tmp', begun / 'student' / '.last.pth.12.tmp'):
        path.touch()
    with run_folder(str(runs), 'run', SETTINGS, resume=True):
        pass
    assert content(begun) == before


def test_what_looks_at_a_run_that_goes_on(begun, runs):
    before = snapshot(begun)

    def refuse(folder):
        assert folder == begun
        raise ValueError('no')

    with (
        pytest.raises(ValueError, match='no'),
        run_folder(
            str(runs), 'run', SETTINGS.replace('workers: 2', 'workers: 0'), resume=True, free=['workers'], check=refuse
        ),
    ):
        pass
    assert snapshot(begun) == before


@pytest.mark.parametrize('umask', [0o022, 0o027, 0o002])
def test_modes_are_the_users(runs, tmp_path, umask):
    before = os.umask(umask)
    try:
        live(runs)
        with new_folder(tmp_path / 'new') as folder:
            (folder / 'sub').mkdir()
            (folder / 'private').touch(0o600)
    finally:
        os.umask(before)
    for path in (*runs.rglob('*'), tmp_path / 'new', *(tmp_path / 'new').rglob('*')):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_full_disk(tmp_path):
    """The old state is kept, and the error says what is wrong."""
    code = f"""
import torch
from hdkd_timm.training.run_folder import load_state, save_state
save_state({{'progress': 1}}, '{tmp_path}/last.pth')
try:
    save_state({{'progress': 2, 'weight': torch.zeros(10 ** 6)}}, '{tmp_path}/last.pth')
except Exception as e:
    print(type(e).__name__, e)
print(load_state('{tmp_path}/last.pth'))
"""
    result = run_on_a_small_disk(tmp_path, '1m', code)
    assert f"No space left on device: '{tmp_path}/last.pth'" in result.stdout, result.stdout
    assert result.stdout.splitlines()[-1] == "{'progress': 1}"


def test_new_folder(runs):
    with run_folder(str(runs), 'a/b', SETTINGS) as folder:
        assert folder == runs / 'a' / 'b'
        assert (folder / CONFIG_FILE).read_text() == SETTINGS
        (folder / 'file').touch()
    assert content(folder) == [CONFIG_FILE, 'file']  # the lock is gone


def test_run_that_exists(begun, runs):
    before = content(begun)
    with (
        pytest.raises(
            FileExistsError,
            match=re.escape(
                f"Run '{begun}' already exists: --resume continues it, --overwrite replaces it, or choose another "
                '--experiment.'
            ),
        ),
        run_folder(str(runs), 'run', SETTINGS),
    ):
        pass
    assert content(begun) == before


def test_resume(begun, runs):
    before = content(begun)
    with run_folder(str(runs), 'run', SETTINGS, resume=True) as folder:
        assert folder == begun
        assert load_state(folder / 'student' / STATE_FILE) == {'progress': 1}
    with pytest.raises(ZeroDivisionError), run_folder(str(runs), 'run', SETTINGS, resume=True):
        raise ZeroDivisionError
    assert content(begun) == before


def test_resume_of_nothing(runs):
    with (
        pytest.raises(FileNotFoundError, match="There is no run '.*run' to resume"),
        run_folder(str(runs), 'run', SETTINGS, resume=True),
    ):
        pass
    assert not runs.exists()
    (runs / 'run').mkdir(parents=True)
    with (
        pytest.raises(FileNotFoundError, match=r'it has no config\.yaml'),
        run_folder(str(runs), 'run', SETTINGS, resume=True),
    ):
        pass
    assert content(runs) == ['run']


def test_resume_with_other_settings(begun, runs):
    before = content(begun)
    other = SETTINGS.replace('0.001', '0.002').replace('0.8', '0.9') + 'more: x\n'
    with (
        pytest.raises(
            ValueError,
            match=re.escape(
                f"Run '{begun}' was started with lr 0.001, not 0.002 (3 settings differ: lr, scale, more): resume it"
                f' with --config {begun / CONFIG_FILE} --resume, or choose another --experiment.'
            ),
        ),
        run_folder(str(runs), 'run', other, resume=True),
    ):
        pass
    assert content(begun) == before
    assert (begun / CONFIG_FILE).read_text() == SETTINGS
    with (
        pytest.raises(ValueError, match='seed 42, not None'),
        run_folder(str(runs), 'run', SETTINGS.replace('seed: 42\n', ''), resume=True),
    ):
        pass
    # some settings are free to change
    changed = SETTINGS.replace('workers: 2', 'workers: 0')
    with run_folder(str(runs), 'run', changed, resume=True, free=['workers']):
        pass
    assert (begun / CONFIG_FILE).read_text() == changed


def test_overwrite(begun, runs):
    (begun / 'old').touch()
    before = snapshot(begun)
    with run_folder(str(runs), 'run', 'lr: 1\n', overwrite=True) as folder:
        assert sorted(os.listdir(folder)) == ['.before', '.lock', SUMS, CONFIG_FILE]
        assert snapshot(folder / '.before') == before
        assert (folder / CONFIG_FILE).read_text() == 'lr: 1\n'
    assert snapshot(begun) == {CONFIG_FILE: b'lr: 1\n'}
    with run_folder(str(runs), 'other', SETTINGS, overwrite=True) as folder:  # nothing there to overwrite
        pass
    (runs / 'empty').mkdir()
    with run_folder(str(runs), 'empty', SETTINGS, overwrite=True) as folder:
        pass
    assert content(folder) == [CONFIG_FILE]


def test_links_are_not_followed_when_overwriting(begun, runs, tmp_path):
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'precious' / 'file').touch()
    (begun / 'link').symlink_to(tmp_path / 'precious')
    with run_folder(str(runs), 'run', SETTINGS, overwrite=True):
        pass
    assert content(tmp_path / 'precious') == ['file']
    assert content(begun) == [CONFIG_FILE]


def test_what_is_no_run_is_not_overwritten(runs):
    (runs / 'photos').mkdir(parents=True)
    (runs / 'photos' / 'a.png').touch()
    (runs / 'file').touch()
    for name in ('photos', 'file'):
        with (
            pytest.raises(FileExistsError, match=rf"{name}' is not a run, it has no config\.yaml: it is not over"),
            run_folder(str(runs), name, SETTINGS, overwrite=True),
        ):
            pass
    assert content(runs) == ['file', 'photos', os.path.join('photos', 'a.png')]


def fail_after_writing(runs, experiment, file, error=ZeroDivisionError, settings=SETTINGS, **kwargs):
    with run_folder(str(runs), experiment, settings, **kwargs) as folder:
        (folder / file).parent.mkdir()
        (folder / file).touch()
        raise error


def test_folder_goes_after_an_error(runs):
    with pytest.raises(ZeroDivisionError):
        fail_after_writing(runs, 'a/b', 'student/summary.csv')
    assert not runs.exists()
    runs.mkdir()
    (runs / 'other').mkdir()
    with pytest.raises(KeyboardInterrupt):
        fail_after_writing(runs, 'a/b', 'student/summary.csv', KeyboardInterrupt)
    assert content(runs) == ['other']


@pytest.mark.parametrize('name', [STATE_FILE, 'metrics.json'])
def test_folder_stays_where_work_was_saved(runs, name):
    with pytest.raises(ZeroDivisionError):
        fail_after_writing(runs, 'run', f'teacher/{name}')
    assert content(runs / 'run') == [CONFIG_FILE, 'teacher', os.path.join('teacher', name)]
    with run_folder(str(runs), 'run', SETTINGS, resume=True):
        pass


@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt])
def test_old_run_is_back_after_an_error(begun, runs, tmp_path, error):
    (begun / 'student' / 'best').mkdir()
    (begun / 'student' / 'best' / 'model.safetensors').write_bytes(b'weights')
    (begun / 'student' / 'summary.csv').write_text('old')
    (tmp_path / 'precious').mkdir()
    (tmp_path / 'precious' / 'file').touch()
    (begun / 'link').symlink_to(tmp_path / 'precious')
    (begun / 'student' / 'broken link').symlink_to('nowhere')
    before = snapshot(begun)
    for file in ('student/summary.csv', 'link/file', 'new/file'):
        with pytest.raises(error):
            fail_after_writing(runs, 'run', file, error, settings='lr: 1\n', overwrite=True)
        assert snapshot(begun) == before
    assert content(tmp_path / 'precious') == ['file']


@pytest.mark.parametrize('name', [STATE_FILE, 'metrics.json'])
def test_new_run_stays_where_work_was_saved(begun, runs, name):
    with pytest.raises(ZeroDivisionError):
        fail_after_writing(runs, 'run', f'teacher/{name}', settings='lr: 1\n', overwrite=True)
    assert snapshot(begun) == {CONFIG_FILE: b'lr: 1\n', 'teacher': False, os.path.join('teacher', name): b''}


@pytest.mark.parametrize(('experiment', 'overwrite'), [('new', False), ('run', True)])
def test_interrupted_run_stays(begun, runs, experiment, overwrite):
    before = snapshot(begun)
    with pytest.raises(Interrupted):
        fail_after_writing(
            runs, experiment, 'teacher/summary.csv', Interrupted(signal.SIGTERM, experiment), overwrite=overwrite
        )
    kept = runs / experiment / '.before'
    assert snapshot(kept) == before if overwrite else not kept.exists()  # the new one has nothing to show yet
    assert [name for name in content(runs / experiment) if not name.startswith('.before')] == [
        CONFIG_FILE,
        'teacher',
        os.path.join('teacher', 'summary.csv'),
    ]


@pytest.mark.parametrize('overwrite', [False, True])
def test_run_that_was_killed_before_it_began(runs, overwrite):
    folder = runs / 'run'
    folder.mkdir(parents=True)
    for name in ('.lock', f'.{CONFIG_FILE}.123.tmp'):
        (folder / name).touch()
    with (
        pytest.raises(FileNotFoundError, match=r"There is no run '.*run' to resume, it has no config\.yaml"),
        run_folder(str(runs), 'run', SETTINGS, resume=True),
    ):
        pass
    assert content(folder) == [f'.{CONFIG_FILE}.123.tmp', '.lock']
    with run_folder(str(runs), 'run', SETTINGS, overwrite=overwrite):
        pass
    assert content(folder) == [CONFIG_FILE]


def rows_of(root, *images):
    """Rows of images, given as SPLIT/LABEL/NAME."""
    return [dict(path=f'{root}/{name}', label=name.split('/')[1], split=name.split('/')[0]) for name in images]


ROWS = rows_of('/data', 'train/a/0.png', 'train/b/1.png', 'test/a/2.png', 'test/b/3.png')


def test_images_of_a_run(tmp_path):
    keep_images(ROWS, tmp_path)
    written = (tmp_path / IMAGES_FILE).read_text()
    assert list(csv.DictReader(written.splitlines())) == ROWS
    keep_images(ROWS, tmp_path)
    keep_images([dict(row, path=row['path'].replace('/data', '/else where/x')) for row in ROWS], tmp_path)
    assert (tmp_path / IMAGES_FILE).read_text() == written
    assert content(tmp_path) == [IMAGES_FILE]


def test_images_of_a_tar_file(tmp_path):
    rows = rows_of('.', 'train/a/0.png', 'test/a/1.png')
    keep_images(rows, tmp_path)
    keep_images(rows, tmp_path)
    with pytest.raises(ValueError, match=r"'\./train/a/0\.png' of split train is not in both"):
        keep_images(rows_of('x', 'train/a/0.png', 'test/a/1.png'), tmp_path)


@pytest.mark.parametrize(
    ('edit', 'name', 'number'),
    [
        (lambda rows: [dict(rows[0], split='test'), *rows[1:]], 'train/a/0.png', 4),
        (lambda rows: [dict(rows[0], label='b'), *rows[1:]], 'train/a/0.png', 4),
        (lambda rows: [dict(row, group='1') for row in rows], 'train/a/0.png', 4),
        (lambda rows: rows[:3], 'test/b/3.png', 3),
        (lambda rows: rows + rows_of('/data', 'train/a/9.png'), 'train/a/9.png', 5),
    ],
    ids=['split', 'label', 'group', 'missing', 'added'],
)
def test_other_images(tmp_path, edit, name, number):
    keep_images(ROWS, tmp_path)
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"not those that run '{tmp_path}' was started with (4 in '{tmp_path / IMAGES_FILE}', now {number};"
            f" '{name}' of"
        ),
    ):
        keep_images(edit(ROWS), tmp_path)


def with_contents(rows, sizes='1234', digests='abcd'):
    return [
        dict(row, bytes=size, sha256=digest * 64 if digest.strip() else '')
        for row, size, digest in zip(rows, sizes, digests)
    ]


def test_contents_of_images(tmp_path, caplog):
    keep_images(with_contents(ROWS), tmp_path)
    written = (tmp_path / IMAGES_FILE).read_text()
    keep_images(with_contents(ROWS), tmp_path)
    keep_images(with_contents([dict(row, path=row['path'].replace('/data', '/moved')) for row in ROWS]), tmp_path)
    assert not caplog.records
    for changed in (with_contents(ROWS, '1239', 'abcd'), with_contents(ROWS, '1234', 'abcf')):
        with pytest.raises(
            ValueError,
            match=re.escape(
                f"Image '/data/test/b/3.png' of split test has changed since run '{tmp_path}' was started (1 of 4 "
            ),
        ):
            keep_images(changed, tmp_path)
    # images that are not read now
    keep_images(with_contents(ROWS, digests='    '), tmp_path)
    assert '--no-check-images does not read them. Names, splits and sizes are the same.' in caplog.text
    with pytest.raises(ValueError, match=r"Image '/data/train/a/0.png' .* has changed .* \(2 of 4 images"):
        keep_images(with_contents(ROWS, '9294', '    '), tmp_path)
    assert (tmp_path / IMAGES_FILE).read_text() == written


def test_lists_of_before_without_contents(tmp_path, caplog):
    keep_images(ROWS, tmp_path)
    keep_images(with_contents(ROWS), tmp_path)
    assert f"'{tmp_path / IMAGES_FILE}' has no SHA-256, as of an earlier version" in caplog.text
    assert 'Names and splits are the same.' in caplog.text
    with pytest.raises(ValueError, match='The images are not those'):
        keep_images(with_contents(ROWS[:3]), tmp_path)


@pytest.mark.parametrize('text', [None, '', 'path,label,split\n', 'damaged\n\0'])
def test_run_without_its_list_of_images(tmp_path, text):
    (tmp_path / 'student').mkdir()
    if text is not None:
        (tmp_path / IMAGES_FILE).write_text(text)
    (tmp_path / 'student' / STATE_FILE).touch()
    with pytest.raises(
        FileNotFoundError,
        match=(
            f"'{tmp_path / IMAGES_FILE}', the list of the run's images, is {'missing' if text is None else 'empty'}"
        ),
    ):
        keep_images(with_contents(ROWS), tmp_path)
    # a run that has not got further than its settings has no list yet
    (tmp_path / 'student' / STATE_FILE).unlink()
    if text is None:
        keep_images(with_contents(ROWS), tmp_path)
        assert content(tmp_path) == [IMAGES_FILE, 'student']


def test_images_that_are_not_told(tmp_path):
    keep_images([], tmp_path)
    assert content(tmp_path) == []


HOLD = """
import sys, time
from hdkd_timm.training.run_folder import run_folder
with run_folder(sys.argv[1], 'run', sys.argv[2]) as folder:
    (folder / 'mine').touch()
    time.sleep(1000)
"""


@pytest.fixture
def other_process(runs):
    """A process that writes to the run until it is killed."""
    process = start('-c', HOLD, runs, SETTINGS)
    while not (runs / 'run' / 'mine').exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    yield process
    process.kill()


def test_run_of_another_process(runs, other_process):
    for settings in (dict(resume=True), dict(overwrite=True)):
        with (
            pytest.raises(FileExistsError, match="Another process is writing to run '.*run': wait until it ends"),
            run_folder(str(runs), 'run', SETTINGS, **settings),
        ):
            pass
        assert (runs / 'run' / CONFIG_FILE).read_text() == SETTINGS
    # the lock goes with the process, whatever file it leaves
    other_process.kill()
    other_process.wait()
    assert (runs / 'run' / '.lock').exists()
    with run_folder(str(runs), 'run', SETTINGS, resume=True):
        pass
    assert content(runs / 'run') == [CONFIG_FILE, 'mine']


def test_a_run_goes_on_with_the_same_images_only(image_folder, tmp_path):
    config = TrainConfig(
        data_dir=str(image_folder),
        img_size=32,
        epochs=1,
        batch_size=4,
        workers=0,
        device='cpu',
        bootstrap=0,
        model_kwargs={k: v for k, v in TINY_STUDENT.items() if k not in ('img_size', 'num_classes')},
        output=str(tmp_path / 'runs'),
        experiment='run',
    )
    run = Path(train(config)['run'])
    path = image_folder / 'test' / 'b' / '1.png'
    before = path.read_bytes()
    shutil.copyfile(image_folder / 'test' / 'c' / '1.png', path)
    with pytest.raises(ValueError, match=rf"Image '{path}' of split test has changed since .* \(1 of 36 images"):
        train(config, resume=True)
    path.write_bytes(before)
    train(config, resume=True)
    # its own list reads the images from wherever the run is
    run.rename(tmp_path / 'moved')
    datasets, _ = create_datasets(DataConfig(data_csv=str(tmp_path / 'moved' / IMAGES_FILE)))
    assert {split: len(dataset) for split, dataset in datasets.items()} == {'train': 24, 'test': 12}
    (tmp_path / 'moved').rename(run)
    (run / IMAGES_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.csv', the list of the run's images, is missing"):
        train(config, resume=True)
    assert not (run / IMAGES_FILE).exists()


def test_settings_that_did_not_exist_yet_have_their_defaults(tmp_path):
    """And one value is the list of it, which a setting of an earlier version may have been."""
    (tmp_path / CONFIG_FILE).write_text('lr: 1\nteacher: a\n')
    check_same_settings(tmp_path, dict(lr=1, teacher=['a'], new='x'), (), dict(new='x'))
    with pytest.raises(ValueError, match="was started with new 'x', not 'y'"):
        check_same_settings(tmp_path, dict(lr=1, teacher=['a'], new='y'), (), dict(new='x'))
    with pytest.raises(ValueError, match=r"was started with teacher 'a', not \['a', 'b'\]"):
        check_same_settings(tmp_path, dict(lr=1, teacher=['a', 'b']), ())

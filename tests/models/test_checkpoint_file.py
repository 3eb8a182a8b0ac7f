import argparse
import pickle
import random
import re
import zipfile
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from helpers import (
    create_teacher,
    save_checkpoint,
)
from safetensors.torch import save_file
from torch import nn

from hdkd_timm.cli import main
from hdkd_timm.models.checkpoint_file import read_checkpoint


class Reduced:
    """Pickles as a call, such as an attacker writes it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_numpy_numbers_and_paths_are_read_as_plain_ones(tmp_path):
    held = dict(
        best=np.float64(0.25),
        epoch=np.int64(7),
        flag=np.bool_(True),
        big=np.array(3.0, '>f4')[()],
        out=PurePosixPath('/runs/a'),
        state_dict={},
    )
    read = read_checkpoint(save_checkpoint(tmp_path, held))
    assert read == dict(held, out='/runs/a')
    assert [type(read[key]) for key in held] == [float, int, bool, float, str, dict]
    with pytest.raises(ValueError, match="cannot be read safely .NumPy values of type 'M8' are not supported"):
        read_checkpoint(save_checkpoint(tmp_path, dict(best=np.datetime64('2026-01-01'))))
    with pytest.raises(ValueError, match=r'Refused .*holds .*numpy\.\S*_reconstruct'):
        read_checkpoint(save_checkpoint(tmp_path, dict(best=np.zeros(3))))


@pytest.mark.parametrize(
    'content',
    [
        Reduced(print, 'executed'),
        Reduced(eval, "print('executed')"),
        Reduced(exec, "print('executed')"),
        Reduced(getattr, argparse.Namespace, '__init__'),
        Reduced(argparse._StoreAction, ['--a'], 'a'),
        Reduced(np.load, 'file.npy'),
        argparse.Namespace(hidden=Reduced(print, 'executed')),
    ],
)
def test_safe_globals_cannot_be_abused(content, tmp_path, capsys):
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ValueError, match='Refused'):
        read_checkpoint(save_checkpoint(tmp_path, dict(state_dict={}, args=content)))
    assert 'executed' not in capsys.readouterr().out
    assert set(torch.serialization.get_safe_globals()) == before  # nothing stays allowed for others


@pytest.mark.parametrize(
    'write',
    [
        lambda path: torch.save({'state_dict': {}, 'extra': Reduced(print, 'executed')}, path),
        lambda path: torch.save(nn.Linear(2, 2), path),
        lambda path: path.write_bytes(pickle.dumps(Reduced(print, 'executed'))),
    ],
)
def test_file_that_would_execute_code_is_refused(write, tmp_path, capsys):
    write(tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match=r"evil\.pth'(: loading it would execute code| is damaged, or holds what)"):
        read_checkpoint(tmp_path / 'evil.pth')
    assert 'executed' not in capsys.readouterr().out


@pytest.mark.parametrize('is_zip', [True, False])
@pytest.mark.parametrize(
    ('content', 'named'),
    [
        (Reduced(print, 'executed'), 'print'),
        (nn.Linear(1, 1), r'torch\.nn\.modules\.linear\.Linear'),
        (argparse.Namespace(hidden=Reduced(len, 'a')), 'len'),
    ],
)
def test_unsafe_globals_are_named(content, named, is_zip, tmp_path):
    """And what is allowed is not named with it."""
    torch.save(dict(args=argparse.Namespace(), a=content), tmp_path / 'a.pth', _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=rf'execute code, it holds \S*{named}\. If you trust it'):
        read_checkpoint(tmp_path / 'a.pth')


def change_record(source, path, name, change):
    """Write a checkpoint with other bytes of one of its records, whose checksum is right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, 'w') as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith(name) else content)
    return path


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda content: content[:20], 'damaged'),
        (lambda content: content[:2] + b'\x95' + content[2:], r'damaged, or holds .* \(Unsupported operand 149\)'),
        (lambda content: content.replace(b'Namespace', b'Namespabe'), r'execute code, it holds argparse\.Namespabe\.'),
    ],
)
def test_damaged_pickle(change, match, tmp_path, capsys):
    """It is distinguished from one that would execute code, and no command ends in an internal error."""
    content = dict(args=argparse.Namespace(lr=1), best=np.float64(1), state_dict=create_teacher().state_dict())
    path = save_checkpoint(tmp_path, content)
    path = change_record(path, tmp_path / 'b.pth', 'data.pkl', change)
    with pytest.raises(ValueError, match=match):
        read_checkpoint(path)
    assert main(['convert', str(path), str(tmp_path / 'out')]) == 1
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_damaged_files(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        read_checkpoint(tmp_path / name)
    (tmp_path / name).write_bytes(b'no checkpoint at all')
    with pytest.raises(ValueError, match='is not a checkpoint'):
        read_checkpoint(tmp_path / name)
    state = {'stage1.0.0.weight': torch.zeros(300)}
    torch.save(state, tmp_path / name) if name.endswith('.pth') else save_file(state, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(ValueError, match='is not a checkpoint'):
        read_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_any_damage_is_a_value_error(tmp_path):
    rng = random.Random(0)
    content = dict(args=argparse.Namespace(lr=1), best=np.float64(1), out=PurePosixPath('a'), a=torch.ones(2))
    for is_zip in (True, False):
        torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=is_zip)
        whole = (tmp_path / 'a.pth').read_bytes()
        for _ in range(60):
            damaged = bytearray(whole[: rng.choice((len(whole), rng.randrange(len(whole))))])
            for _ in range(min(3, len(damaged))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / 'a.pth').write_bytes(damaged)
            with suppress(ValueError):
                read_checkpoint(tmp_path / 'a.pth')


def test_flipped_bit_of_a_weight(tmp_path):
    """torch.load does not look at the checksums that torch.save writes."""
    path = save_checkpoint(tmp_path, dict(a=torch.ones(1000)))
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(4, np.float32).tobytes()) + 401] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)['a'], torch.ones(1000))
    with pytest.raises(ValueError, match="is damaged: the checksum of '.*data/0' in it is wrong. Use another copy"):
        read_checkpoint(path)
    torch.serialization.set_crc32_options(False)
    try:
        assert torch.equal(read_checkpoint(save_checkpoint(tmp_path, dict(a=torch.ones(1000))))['a'], torch.ones(1000))
    finally:
        torch.serialization.set_crc32_options(True)

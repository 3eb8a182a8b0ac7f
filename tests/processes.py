"""Python processes of the tests, as `subprocess` starts them, or forked from one that has imported torch and timm.

Both are real processes that can be signalled and killed. Imports take seconds of a process and are the same each time,
so a fork saves them; `fresh=True` is for what is about the start of Python itself, for variables that are read by
imports, and for programs that start further ones (torchrun, `spawn`). With HDKD_FRESH=1 all processes are fresh.
"""

import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FORKS = hasattr(os, 'pidfd_open') and not os.environ.get('HDKD_FRESH')
# what a process forked from has imported: all, or what reads no variable of the Hub, and is no part of this package
ALL = (
    'hdkd_timm.cli',
    'hdkd_timm.training.distill',
    'hdkd_timm.evaluation.predict',
    'hdkd_timm.analysis.report',
    'sklearn.metrics',
    'scipy.stats',
    'torch._dynamo',
    'matplotlib.pyplot',
)
# names of the variables by which torchrun and SLURM tell processes of each other, see `run_two`
TORCHRUN = ('WORLD_SIZE', 'RANK', 'LOCAL_RANK')
SLURM = ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
TORCH = ('torchvision',)  # as little as makes a start quick: for what is about further imports
PACKAGES = ('torch._dynamo', 'torchvision', 'sklearn.metrics', 'scipy.stats', 'matplotlib.pyplot')


@functools.cache
def _start_server(modules, owner):
    """Start `warm_python.py` for this process, the owner. Returns the socket of its requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / 'warm_python.py'), str(theirs.fileno()), *modules],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours


class Fork:
    """A process like `python ARGS` with the interface of `subprocess.Popen`; its output goes to files, or to one."""

    def __init__(self, args, modules=ALL, cwd=None, env=None, start_new_session=False, output=None):
        self.args, self.returncode = args, None
        self.answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.files = [output or tempfile.TemporaryFile('w+') for _ in range(2)]  # noqa: SIM115, closed with this
        request = dict(
            args=args,
            cwd=str(cwd or os.getcwd()),
            env=dict(os.environ if env is None else env),
            start_new_session=start_new_session,
        )
        with theirs:
            fds = [theirs.fileno(), *(file.fileno() for file in self.files)]
            socket.send_fds(_start_server(modules, os.getpid()), [json.dumps(request).encode()], fds)
        self.pid = self._receive('pid')

    def poll(self):
        return self._wait(0)

    def wait(self, timeout=None):
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end. Returns all of stdout and of stderr."""
        self.wait(timeout)
        for file in self.files:
            file.seek(0)
        return tuple(file.read() for file in self.files)

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout):
        if self.returncode is None and select.select([self.answers], [], [], timeout)[0]:
            self.returncode = self._receive('code')
        return self.returncode

    def _receive(self, expected):
        kind, _, number = self.answers.recv(100).decode().partition(' ')
        if kind != expected:
            raise ChildProcessError(f'python {self.args} did not run ({kind or "warm_python.py ended"} {number})')
        return int(number)


def start(*args, fresh=False, output=None, **kwargs):
    """Start `python ARGS`, all of whose output goes to a file if given. Returns a `subprocess.Popen`, or what is like
    one."""
    args = list(map(str, args))
    if FORKS and not fresh:
        return Fork(args, output=output, **kwargs)
    kwargs.pop('modules', None)
    streams = dict(stdout=output or subprocess.PIPE, stderr=subprocess.STDOUT if output else subprocess.PIPE)
    return subprocess.Popen([sys.executable, *args], text=True, **streams, **kwargs)


def run(*args, timeout=300, **kwargs):
    """Run `python ARGS` to its end. Returns a `subprocess.CompletedProcess`."""
    process = start(*args, **kwargs)
    try:
        output = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def run_two(names, args):
    """Run two processes that variables of these names tell of each other: number of processes, rank, and rank on this
    machine. Returns the exit codes, stdout and stderr of both."""
    with socket.socket() as server:
        server.bind(('localhost', 0))
        port = server.getsockname()[1]  # that the system does not use
    size, rank, local_rank = names
    env = {**os.environ, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port), size: '2'}
    processes = [start(*args, env={**env, rank: str(i), local_rank: str(i)}) for i in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], *zip(*outputs)


# mounts a disk of its own, of which no other process knows, and runs a program
ON_A_DISK = """
import ctypes, subprocess, sys
folder, size, code = sys.argv[1:]
if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
    sys.exit(32)
subprocess.run(['mount', '--make-rprivate', '/'], check=True)
if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder]).returncode:
    sys.exit(32)
exec(code)
"""


def run_on_a_small_disk(folder, size, code, **kwargs):
    """Run Python code where a folder is a disk of this size. Skips the test where that needs more rights."""
    if sys.platform != 'linux' or os.geteuid() or not shutil.which('mount'):
        pytest.skip('mounts a small disk')
    result = run('-c', ON_A_DISK, folder, size, code, **kwargs)
    if result.returncode == 32:
        pytest.skip('no right to mount')
    return result


def hdkd(*args, **kwargs):
    """Run `python -m hdkd_timm ARGS` to its end."""
    return run('-m', 'hdkd_timm', *args, **kwargs)


def flags(**settings):
    """Flags of a command: batch_size=4 is --batch-size 4, a dict is NAME=VALUE..., a list is words, True is no word."""
    words = []
    for name, value in settings.items():
        words.append(f'--{name.replace("_", "-")}')
        if isinstance(value, dict):
            words += [f'{k}={v}'.replace(' ', '') for k, v in value.items()]
        elif isinstance(value, (list, tuple)):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    return words

"""A Python that has imported what is slow to import, and forks a process for each request of `processes.py`.

    python warm_python.py FD MODULE...

Each request is a datagram from the socket FD: what to run, and where, as JSON, with file descriptors for the answers,
for stdout and for stderr. The answers are the number of the process and the code that it ended with. A process whose
caller is gone is killed.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
from importlib import import_module


def reap(*args):
    """Leave no zombies."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(control):
    """Fork a process for each request until the caller is gone. Returns the request, in its process."""
    signal.signal(signal.SIGCHLD, reap)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 2**20, 3)
        if not message:
            os._exit(0)
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control.close()
    request, answers = json.loads(message), socket.socket(fileno=fds[0])
    pid = os.fork()
    if pid:
        watch(pid, answers)
    set_up(request, *fds[1:])
    answers.send(f'pid {os.getpid()}'.encode())
    answers.close()
    return request


def watch(pid, answers):
    """Tell how a process ended. Ends this one."""
    process = os.pidfd_open(pid)
    if process not in select.select([process, answers], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        answers.send(f'code {code}'.encode())
    finally:
        os._exit(0)


def set_up(request, out, err):
    """Make this process the one that was asked for: session, streams, folder, variables."""
    if request['start_new_session']:
        os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, stream in ((null, 0), (out, 1), (err, 2)):
        os.dup2(fd, stream)
        os.close(fd)
    os.chdir(request['cwd'])
    os.environ.clear()
    os.environ.update(request['env'])


def execute(first, *rest):
    """As `python FIRST REST...`."""
    sys.path[0] = {'-c': '', '-m': os.getcwd()}.get(first, os.path.dirname(os.path.abspath(first)))
    paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    sys.argv = ['-c', *rest[1:]] if first == '-c' else list(rest) if first == '-m' else [first, *rest]
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    if first == '-c':
        exec(compile(rest[0], '<string>', 'exec'), main.__dict__)
    elif first == '-m':
        runpy.run_module(rest[0], run_name='__main__', alter_sys=True)
    else:
        runpy.run_path(first, run_name='__main__')


def end(args):
    """Run the program and end as Python does, but do not take down all that was imported: that takes seconds."""
    try:
        execute(*args)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if e.code is not None and not isinstance(e.code, int):
            print(e.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()  # forks share it
    end(serve(socket.socket(fileno=int(sys.argv[1])))['args'])

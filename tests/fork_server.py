"""Starts Python programs that need not import what takes longest: it has done so, once, and forks.

A worker imports for some ten seconds what never differs, torch, transformers and Faust, and tests start many. What is forked has
none of our threads, and from there on is the program as `python -m` would run it: its own arguments, environment, output and end. It
differs in what Python or a package reads when it starts: variables like OMP_NUM_THREADS, the seed of hashes, the order in which modules
are imported; and after its last exit handler memory is not tidied up. Faust's own command is no module that is found once Faust is
imported. So some tests start their programs as a user does (`tests.processes`, `really`).

`python -m tests.fork_server DESCRIPTOR` serves a socket, one program per message, until the other end is closed.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 1 << 17  # bytes of a message; the kernel takes some more
ALL_WARNINGS = {"PYTHONWARNINGS": "default"}  # read when Python starts


class Forked:
    """A program in a process of its own, as `subprocess.Popen` tells of one; its output goes to two open files."""

    def __init__(
        self, server: ForkServer, arguments: Sequence[str], environment: Mapping[str, str], out: int, error: int
    ) -> None:
        self._end = server.fork(arguments, environment, out, error)
        self._told = self._end.makefile("r")
        self.returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it ends by itself; raises `subprocess.TimeoutExpired`. Negative: the signal that ended it."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._end, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = self._number()
            self._close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # we hear of it in a moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        line = self._told.readline()
        if not line:
            self._close()
            raise RuntimeError("the fork server has ended")
        return int(line)

    def _close(self) -> None:
        self._told.close()
        self._end.close()


class ForkServer:
    """The other end. It starts when it is first asked, and ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], out: int, error: int) -> socket.socket:
        """Starts `python -m *arguments`; what is returned tells its process id, and later its exit code, a line each."""
        asked = json.dumps([arguments, dict(environment), str(Path.cwd())]).encode()
        assert len(asked) < LIMIT
        here, there = socket.socketpair()
        with there, self._lock:
            files = array.array("i", [out, error, there.fileno()])
            self._connection().sendmsg([asked], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        return here

    def _connection(self) -> socket.socket:
        if self._here is None:
            self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with there:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.fork_server", str(there.fileno())],
                    pass_fds=[there.fileno()],
                    cwd=ROOT,
                    env={**os.environ, **ALL_WARNINGS},
                    start_new_session=True,  # who interrupts the tests does not interrupt it
                )
            atexit.register(self._process.wait)
            atexit.register(self._here.close)  # which is its end
        return self._here


def main(descriptor: int) -> None:
    """Serve until the other end is closed; in each process that is forked, run its program."""
    import aiohttp  # noqa: F401
    import aiokafka  # noqa: F401
    import faust.app
    import faust.cli.faust
    import faust.transport.drivers.aiokafka
    import faust.web.drivers.aiohttp
    import faust.worker  # noqa: F401
    from transformers import BertModel, GPT2Model, LlamaModel, PreTrainedModel  # noqa: F401

    assert threading.active_count() == 1  # forking leaves the others behind
    sys.stdout.flush()
    sys.stderr.flush()
    with socket.socket(fileno=descriptor) as asks, selectors.DefaultSelector() as selector:
        asked = _asked(asks, selector)
    if asked is not None:
        _become(*asked)


def _asked(asks: socket.socket, selector: selectors.BaseSelector) -> tuple[Any, ...] | None:
    """What is to be run, in each process that is forked for it; None in the server, at its end."""
    selector.register(asks, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not asks:  # a process that has ended
                selector.unregister(key.fileobj)
                _tell_end(key.fd, *key.data)
                continue
            asked, files, *_ = socket.recv_fds(asks, LIMIT, 3)
            if not asked:
                return None
            pid = os.fork()
            if pid == 0:
                for other in selector.get_map().values():
                    if other.fileobj is not asks:
                        os.close(other.fd)
                        other.data[1].close()
                return *json.loads(asked), *files
            there = socket.socket(fileno=files.pop())
            try:
                there.sendall(b"%d\n" % pid)
            except BrokenPipeError:  # nobody waits for it
                os.kill(pid, signal.SIGKILL)
            for each in files:
                os.close(each)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, there))


def _tell_end(process: int, pid: int, there: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    os.close(process)
    with there, suppress(BrokenPipeError):  # nobody waits for it
        there.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(arguments: list[str], environment: dict[str, str], folder: str, out: int, error: int, there: int) -> None:
    """The process that runs the program, as if nothing had been before."""
    os.dup2(out, 1)
    os.dup2(error, 2)
    for each in (out, error, there):
        os.close(each)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["", *arguments[1:]]
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        # What Python does then but for the last thing: for two seconds it would look for garbage in all that was imported
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

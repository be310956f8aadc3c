"""NextMove's programs: the command line, and a worker in a process of its own.

They are forked from a process that has imported what takes longest (`tests.fork_server`); with `really` they start as a user starts them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.fork_server import ALL_WARNINGS, Forked, ForkServer

READY_LIMIT_S = 120.0
NEXTMOVE = "stream_app.cli"
FORKS = ForkServer()
Process = Forked | subprocess.Popen[bytes]


def nextmove(
    *arguments: str, timeout_s: float = 300, really: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; settings as keyword arguments, `broker="…"` for NEXTMOVE_BROKER."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = _started((NEXTMOVE, *arguments), environment, out.fileno(), error.fileno(), really=really)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(["nextmove", *arguments], code, out.read(), error.read())


class Program:
    """The command line in the background; killed at the latest when the block ends."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self._process = _started((NEXTMOVE, *arguments), environment, 1, 2)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def pause(self) -> None:
        """Let it stand still; its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After a pause."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float = 300) -> int:
        """Its exit code, once it ends by itself."""
        return self._process.wait(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # one that stands still minds no other signal
        self._process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WorkerProcess:
    """`nextmove worker` in a process of its own, its output kept in `log_path`."""

    def __init__(
        self,
        log_path: Path,
        program: Sequence[str] = ("stream_app.cli", "worker"),
        *,
        really: bool = False,
        **environment: str,
    ) -> None:
        self._program, self._really = program, really
        self.log_path = log_path
        self.port = free_port()
        self._environment = {"web_port": str(self.port), "session_timeout_s": "6", **environment}
        self._process: Process | None = None

    def start(self) -> Self:
        """Start, and wait until it is ready."""
        with self.log_path.open("ab") as log:
            self._process = _started(self._program, self._environment, log.fileno(), log.fileno(), really=self._really)
        deadline = time.monotonic() + READY_LIMIT_S
        while not self.ready():
            assert self._process.poll() is None, f"the worker ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"the worker was never ready: {self.log()[-2000:]}"
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_s: float = 45) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        finally:
            if self._process.poll() is None:
                self.kill()

    def wait(self, timeout_s: float = 60) -> int:
        """Its exit code, once it ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def memory_bytes(self) -> int:
        """What it holds of the machine's memory now (resident set size)."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ready(self) -> bool:
        """What /readyz says."""
        return self.get("/readyz")[0] == 200

    def get(self, page: str) -> tuple[int, str]:
        """Status and body of a page; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def log(self) -> str:
        """All that it has written."""
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _started(
    program: Sequence[str], settings: Mapping[str, str], out: int, error: int, *, really: bool = False
) -> Process:
    environment = _environment(settings)
    if really:
        return subprocess.Popen([sys.executable, "-m", *program], env=environment, stdout=out, stderr=error)
    return Forked(FORKS, program, environment, out, error)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NEXTMOVE_")}
    return {
        **clean,
        **ALL_WARNINGS,
        **{f"NEXTMOVE_{name.upper()}": value for name, value in given.items()},
    }

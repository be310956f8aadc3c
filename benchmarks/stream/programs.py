"""A peer in a process of its own, and what it uses: CPU time and memory, read from Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

from benchmarks.stream.failures import ProgramEnded

ROOT = Path(__file__).parents[2]
STOP_LIMIT_S = 15.0


class Program:
    """A running program; its output goes to `log_path`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        self._port = environment.get("NEXTMOVE_WEB_PORT")
        self.started_s = time.monotonic()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**_environment(), **environment}, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """Its CPU time so far."""
        return cpu_s(self.pid)

    def check(self) -> None:
        """Raises ProgramEnded."""
        if self._process.poll() is not None:
            raise ProgramEnded(f"exit code {self._process.returncode}\n{self.log_end()}")

    def ready(self) -> bool:
        """What a worker's /readyz says."""
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:  # an HTTPError too is one
            return False

    def log_end(self) -> str:
        """The last that it has written, without what is only information."""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if "[INFO]" not in line][-20:])

    def stop(self) -> None:
        """End it, kindly at first."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End it at once; what it had left to do is lost."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far, ended ones included: user and system, in seconds, to the ns.

    The clock's id is what clock_getcpuclockid(3) would give.
    """
    return time.clock_gettime((~pid << 3) | 2)


def rss_mb(pid: int, *, peak: bool = True) -> float:
    """Resident memory of a process: the most so far, or now; in MB of 10^6 bytes."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _environment() -> dict[str, str]:
    """Ours without the settings of a NextMove that runs here otherwise; modules come from this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NEXTMOVE_", "BENCHMARK_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

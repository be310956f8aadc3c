"""A real Apache Kafka for tests: `deploy/kafka/start.py` as a child, which can be killed and started again."""

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

START = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "start.py"
_START_LIMIT_S = 180.0  # starting takes about 6 s; the rest is for a loaded machine
_STOP_LIMIT_S = 60.0


class KafkaServerError(Exception):
    """The broker did not start; the message says why."""


@functools.cache
def require_kafka() -> str | None:
    """None where a broker can run here, else the reason why not, for `pytest.skip`.

    Fetches the jars the first time. Where the variable CI is set nothing may be skipped: KafkaServerError instead.
    """
    done = subprocess.run([sys.executable, str(START), "--jars-only"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    reason = done.stderr.strip() or f"{START.name} ended with exit code {done.returncode}"
    if os.environ.get("CI"):
        raise KafkaServerError(reason)
    return reason


class KafkaServer:
    """One broker on 127.0.0.1, with its topics below `data`; ends with this process, too.

    Args:
        data: directory that outlives `kill()` and `stop()`.
        version: Kafka's version; None is the one that `deploy/kafka/pom.xml` names.
    """

    def __init__(self, data: Path, version: str | None = None) -> None:
        self.data = data
        self.bootstrap = ""
        self.pid = 0
        self._version = version
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The broker's own log, of all its starts."""
        return self.data / "kafka.log"

    @property
    def is_running(self) -> bool:
        """Whether the broker's process is there, as far as is known."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the broker and wait until it answers; on the same port as the last time.

        After `kill()` this takes about 8 s, of which Kafka waits 4 s for its former self's session to end. Partitions
        have leaders, and groups their coordinators, a moment after the first answer: clients retry, as they should.
        """
        if self.is_running:
            raise KafkaServerError(f"Kafka already runs at {self.bootstrap}")
        self._reap()
        command = [sys.executable, str(START), "--json", "--until-stdin-closes", f"--data={self.data}"]
        if self._version is not None:
            command.append(f"--version={self._version}")
        # Its errors go where the tests' own output goes. Its session is its own: Ctrl-C reaches it by its closed input.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _START_LIMIT_S)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self.stop()
            raise KafkaServerError(f"Kafka did not start; its log: {self.log_path}")
        told = json.loads(line)
        self.bootstrap, self.pid = told["bootstrap"], told["pid"]
        return self

    def stop(self) -> None:
        """Stop the broker cleanly; does nothing where none runs."""
        self._reap()

    def kill(self) -> None:
        """End the broker as a power cut would: SIGKILL, nothing flushed, nobody told."""
        assert self.is_running
        assert self._process is not None
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait(_STOP_LIMIT_S)  # start.py ends when its broker has
        self._reap()

    def restart(self) -> None:
        """Start again after `kill()` or `stop()`, or stop cleanly and start: same port, same data."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # what start.py waits for
        process.stdout.close()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

#!/usr/bin/env python3
"""Run one Apache Kafka broker on this machine, for development and tests: `python deploy/kafka/start.py`.

Needs Java 17 and, the first time, Maven; nothing but Python's standard library. The jars that `pom.xml` names are kept
in `jars/VERSION/`, so every later start works offline. The broker is a single KRaft node on 127.0.0.1, without TLS or
log-in; it is not for production. It runs in the foreground until SIGINT or SIGTERM, and then stops cleanly.

Exit codes: 0 stopped when told to; 1 the broker failed; 2 Java, Maven or the jars are missing.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
JARS = HERE / "jars"
START_LIMIT_S = 120.0  # starting takes about 5 s; the rest is for a loaded machine
STOP_LIMIT_S = 30.0
POLL_S = 0.1
LOG = "kafka.log"
OLDEST_JAVA = 17
JAVA_OPTIONS = ["-Dorg.apache.logging.log4j.level=INFO", "-Djava.awt.headless=true"]


class StartError(Exception):
    """The broker cannot run; the message is one line, meant for the user."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Stopped(Exception):
    """SIGINT or SIGTERM came."""


def main() -> int:
    """Run the program; returns its exit code."""
    options = _parse()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        version = options.version or pom_version()
        java, jars = find_java(), resolve_jars(version)
        if not options.jars_only:
            run(options, version, java, jars)
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except _Stopped:
        return 0
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run one Apache Kafka broker for development and tests.")
    parser.add_argument("--version", help=f"Kafka's version (default: {pom_version()}, from pom.xml)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep topics here (default: a directory for this run)")
    parser.add_argument("--keep", action="store_true", help="keep that directory, not only the log in it")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: that of the last start, or a free one)")
    parser.add_argument("--heap", default="512m", metavar="SIZE", help="the broker's Java heap (default: 512m)")
    parser.add_argument("--json", action="store_true", help="print one JSON object when the broker answers")
    parser.add_argument("--jars-only", action="store_true", help="fetch the jars, start nothing")
    parser.add_argument("--until-stdin-closes", action="store_true", help="also stop at the end of standard input")
    return parser.parse_args()


def _stop(_signal: int, _frame: object) -> None:
    _ignore_signals()  # once is enough
    raise _Stopped


def _ignore_signals() -> None:
    """From here on the broker is being stopped, and nothing may interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(options: argparse.Namespace, version: str, java: str, jars: Path) -> None:
    """Start the broker, tell its address, and keep it until a signal; StartError where it fails or ends by itself."""
    with _data_directory(options.data, keep=options.keep) as data:
        port = write_properties(data, options.port)
        log = data / LOG
        classpath = f"{jars}{os.sep}*"
        _format_storage(java, classpath, data, log)
        command = [java, f"-Xmx{options.heap}", *JAVA_OPTIONS, "-cp", classpath, "kafka.Kafka", str(_properties(data))]
        with log.open("ab") as out:
            # A session of its own: Ctrl-C at the terminal is for this process, which then stops the broker.
            broker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            _wait_until_it_answers(broker, port, log)
            _announce(options, version, port, broker.pid, data, log)
            _wait_for_end(broker, log, watch_stdin=options.until_stdin_closes)
        finally:
            _terminate(broker)


# --- what must be there -----------------------------------------------------------------------------------------


def pom_version() -> str:
    """Kafka's version as `pom.xml` has it."""
    found = re.search(r"<kafka\.version>(.+?)</kafka\.version>", POM.read_text())
    if found is None:
        raise StartError(f"{POM} names no kafka.version")
    return found[1]


def find_java() -> str:
    """The `java` program of JAVA_HOME or PATH; StartError where it is missing or too old."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}{os.sep}bin" if home else None)
    if java is None:
        raise StartError(f"Apache Kafka needs Java {OLDEST_JAVA} or newer: no `java` was found", exit_code=2)
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise StartError(
            f"Apache Kafka needs Java {OLDEST_JAVA} or newer: {java} is {version[1] if version else 'unknown'}",
            exit_code=2,
        )
    return java


def resolve_jars(version: str) -> Path:
    """The directory with the jars of that Kafka version; fetched with Maven the first time."""
    jars = JARS / version
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise StartError(f"the jars of Kafka {version} must be fetched with Maven: no `mvn` was found", exit_code=2)
    JARS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=JARS, prefix=f".{version}-") as partial:
        _fetch(maven, version, Path(partial))
        with contextlib.suppress(OSError):  # somebody else was faster
            # Renamed only when complete: a directory with the version's name always has all its jars.
            Path(partial, "jars").rename(jars)
    return jars


def _fetch(maven: str, version: str, directory: Path) -> None:
    command = [maven, "--batch-mode", "--quiet", "--file", str(POM), f"-Dkafka.version={version}"]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={directory / 'jars'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        reason = errors[0].partition("ERROR")[2].lstrip("] ") if errors else f"exit code {done.returncode}"
        raise StartError(f"Maven cannot fetch the jars of Kafka {version}: {reason}", exit_code=2)


# --- the node ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _data_directory(given: Path | None, *, keep: bool) -> Iterator[Path]:
    """The directory of the broker's data; of one that was not asked for, only the log is left at the end."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
    elif keep:
        yield Path(tempfile.mkdtemp(prefix="kafka-"))
    else:
        directory = Path(tempfile.mkdtemp(prefix="kafka-"))
        try:
            yield directory
        finally:
            for entry in directory.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != LOG:
                    entry.unlink()


def _properties(data: Path) -> Path:
    return data / "server.properties"


def write_properties(data: Path, port: int | None) -> int:
    """Write the node's configuration; returns the port for clients, by default the one of the last start."""
    last = _last_ports(data)
    port = port or last.get("PLAINTEXT") or _free_port()
    controller_port = last.get("CONTROLLER") or _free_port()
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{HOST}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data / "topics"),
        "auto.create.topics.enable": "false",  # a misspelt topic should be an error
        "group.initial.rebalance.delay.ms": "0",  # nobody is waited for
        # After a kill the node must wait for its former self's session to end; 9 s by default.
        "broker.session.timeout.ms": "4000",
        "broker.heartbeat.interval.ms": "500",
        # One broker holds the only copy of everything.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # 50 each by default: many files, and time to open them.
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.num.partitions": "8",
    }
    _properties(data).write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    return port


def _last_ports(data: Path) -> dict[str, int]:
    """The ports by listener of the last start on this directory, so that clients find the broker again."""
    if not _properties(data).exists():
        return {}
    listeners = re.search(r"^listeners=(.*)$", _properties(data).read_text(), re.MULTILINE)
    return {name: int(port) for name, port in re.findall(r"(\w+)://[^:,]*:(\d+)", listeners[1] if listeners else "")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _format_storage(java: str, classpath: str, data: Path, log: Path) -> None:
    if (data / "topics" / "meta.properties").exists():
        return  # from an earlier start
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [java, "-cp", classpath, "kafka.tools.StorageTool", "format"]
    # In one argument: an id may begin with "-".
    command += [f"--cluster-id={cluster}", "--config", str(_properties(data))]
    with log.open("ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    if done.returncode != 0:
        raise StartError(f"the broker's storage cannot be formatted: {_last_line(log)} (log: {log})")


def _wait_until_it_answers(broker: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while not _answers(port):
        if broker.poll() is not None:
            raise StartError(f"Kafka ended while starting: {_last_line(log)} (log: {log})")
        if time.monotonic() > limit:
            raise StartError(f"Kafka does not answer after {START_LIMIT_S:g} s (log: {log})")
        time.sleep(POLL_S)


def _answers(port: int) -> bool:
    """Whether a Kafka broker answers an ApiVersions request without an error."""
    header = struct.pack(">hhih", 18, 0, 1, -1)  # API key, its version, correlation id, no client id
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(header)) + header)
            reply = connection.recv(10, socket.MSG_WAITALL)  # size, correlation id, error code
    except OSError:
        return False
    return len(reply) == 10 and struct.unpack(">iih", reply)[1:] == (1, 0)


def _announce(options: argparse.Namespace, version: str, port: int, pid: int, data: Path, log: Path) -> None:
    bootstrap = f"{HOST}:{port}"
    if options.json:
        told = {"bootstrap": bootstrap, "pid": pid, "version": version, "data": str(data), "log": str(log)}
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        sys.stdout.write(f"Kafka {version} answers at {bootstrap}\nlog: {log}\n")
    sys.stdout.flush()


def _wait_for_end(broker: "subprocess.Popen[bytes]", log: Path, *, watch_stdin: bool) -> None:
    """Wait for the end of standard input, where asked; a signal ends it too, and the broker's own end is an error."""
    while broker.poll() is None:
        if not watch_stdin:
            with contextlib.suppress(subprocess.TimeoutExpired):
                broker.wait(1.0)
        elif select.select([sys.stdin], [], [], POLL_S)[0] and not os.read(sys.stdin.fileno(), 4096):
            return
    if broker.returncode < 0:
        raise StartError(f"Kafka was ended by {signal.Signals(-broker.returncode).name} (log: {log})")
    raise StartError(f"Kafka ended with exit code {broker.returncode}: {_last_line(log)} (log: {log})")


def _terminate(broker: "subprocess.Popen[bytes]") -> None:
    _ignore_signals()
    broker.terminate()
    try:
        broker.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        broker.kill()
        broker.wait()


def _last_line(log: Path) -> str:
    """The line of the log that most likely says why: the last error, or else the last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"ERROR|FATAL|Exception", line) and not line.startswith("\t")]
    return (errors or lines or ["nothing was logged"])[-1].strip()


if __name__ == "__main__":
    sys.exit(main())

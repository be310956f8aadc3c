"""A Kafka broker for demos and quick tests, in a process of its own.

It is librdkafka's mock cluster, which is shipped inside the confluent-kafka wheel: it speaks the real protocol, starts
in a fraction of a second, needs no Java and no container, and forgets everything when it ends. POSIX only.

Limits, all of librdkafka's making, that demos and tests must respect:

- A partition keeps its newest 5 MiB, or 100,000 record batches, and drops the oldest **silently**: pace a producer by
  the consumer's progress, and never blame the consumer for what the broker dropped.
- No CreateTopics: topics are named, with their partition counts, when the broker starts. A client that asks for the
  metadata of another topic by name creates it, with 4 partitions.
- One consumer per group. Of two aiokafka consumers in a group the second often fails with "InvalidRequestError": the
  broker answers the group's SyncGroup as soon as the leader's has come, and refuses the later ones.
- A group's first consumer joins within milliseconds. After one has left, or was killed, the next one waits for the
  session timeout less 1 s, or twice that: 9 s and 19 s were measured at aiokafka's default of 10 s. Set it small.
- No compaction, no look-up by time, no SASL, no TLS, no size limit per record: 2 MiB and 6 MiB records were taken.
- Transactions are answered and not carried out: test exactly-once on Apache Kafka.
- A fetch that finds nothing waits its full time, so latency measured here means nothing.

This module knows nothing about NextMove's own topics: callers name them.
"""

import argparse
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

HOST = "127.0.0.1"
_BROKER_ID = 1  # librdkafka numbers the brokers of a mock cluster from 1
_START_LIMIT_S = 30.0  # starting takes about 0.2 s; the rest is for a loaded machine
_STOP_LIMIT_S = 5.0
_ORPHAN_CHECK_S = 1.0
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class BrokerError(Exception):
    """The embedded broker cannot start or has ended; the message is one line, meant for the user."""


class EmbeddedBroker:
    """The broker in a child process, for as long as the `with` block lasts.

    The child ends with `stop()`, and also when this process dies in any way, SIGKILL included: it watches for the
    end of its standard input, which only this process holds.

    Args:
        topics: partition count of each topic to create.
        port: port to listen on; 0 picks a free one.
    """

    def __init__(self, topics: Mapping[str, int] | None = None, *, port: int = 0) -> None:
        self._topics = dict(topics or {})
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._bootstrap = ""

    @property
    def bootstrap(self) -> str:
        """Address for clients, "127.0.0.1:PORT"; BrokerError before `start()`."""
        self._require_started()
        return self._bootstrap

    @property
    def pid(self) -> int:
        """Process id of the running broker; BrokerError before `start()` and after `stop()`."""
        return self._require_started().pid

    def start(self) -> Self:
        """Start the child and wait until it accepts connections; BrokerError where it cannot."""
        if self._process is not None:
            raise BrokerError(f"the embedded broker already runs at {self._bootstrap}")
        _check_topics(self._topics)
        with tempfile.TemporaryFile() as errors:  # a file: nobody has to drain it, unlike a pipe
            self._process = _spawn(self._topics, self._port, errors)
            try:
                self._bootstrap = _read_address(self._process, errors)
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """End the child and wait until it is gone; does nothing where none runs."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _require_started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise BrokerError("the embedded broker does not run: call start() first")
        return self._process


def serve(
    topics: Mapping[str, int],
    *,
    on_ready: Callable[[str], object],
    stop_event: threading.Event | None = None,
    port: int = 0,
) -> None:
    """Run the broker inside this process until told to stop.

    Args:
        topics: partition count of each topic to create.
        on_ready: called once with the address for clients, when they can connect.
        stop_event: ends the broker when set. Without one, SIGINT or SIGTERM does; then call from the main thread.
        port: port to listen on; 0 picks a free one.

    Raises:
        BrokerError: where the broker cannot start, the port is taken, or a topic is not possible.
    """
    _check_topics(topics)
    if stop_event is not None:
        with _mock_cluster(topics, port) as bootstrap:
            on_ready(bootstrap)
            stop_event.wait()
        return
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    # Blocked and then waited for: no handler, so nothing can be interrupted half-way.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    try:
        with _mock_cluster(topics, port) as bootstrap:
            on_ready(bootstrap)
            signal.sigwait(stop_signals)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parse_topics(arguments: Sequence[str]) -> dict[str, int]:
    """Read "NAME=PARTITIONS" arguments ("NAME" alone means one partition); BrokerError where one is malformed."""
    topics: dict[str, int] = {}
    for argument in arguments:
        name, _, count = argument.partition("=")
        if count and not count.isdecimal():
            raise BrokerError(f"{argument!r}: a topic is given as NAME=PARTITIONS")
        topics[name] = int(count or 1)
    _check_topics(topics)
    return topics


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m stream_app.broker`: print the address, serve, and return the exit code (2: could not start)."""
    parser = argparse.ArgumentParser(prog="python -m stream_app.broker", description="An embedded Kafka broker.")
    parser.add_argument("--topic", action="append", default=[], metavar="NAME=PARTITIONS", help="a topic to create")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--until-stdin-closes", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        topics = parse_topics(options.topic)
        if options.until_stdin_closes:
            _serve_parent(topics, options.port)
        else:
            serve(topics, on_ready=_print_address, port=options.port)
    except BrokerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _check_topics(topics: Mapping[str, int]) -> None:
    for name, partitions in topics.items():
        if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
            raise BrokerError(f"{name!r} is no topic name: 1 to 249 letters, digits, '.', '_' and '-'")
        if partitions < 1:
            raise BrokerError(f"topic {name!r} needs at least 1 partition, not {partitions}")


# --- the child process ------------------------------------------------------------------------------------------


def _spawn(topics: Mapping[str, int], port: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stream_app.broker", "--until-stdin-closes", f"--port={port}"]
    command += [f"--topic={name}={partitions}" for name, partitions in topics.items()]
    # The child must find this very package, wherever the parent was started.
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C at the terminal is for the parent, which then stops the child
        )
    except OSError as error:
        raise BrokerError(f"the embedded broker did not start: {error}") from None


def _read_address(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_LIMIT_S)
    if not readable:
        raise BrokerError(f"the embedded broker did not start within {_START_LIMIT_S:g} s")
    address = process.stdout.readline().decode().strip()
    if not address:
        process.wait(_STOP_LIMIT_S)
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        raise BrokerError(lines[-1] if lines else f"the embedded broker ended with exit code {process.returncode}")
    return address


def _serve_parent(topics: Mapping[str, int], port: int) -> None:
    """Serve until the parent closes our standard input or is gone."""
    parent = os.getppid()
    with _mock_cluster(topics, port) as bootstrap:
        _print_address(bootstrap)
        # The parent never writes: readable means closed. Its own forks may hold a copy of the pipe open, hence getppid.
        while os.getppid() == parent and not select.select([sys.stdin], [], [], _ORPHAN_CHECK_S)[0]:
            pass


def _print_address(bootstrap: str) -> None:
    sys.stdout.write(f"{bootstrap}\n")
    sys.stdout.flush()


# --- librdkafka's mock cluster, by ctypes -----------------------------------------------------------------------


@contextmanager
def _mock_cluster(topics: Mapping[str, int], port: int) -> Iterator[str]:
    """A one-broker mock cluster in this process; yields its address."""
    with ExitStack() as stack:
        library = _load_library()
        # Taken first: a port in use is the failure that users meet.
        listener = stack.enter_context(_listen(port)) if port else None
        client = _new_client(library)
        stack.callback(library.rd_kafka_destroy, client)
        cluster = library.rd_kafka_mock_cluster_new(client, 1)
        if not cluster:
            raise BrokerError("the embedded broker did not start: librdkafka made no mock cluster")
        stack.callback(library.rd_kafka_mock_cluster_destroy, cluster)
        # A lone consumer joins its group at once; the default delay is 3 s.
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
        for name, partitions in topics.items():
            code = library.rd_kafka_mock_topic_create(cluster, name.encode(), partitions, 1)
            _check(library, code, f"topic {name!r} was not created")
        bootstrap = library.rd_kafka_mock_cluster_bootstraps(cluster).decode()
        if listener is not None:
            _move(library, cluster, bootstrap, listener)
            bootstrap = f"{HOST}:{port}"
        yield bootstrap


def _load_library() -> ctypes.CDLL:
    """The librdkafka that confluent-kafka's extension module is linked with, its functions typed."""
    try:
        from confluent_kafka import cimpl  # only who runs a broker needs it

        library = ctypes.CDLL(cimpl.__file__)  # a look-up in it searches what it is linked with, too
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError) as error:
        raise BrokerError(f"the embedded broker needs confluent-kafka with its bundled librdkafka: {error}") from None
    return library


_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_conf_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_conf_set": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_err2str": (ctypes.c_char_p, [ctypes.c_int]),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_topic_create": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]),
    "rd_kafka_mock_broker_set_host_port": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32],
    ),
    "rd_kafka_mock_broker_set_rtt": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int]),
}


def _new_client(library: ctypes.CDLL) -> int:
    """The librdkafka client that a mock cluster hangs on; it connects to nothing itself."""
    producer = 0  # rd_kafka_type_t: RD_KAFKA_PRODUCER
    reason = ctypes.create_string_buffer(512)
    configuration = library.rd_kafka_conf_new()
    # Errors only: it would warn that it has no broker to connect to.
    library.rd_kafka_conf_set(configuration, b"log_level", b"3", reason, len(reason))
    client: int | None = library.rd_kafka_new(producer, configuration, reason, len(reason))
    if not client:
        library.rd_kafka_conf_destroy(configuration)  # rd_kafka_new owns it only where it succeeds
        raise BrokerError(f"the embedded broker did not start: {reason.value.decode(errors='replace')}")
    return client


def _check(library: ctypes.CDLL, code: int, what: str) -> None:
    if code != 0:
        raise BrokerError(f"{what}: {library.rd_kafka_err2str(code).decode()}")


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise BrokerError(f"the embedded broker cannot listen on {HOST}:{port}: {reason}") from None
    return listener


def _move(library: ctypes.CDLL, cluster: int, bootstrap: str, listener: socket.socket) -> None:
    """Put our listening socket in the place of the cluster's own, which always gets a random port.

    librdkafka has no call for this, but it knows its listener by descriptor number only, and no client has the old
    address yet.
    """
    host, _, port = bootstrap.rpartition(":")
    os.dup2(listener.fileno(), _find_listener(host, int(port)), inheritable=False)
    new_port = listener.getsockname()[1]
    code = library.rd_kafka_mock_broker_set_host_port(cluster, _BROKER_ID, HOST.encode(), new_port)
    _check(library, code, f"the embedded broker cannot advertise {HOST}:{new_port}")
    # Its thread still polls the old socket, for up to 1 s. Any command wakes it: "no added latency" changes nothing.
    library.rd_kafka_mock_broker_set_rtt(cluster, _BROKER_ID, 0)


def _find_listener(host: str, port: int) -> int:
    """The descriptor in this process that listens at the address."""
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        try:
            copy = os.dup(descriptor)
        except OSError:
            continue  # the one that listed the directory is closed by now
        try:
            with socket.socket(fileno=copy) as candidate:
                if candidate.getsockname() == (host, port):
                    return descriptor
        except OSError:  # not a socket: then `copy` is still ours to close
            os.close(copy)
    raise BrokerError("the embedded broker cannot take the port: its own listener was not found")


if __name__ == "__main__":
    sys.exit(main())

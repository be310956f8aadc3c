"""NextMove's topics on any Kafka broker: what they should be, what they are, and how they are made.

Nothing here creates a topic by accident: topics are listed, never asked for by name, because a broker with
`auto.create.topics.enable` creates a topic that a client asks for. This module knows nothing about settings or Faust.
"""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code

DEFAULT_TIMEOUT_S = 10.0
MAX_EVENT_BYTES = 4 * 2**20
# A dead letter is the whole rejected record, and headers that say where it came from and why.
MAX_DEAD_LETTER_BYTES = MAX_EVENT_BYTES + 64 * 2**10
_DEFAULT_PORT = 9092
_POLL_S = 0.05

Security = Mapping[str, Any]
"""aiokafka's keyword arguments for TLS and log-in: `security_protocol`, `ssl_context`, `sasl_mechanism`, …"""


class TopicError(Exception):
    """Topics cannot be read, created or used; the message is one line, meant for the user."""


@dataclass(frozen=True)
class TopicPlan:
    """A topic as it should be created. `config` holds what differs from the broker's defaults, by Kafka's names."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


def plan(events: str, predictions: str, dead_letters: str, changelog: str, partitions: int) -> list[TopicPlan]:
    """The four topics of a worker, all with the same partition count: a user's records share one partition number."""
    return [
        TopicPlan(events, partitions, {"max.message.bytes": str(MAX_EVENT_BYTES)}),
        TopicPlan(predictions, partitions),
        TopicPlan(dead_letters, partitions, {"max.message.bytes": str(MAX_DEAD_LETTER_BYTES)}),
        TopicPlan(changelog, partitions, {"cleanup.policy": "compact", "max.message.bytes": str(MAX_EVENT_BYTES)}),
    ]


async def describe(
    bootstrap: str, names: Iterable[str], timeout_s: float = DEFAULT_TIMEOUT_S, *, security: Security | None = None
) -> dict[str, int | None]:
    """The partition count of each named topic, None where there is no such topic.

    Raises:
        TopicError: no broker answers within `timeout_s` seconds.
    """
    async with _admin(bootstrap, timeout_s, security) as admin:
        found = await _partitions(admin)
    return {name: found.get(name) for name in names}


async def create(
    bootstrap: str,
    plans: Sequence[TopicPlan],
    replication_factor: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    dry_run: bool = False,
    *,
    security: Security | None = None,
) -> list[str]:
    """Create the planned topics that do not exist, and wait until the broker shows them with all their partitions.

    Topics that exist are left as they are, whatever their partition count: `check()` tells.

    Args:
        bootstrap: addresses of brokers, "HOST:PORT,HOST:PORT".
        plans: the topics to be.
        replication_factor: copies of each partition; at most the number of brokers.
        timeout_s: limit in seconds for all of it.
        dry_run: let the broker judge the plans, and create nothing.
        security: what aiokafka needs for TLS and log-in.

    Returns:
        The names that were (in a dry run: would be) created, in the order of the plans.

    Raises:
        TopicError: no broker answers within `timeout_s` seconds, or it refuses a topic. Topics before the refused
            one may have been created by then; calling again is safe.
    """
    async with _admin(bootstrap, timeout_s, security) as admin:
        found = await _partitions(admin)
        missing = [plan for plan in plans if plan.name not in found]
        if not missing:
            return []
        created = await _request_creation(admin, bootstrap, missing, replication_factor, dry_run)
        while not dry_run and any(found.get(plan.name) != plan.partitions for plan in missing if plan.name in created):
            await asyncio.sleep(_POLL_S)
            found = await _partitions(admin)
    return created


async def check(
    bootstrap: str, names: Sequence[str], timeout_s: float = DEFAULT_TIMEOUT_S, *, security: Security | None = None
) -> int:
    """The partition count that all the named topics share.

    Raises:
        TopicError: a topic is missing or the counts differ; or no broker answers within `timeout_s` seconds.
    """
    found = await describe(bootstrap, names, timeout_s, security=security)
    missing = [name for name, partitions in found.items() if partitions is None]
    if missing:
        raise TopicError(f"{_listed(found)}: create what is missing with `nextmove topics`")
    counts = {partitions for partitions in found.values() if partitions is not None}
    if len(counts) != 1:
        raise TopicError(
            f"the partition counts differ: {_listed(found)}: delete the wrong ones and create them with `nextmove topics`"
        )
    return counts.pop()


def _listed(found: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {'is missing' if count is None else f'has {count}'}" for name, count in found.items())


async def _partitions(admin: AIOKafkaAdminClient) -> dict[str, int]:
    """Partition count of every topic on the broker; a partition without a leader yet is not counted."""
    topics = await admin.describe_topics()  # all of them: see the top of the module
    return {
        topic["topic"]: sum(partition["error_code"] == 0 for partition in topic["partitions"])
        for topic in topics
        if topic["error_code"] == 0
    }


async def _request_creation(
    admin: AIOKafkaAdminClient, bootstrap: str, plans: Sequence[TopicPlan], replication_factor: int, dry_run: bool
) -> list[str]:
    """Ask the broker for the topics; the names that it accepted."""
    topics = [
        NewTopic(plan.name, plan.partitions, replication_factor, topic_configs=dict(plan.config)) for plan in plans
    ]
    try:
        await _require_controller(admin)
        response = await admin.create_topics(topics, validate_only=dry_run)
    except IncompatibleBrokerVersion:
        raise TopicError(
            f"the broker at {bootstrap} cannot create topics: if it is `nextmove broker`, name them when it starts "
            f"(missing: {', '.join(plan.name for plan in plans)})"
        ) from None
    created = []
    for name, code, *message in response.topic_errors:
        if code == TopicAlreadyExistsError.errno:
            continue  # somebody else was faster
        if code != 0:
            kind = for_code(code)
            reason = (message and message[0]) or kind.description or kind.__name__
            raise TopicError(f"the broker at {bootstrap} refused topic {name!r}: {reason}")
        created.append(name)
    return created


async def _require_controller(admin: AIOKafkaAdminClient) -> None:
    """The embedded broker names a controller that is no broker, and aiokafka would fail on that."""
    cluster = await admin.describe_cluster()
    if cluster["controller_id"] not in {broker["node_id"] for broker in cluster["brokers"]}:
        raise IncompatibleBrokerVersion("the cluster has no controller")


# --- the connection ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def _admin(bootstrap: str, timeout_s: float, security: Security | None) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected client, for at most `timeout_s` seconds; every failure is one TopicError and no log line."""
    token = _SILENT.set(True)
    try:
        async with asyncio.timeout(timeout_s):
            await _find_listener(bootstrap)
            admin = AIOKafkaAdminClient(
                bootstrap_servers=bootstrap,
                request_timeout_ms=int(timeout_s * 900),  # less than the whole: the client then closes what it opened
                **(security or {}),
            )
            try:
                await _start(admin, bootstrap)
                yield admin
            finally:
                await admin.close()
    except TimeoutError:
        raise TopicError(f"no Kafka broker answers at {bootstrap} (no answer within {timeout_s:g} s)") from None
    except (KafkaError, OSError) as error:
        raise TopicError(
            f"the Kafka broker at {bootstrap} answers, and then fails (is the address that it advertises reachable "
            f"from here?): {error}"
        ) from None
    finally:
        _SILENT.reset(token)


async def _start(admin: AIOKafkaAdminClient, bootstrap: str) -> None:
    try:
        await admin.start()
    except (KafkaError, OSError):
        # aiokafka logs the reason, if any, and raises one error for all.
        raise TopicError(
            f"no Kafka broker answers at {bootstrap} (something accepts connections there, but does not speak Kafka's "
            "protocol, or not without other TLS and log-in settings)"
        ) from None


async def _find_listener(bootstrap: str) -> None:
    """Return as soon as one of the addresses accepts a connection; TopicError with the reason if none does.

    aiokafka would only say "unable to bootstrap", and log the reason.
    """
    addresses = [_address(part) for part in bootstrap.split(",")]
    probes = [asyncio.create_task(_probe(host, port)) for host, port in addresses]
    try:
        for probe in asyncio.as_completed(probes):
            reason = await probe
            if reason is None:
                return
    finally:
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
    raise TopicError(f"no Kafka broker answers at {bootstrap} ({reason})")


def _address(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT or [IPV6]:PORT."""
    text = text.strip()
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise TopicError(f"{text!r} is no address of a Kafka broker: HOST:PORT")
    return host, int(port)


async def _probe(host: str, port: int) -> str | None:
    """None where the address accepts a TCP connection, else the reason."""
    loop = asyncio.get_running_loop()
    reason = "no such host"
    try:
        for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setblocking(False)
                try:
                    await loop.sock_connect(probe, address)
                except OSError as error:
                    # asyncio's own text repeats the address; getaddrinfo's numbers are negative.
                    reason = os.strerror(error.errno).lower() if error.errno else str(error)
                else:
                    return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    return reason


_SILENT: ContextVar[bool] = ContextVar("aiokafka says nothing", default=False)


class _Silence(logging.Filter):
    """Drops what aiokafka logs on our behalf, and only that: a worker's own clients run in other contexts."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True where the record may pass."""
        return not _SILENT.get()


for _name in ("aiokafka", "aiokafka.conn", "aiokafka.cluster", "aiokafka.admin.client"):
    logging.getLogger(_name).addFilter(_Silence())

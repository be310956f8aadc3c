"""What the three pages say, and how lag is counted; that they are served is the integration tests' business."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from faust.exceptions import ConsumerNotStarted
from faust.types import TP
from prometheus_client.parser import text_string_to_metric_families

from stream_app import web
from stream_app.metrics import WorkerMetrics
from stream_app.settings import Settings
from tests.stream_app.records import NOW_MS

SETTINGS = Settings(stall_s=120)


class Consumer:
    """Partitions, their ends, and what is committed of them."""

    def __init__(self, ends: dict[TP, int | None], committed: dict[TP, int | None]) -> None:
        self.ends, self._committed_offset = ends, committed

    def assignment(self) -> set[TP]:
        return set(self.ends)

    def highwater(self, tp: TP) -> int | None:
        return self.ends[tp]


def app(ends: dict[TP, int | None] | None = None, committed: dict[TP, int | None] | None = None, **state: bool) -> Any:
    return SimpleNamespace(
        consumer=Consumer(ends or {}, committed or {}),
        tables=SimpleNamespace(actives_ready=state.get("recovered", True)),
        rebalancing=state.get("rebalancing", False),
    )


def place(partition: int, topic: str = "user-events") -> TP:
    return TP(topic, partition)


# Lag


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands at `NOW_MS`."""
    monkeypatch.setattr(web, "time", lambda: NOW_MS / 1000)


@pytest.mark.parametrize(
    ("end", "committed", "last_ms", "expected"),
    [
        (10, 4, NOW_MS - 2500, (10 - 4, 2.5)),
        (10, 10, NOW_MS - 2500, (0, 0.0)),  # quiet is not late
        (10, None, NOW_MS - 2500, (10, 2.5)),  # nothing was committed ever
        (10, 0, None, (10, 0.0)),  # nothing is done since the start: no record to take the age of
        (10, 12, NOW_MS, (0, 0.0)),  # the end is known late
        (10, 4, NOW_MS + 900, (6, 0.0)),  # the producer's clock is ahead
        (0, None, None, (0, 0.0)),
    ],
)
def test_lag_in_records_and_in_seconds(
    end: int, committed: int | None, last_ms: int | None, expected: tuple[int, float]
) -> None:
    done = {} if last_ms is None else {3: last_ms}
    found = web.lags(app({place(3): end}, {place(3): committed}), SETTINGS, done)
    assert found == {3: (expected[0], pytest.approx(expected[1]))}


def test_lag_is_of_the_input_topic_and_of_known_ends_only() -> None:
    ends = {place(0): 5, place(1): None, place(0, "nextmove-histories-changelog"): 100}
    assert web.lags(app(ends), SETTINGS, {}) == {0: (5, 0.0)}


# Readiness


def test_ready() -> None:
    assert web.readiness(app({place(0): 1}), SETTINGS) == {
        "model_loaded": True, "partitions_assigned": True, "recovered": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "state", "missing"),
    [
        ({}, {}, "partitions_assigned"),
        ({place(0, "nextmove-histories-changelog"): 1}, {}, "partitions_assigned"),
        ({place(0): 1}, {"recovered": False}, "recovered"),
        ({place(0): 1}, {"rebalancing": True}, "recovered"),
    ],
)
def test_not_ready(ends: dict[TP, int | None], state: dict[str, bool], missing: str) -> None:
    checks = web.readiness(app(ends, **state), SETTINGS)
    assert [name for name, ok in checks.items() if not ok] == [missing]


class Unstarted(Consumer):
    """As Faust's consumer answers before it is started."""

    def assignment(self) -> set[TP]:
        raise ConsumerNotStarted


def test_before_there_is_a_consumer_a_worker_is_not_ready_and_has_no_lag() -> None:
    unstarted = app()
    unstarted.consumer = Unstarted({}, {})
    assert web.readiness(unstarted, SETTINGS)["partitions_assigned"] is False
    assert web.lags(unstarted, SETTINGS, {}) == {}


# The pages


class Worker:
    def __init__(self, working_s: float) -> None:
        self.agent: Any = SimpleNamespace(working_s=working_s)
        self.metrics = WorkerMetrics(model_version="abc", device="cpu", chunk_records=8)
        self.refreshed = 0

    def refresh_metrics(self) -> None:
        self.refreshed += 1


def pages(worker: Worker, shown: Any) -> dict[str, Callable[..., Any]]:
    """The handlers by path, as Faust would have them."""
    found: dict[str, Callable[..., Any]] = {}
    shown.page = lambda path, name: lambda handler: found.setdefault(path, handler)
    web.add_pages(shown, SETTINGS, worker)
    return found


async def ask(worker: Worker, path: str, shown: Any = None) -> tuple[int, Any]:
    answer = await pages(worker, shown or app({place(0): 1}))[path](None, None)
    return answer.status, orjson.loads(answer.body)


async def test_healthy_until_a_chunk_takes_too_long() -> None:
    assert await ask(Worker(119.5), "/healthz") == (200, {"ok": True, "chunk_in_work_s": 119.5})
    assert await ask(Worker(120.5), "/healthz") == (503, {"ok": False, "chunk_in_work_s": 120.5})


async def test_the_page_of_readiness_says_what_is_missing() -> None:
    status, said = await ask(Worker(0), "/readyz", app({place(0): 1}, rebalancing=True))
    assert (status, said["ok"], said["recovered"], said["partitions_assigned"]) == (503, False, False, True)
    assert (await ask(Worker(0), "/readyz"))[0] == 200


async def test_the_metrics_are_refreshed_when_they_are_asked_for() -> None:
    worker = Worker(0)
    answer = await pages(worker, app())["/metrics"](None, make_mocked_request("GET", "/metrics"))
    families = {family.name for family in text_string_to_metric_families(answer.body.decode())}
    assert {"nextmove_records", "nextmove_model_info"} <= families
    assert worker.refreshed == 1

"""A pipeline as the settings want it."""

import os
from pathlib import Path
from typing import Literal

import pytest
import torch

from model.artifact import ArtifactError
from model.engine import Engine
from model.hiding import Hidden
from model.scorer import Scorer
from model.window import WindowRule
from stream_app import behaviors, history_codec
from stream_app.events import Reason
from stream_app.serving import load_engine, load_successor, model_directory, new_pipeline
from stream_app.settings import Settings
from tests.artefacts import published, untrained
from tests.stream_app.records import NOW_MS, event_record
from tests.stream_app.test_pipeline import Echo, Table, apply, read, reasons, run

BEHAVIORS = behaviors.load()


def test_without_a_model_it_says_how_to_get_one() -> None:
    with pytest.raises(ArtifactError, match="--model DIR or set NEXTMOVE_MODEL; `nextmove train`"):
        load_engine(Settings())


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load_engine(Settings(model=tmp_path, device="cpu"))


def test_a_file_that_holds_the_path_of_a_model(tmp_path: Path) -> None:
    version = published(tmp_path / "models" / "one", untrained())
    pointer = tmp_path / "models" / "current"
    for text in ("one", "./one\n", f"{tmp_path / 'models' / 'one'}\r\n"):
        pointer.write_text(text)
        assert model_directory(pointer).resolve() == (tmp_path / "models" / "one").resolve()
    assert load_engine(Settings(model=pointer, device="cpu")).version == version
    pointer.write_text("")
    with pytest.raises(ArtifactError, match="current is neither a model directory nor a text file that holds the path"):
        load_engine(Settings(model=pointer, device="cpu"))


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "auto"])
def test_states_are_kept_in_the_precision_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Literal["float32", "bfloat16", "auto"]
) -> None:
    published(tmp_path / "model", untrained(window=WindowRule(events=8, stride=4)))
    monkeypatch.setattr("stream_app.serving.fastest_dtype", lambda device: torch.bfloat16)
    for load in (load_engine, lambda settings: load_successor(tmp_path / "model", settings)):
        engine = load(Settings(model=tmp_path / "model", device="cpu", states_precision=wanted))
        assert engine.states is not None
        kept = engine.states._pool.keys_values[0].dtype
        assert kept == (torch.float32 if wanted == "float32" else torch.bfloat16)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_setting_for_few_events_is_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    asked = []
    monkeypatch.setattr("model.engine.LONG", 0)  # as if the catalogue was long
    new = Scorer.__init__
    monkeypatch.setattr(
        Scorer,
        "__init__",
        lambda self, *args, **how: (asked.append(how.get("few_in_int8", False)), new(self, *args, **how))[1],
    )
    published(tmp_path / "model", untrained())
    for load in (load_engine, lambda settings: load_successor(tmp_path / "model", settings)):
        asked.clear()
        load(Settings(model=tmp_path / "model", device="cpu", few_in_int8=wanted))
        assert asked == [wanted, False]  # items, categories


@pytest.mark.parametrize(("wanted", "cores", "threads", "helped"), [
    (0, None, 1, False), (0, 1, 1, False), (0, 2, 1, True), (0, 4, 1, True), (0, 5, 2, True), (1, 8, 1, False), (2, 1, 1, True), (6, 2, 3, True),
])  # fmt: skip
def test_half_of_the_threads_are_the_helpers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, cores: int | None, threads: int, helped: bool
) -> None:
    published(tmp_path / "model", untrained())
    settings = Settings(model=tmp_path / "model", device="cpu", threads=wanted)
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        first, next_ = load_engine(settings), load_successor(tmp_path / "model", settings)
        assert (torch.get_num_threads(), first.helped, next_.helped) == (threads, helped, helped)
    finally:
        torch.set_num_threads(before)


def test_a_successor_changes_no_number_of_threads_and_is_warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "model", untrained())
    warmed: list[Engine] = []
    monkeypatch.setattr(Engine, "warm", lambda engine: warmed.append(engine))
    before = torch.get_num_threads()
    engine = load_successor(tmp_path / "model", Settings(device="cpu", threads=before + 1, top_k=3))
    assert (engine.top_k, warmed, torch.get_num_threads()) == (3, [engine], before)


@pytest.mark.parametrize("listed", [True, False])
def test_a_list_of_banned_items_is_announced_and_compiled_models_are_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """What another list, or a window that is no step, needs is compiled before anybody waits; for the first model and the next."""
    published(tmp_path / "model", untrained(window=WindowRule(events=8, stride=4)))
    (tmp_path / "banned").write_text("")
    told: list[object] = []
    monkeypatch.setattr("stream_app.serving.can_compile", lambda device: True)
    monkeypatch.setattr(
        Engine, "keep_states", lambda engine, limit_bytes, *, bans_change, **_: told.append(bans_change)
    )
    monkeypatch.setattr(Engine, "warm", lambda engine: told.append("warm"))
    monkeypatch.setattr(Engine, "check_golden", lambda engine: None)
    banned = tmp_path / "banned" if listed else None
    settings = Settings(model=tmp_path / "model", device="cpu", banned_items=banned, compile=True)
    for load in (load_engine, lambda settings: load_successor(tmp_path / "model", settings)):
        load(settings)
    assert told == [listed, "warm"] * 2


def test_the_limits_of_an_event_are_those_of_the_settings() -> None:
    settings = Settings(max_event_bytes=500, max_future_s=10, lateness_s=2)
    records = [
        event_record("u", 0, NOW_MS + 10_000),
        event_record("u", 1, NOW_MS + 10_001),
        event_record("u", 2, NOW_MS + 8_000),
        event_record("u", 3, NOW_MS + 7_999),
        event_record("u", 4, NOW_MS + 10_000, text="x" * 500),
    ]
    _, outputs = run(new_pipeline(Echo(), settings, BEHAVIORS), records)
    assert reasons(outputs) == {1: Reason.FROM_THE_FUTURE, 3: Reason.TOO_LATE, 4: Reason.TOO_LARGE}


def test_the_worker_is_the_source_of_its_predictions() -> None:
    _, outputs = run(new_pipeline(Echo(), Settings(app_id="shop-7"), BEHAVIORS), [event_record("u", 0)])
    ((_, message),) = outputs.predictions
    assert dict(message.headers)["ce_source"] == b"nextmove/shop-7"


def test_histories_are_read_from_the_table_and_kept_for_redelivery() -> None:
    table: Table = {}
    for offset in range(20):
        steps = new_pipeline(Echo(), Settings(), BEHAVIORS, table.get)
        _, outputs = run(steps, [event_record("u", offset)], settled=1)
        apply(table, outputs)
    assert read(outputs.predictions[0][1]).history_length == Echo().window.events
    assert len(history_codec.decode(table[b"u"]).entries) == 20  # all but the first may come again


def test_an_unreadable_table_stops_a_pipeline_rather_than_forgetting_a_user() -> None:
    with pytest.raises(history_codec.HistoryError):
        run(new_pipeline(Echo(), Settings(), BEHAVIORS, lambda _: b"damaged"), [event_record("u", 0)])


def test_users_expire_where_there_is_a_table_to_walk_over() -> None:
    table: Table = {}
    settings = Settings(lateness_s=1, chunk_records=1)
    for users, left in ((lambda: list(table.items()), {b"ben", b"carl"}), (None, {b"anna", b"ben", b"carl"})):
        table.clear()
        steps = new_pipeline(Echo(), settings, BEHAVIORS, table.get, users)
        idle_ms = Echo().window.age_ms + 1000
        for offset, (user, ms) in enumerate([("anna", 0), ("ben", 500), ("carl", idle_ms + 1)]):
            record = event_record(user, offset, NOW_MS + ms)._replace(timestamp=NOW_MS + 9999)
            apply(table, run(steps, [record])[1])
        assert set(table) == left


def test_an_idle_time_that_windows_outlast_is_refused() -> None:
    for users in (list, None):
        with pytest.raises(ValueError, match="idle_s must be at least 3601: "):
            new_pipeline(Echo(), Settings(idle_s=3600), BEHAVIORS, users=users)
    assert Settings(idle_s=float("inf")).idle_s == float("inf")
    new_pipeline(Echo(), Settings(idle_s=float("inf")), BEHAVIORS, users=list)


def test_nobody_expires_among_the_records_of_two_chunks_which_may_come_again() -> None:
    """So many can be durable and not committed after a crash, and be cut otherwise."""
    table: Table = {}
    settings = Settings(chunk_records=3, idle_s=10**9)
    steps = new_pipeline(Echo(), settings, BEHAVIORS, table.get, lambda: list(table.items()))
    _, outputs = run(new_pipeline(Echo(), settings, BEHAVIORS), [event_record("idle", 0, NOW_MS - 10**12 - 1)])
    apply(table, outputs)
    expired = [run(steps, [event_record("busy", offset, NOW_MS)])[0].expired for offset in range(1, 10)]
    assert expired == [[]] * (2 * settings.chunk_records) + [["idle"]] + [[]] * 2


def test_the_settings_hide_items(tmp_path: Path) -> None:
    published(tmp_path / "model", untrained())
    (tmp_path / "banned").write_text("i0\nelsewhere\n")
    settings = Settings(model=tmp_path / "model", device="cpu", banned_items=tmp_path / "banned", hide_seen=True)
    engine = load_engine(settings)
    assert engine.hidden == Hidden(frozenset({"i0", "elsewhere"}), seen=True)
    _, outputs = run(new_pipeline(engine, settings, BEHAVIORS), [event_record("u", 0, item_id="i1")])
    names = [item.item_id for item in read(outputs.predictions[0][1]).next_items]
    assert len(names) == 10
    assert not {"i0", "i1", "elsewhere"} & set(names)
    (tmp_path / "banned").unlink()
    with pytest.raises(ValueError, match="cannot read .*banned: No such file"):
        load_engine(settings)

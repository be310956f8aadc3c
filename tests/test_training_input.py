"""Logs that are strange: `nextmove train` learns from them, or says in one line what to do."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stream_app.cli import app

HOUR_MS = 3_600_000
HEADER = "user_id,timestamp,behavior,item_id,category\n"
Row = tuple[str, int, str, str]


def train(tmp_path: Path, rows: Sequence[Row], *options: str, header: str = HEADER) -> Result:
    """`nextmove train` on a CSV log of these rows."""
    lines = (f'"{user}",{time},{behavior},"{item}",c\n' for user, time, behavior, item in rows)
    (tmp_path / "log.csv").write_text(header + "".join(lines), "utf-8")
    return CliRunner().invoke(
        app, ["train", str(tmp_path / "log.csv"), "--out", str(tmp_path / "model"), "-q", *options]
    )


def events(
    users: int = 3,
    each: int = 12,
    user: Callable[[int], str] = "u{}".format,
    item: Callable[[int], str] = "i{}".format,
    behaviors: Sequence[str] = ("view", "view", "purchase"),
    step_ms: int = HOUR_MS // 7,
) -> list[Row]:
    """Users who go round three items at equal paces."""
    return [
        (user(number), 1_600_000_000_000 + step * step_ms, behaviors[step % len(behaviors)], item(step % 3))
        for step in range(each)
        for number in range(users)
    ]


LEARNABLE = {
    "one user": events(users=1, each=30),
    "one item": events(item=lambda _: "only"),
    "one behaviour": events(behaviors=["view"]),
    "one behaviour, never the goal": events(behaviors=["favorite"]),
    "equal timestamps": events(step_ms=0),
    "a user with one event": [*events(), ("lone", 1_600_000_000_001, "view", "i1")],
    "ids with spaces": events(user=" user {} ".format, item="an item {}".format),
    "ids in Unicode": events(user="пользователь-{}😀".format, item="商品\u202e{}".format),
    "long ids": events(user=lambda number: str(number) * 256, item=lambda number: str(number) * 300),
}


@pytest.mark.parametrize("rows", LEARNABLE.values(), ids=LEARNABLE)
def test_a_strange_log_is_learned_from(tmp_path: Path, rows: list[Row]) -> None:
    done = train(tmp_path, rows, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["events"] == int(len(rows) * 0.8)
    assert result["cleaning"]["before"] == result["cleaning"]["after"]


REFUSED = {
    "no row": ([], "no usable rows"),
    "no usable row": ([("", 5, "view", "x")], "no usable rows"),
    "only user ids that are too long": (events(user=lambda _: "é" * 150), "user_too_long"),
    "unknown behaviours": (events(behaviors=["fly"]), "'fly' is none of view"),
    "users with one event": (events(each=1), "no user has two events in the training part; give a longer log"),
    "one event": (events(users=1, each=1), "no user has two events"),
}


@pytest.mark.parametrize(("rows", "message"), REFUSED.values(), ids=REFUSED)
def test_a_log_that_cannot_be_learned_from_is_one_line(tmp_path: Path, rows: list[Row], message: str) -> None:
    refused(tmp_path, train(tmp_path, rows), message)


def refused(tmp_path: Path, done: Result, message: str) -> None:
    assert done.exit_code == 2, done.output
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("nextmove: ")
    assert message in line
    assert "Traceback" not in done.output
    assert not (tmp_path / "model").exists()


def test_a_mapping_that_names_a_column_that_is_not_there(tmp_path: Path) -> None:
    mapping = tmp_path / "mine.toml"
    mapping.write_text('[columns]\nuser_id = "client"\nbehavior = "behavior"\ntimestamp = "timestamp"\n')
    done = train(tmp_path, events(), "--mapping", str(mapping))
    refused(tmp_path, done, "missing column client; the file has user_id, timestamp, behavior, item_id, category")


def test_a_rule_that_leaves_nothing(tmp_path: Path) -> None:
    refused(tmp_path, train(tmp_path, events(), "--rare-items", "500"), "cleaning leaves nothing")


def test_what_was_left_out_is_one_line_unless_nothing_is_cleaned(tmp_path: Path) -> None:
    rows = [*events(each=10), *events(each=10)]
    done = train(tmp_path, rows, "--split", "1")
    assert "cleaning: 30 of 60 events left out: 30 equal row\n" in done.stderr
    assert "30 events of 3 users" in done.stdout
    assert "60 events of 3 users" in train(tmp_path, rows, "--split", "1", "--no-clean").stdout


# --- protocols ------------------------------------------------------------------------------------------------------


def evaluate(tmp_path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), str(tmp_path / "log.csv"), *options])


def test_leave_one_out_and_daily_want_a_model_that_has_not_seen_what_they_test(tmp_path: Path) -> None:
    assert train(tmp_path, events(each=40, step_ms=4 * HOUR_MS), "--protocol", "leave-one-out").exit_code == 0
    last = json.loads(evaluate(tmp_path, "--protocol", "leave-one-out", "--json").stdout)
    assert (last["test_events"], last["users"]) == (3, 3)
    assert ", leave-one-out" in evaluate(tmp_path, "--protocol", "leave-one-out").stdout
    for protocol in ("time", "daily"):
        refused_evaluation = evaluate(tmp_path, "--protocol", protocol)
        assert refused_evaluation.exit_code == 2
        assert "train with --protocol time" in refused_evaluation.stderr


def test_day_by_day_after_the_training(tmp_path: Path) -> None:
    assert train(tmp_path, events(each=40, step_ms=4 * HOUR_MS), "--split", "0.5").exit_code == 0
    days = json.loads(evaluate(tmp_path, "--protocol", "daily", "--json").stdout)
    assert list(days) == ["2020-09-17", "2020-09-18", "2020-09-19", "2020-09-20"]
    assert [day["test_events"] for day in days.values()] == [3 * 6, 3 * 6, 3 * 6, 3]
    assert "train with --protocol leave-one-out" in evaluate(tmp_path, "--protocol", "leave-one-out").stderr
    assert train(tmp_path, events(each=40, step_ms=4 * HOUR_MS), "--split", "1").exit_code == 0
    assert "train with a smaller --split" in evaluate(tmp_path, "--protocol", "daily").stderr

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_app import event_logs, log_formats
from stream_app.behaviors import load, parse
from stream_app.event_logs import LogError, read_log, to_records, write_jsonl

COLUMNS = ["user_id", "timestamp", "behavior", "item_id", "category", "price"]
TAOBAO = "user_id,item_id,category_id,behavior,timestamp\n"
REES46 = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"


@pytest.fixture(scope="module")
def real() -> Path:
    """The public logs, which may not be redistributed: beside the checkout, and always there in CI."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir() and not os.environ.get("CI"):
        pytest.skip(f"the public logs are not at {folder}")
    return folder


def written(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mapped(tmp_path: Path, toml: str) -> Path:
    return written(tmp_path, "mine.toml", toml)


# --- the public logs ------------------------------------------------------------------------------------------------


def test_taobao_users(real: Path) -> None:
    log = read_log(real / "taobao/users_815.csv.gz")
    assert (log.report.format, log.report.rows, log.report.events, log.report.dropped) == ("taobao", 84488, 84488, {})
    assert log.frame.columns == COLUMNS
    assert log.frame["user_id"].n_unique() == 815
    assert set(log.frame["behavior"]) == {"view", "add_to_cart", "favorite", "purchase"}
    assert log.frame["timestamp"].is_sorted()
    assert log.frame["timestamp"][0] == 1505117799 * 1000  # outside the week, and kept
    assert log.frame["price"].null_count() == 84488


def test_taobao_order_inside_a_user_is_that_of_the_file(real: Path) -> None:
    frame = read_log(real / "taobao/users_815.csv.gz").frame
    rows = pl.read_csv(real / "taobao/users_815.csv.gz", infer_schema=False)
    assert frame.sort("user_id", maintain_order=True)["item_id"].equals(
        rows.sort("user_id", maintain_order=True)["item_id"]
    )


def test_taobao_two_hours(real: Path) -> None:
    report = read_log(real / "taobao/two_hours_all_users.csv.gz").report
    assert (report.rows, report.events) == (110300, 110300)


def test_rees46_has_a_row_cut_off_and_five_duplicates(real: Path) -> None:
    log = read_log(real / "rees46/2019-oct-first-hours.csv.gz")
    assert log.report.format == "rees46"
    assert log.report.rows == 17435
    assert log.report.dropped == {"malformed": 1, "duplicate": 5}
    assert log.frame.columns == [*COLUMNS, "session_id"]
    assert log.frame["category"].null_count() == 0
    assert "electronics.smartphone" in log.frame["category"]
    assert "2103807459595387724" in log.frame["category"]  # no category_code on that row
    assert log.frame.row(0, named=True)["timestamp"] == 1569888000000  # 2019-10-01T00:00:00Z
    assert log.frame.row(0, named=True)["price"] == 35.79


def test_movielens_1m_keeps_the_exact_order_of_each_user(real: Path) -> None:
    path = real / "ml-1m/ratings_ordered.tsv.gz"
    log = read_log(path)
    assert (log.report.format, log.report.events, log.report.dropped) == ("movielens-1m", 999611, {})
    assert set(log.frame["behavior"]) == {"rate"}
    rows = pl.read_csv(path, separator="\t", schema_overrides={"user": pl.String, "movie": pl.String})
    exact = rows.sort("user", "pos")
    read = log.frame.sort("user_id", maintain_order=True)
    assert read["item_id"].equals(exact["movie"])
    known = exact["timestamp"].is_not_null()
    assert (read["timestamp"].filter(known) == exact["timestamp"].filter(known) * 1000).all()


def test_movielens_100k(real: Path) -> None:
    log = read_log(real / "ml-100k/u.data.gz")
    assert (log.report.format, log.report.rows, log.report.events) == ("movielens-100k", 100000, 100000)
    assert (log.frame["user_id"].n_unique(), log.frame["item_id"].n_unique()) == (943, 1682)


def test_records_are_made_fast(real: Path) -> None:
    frame = read_log(real / "taobao/users_815.csv.gz").frame
    start = time.perf_counter()
    count = sum(1 for _ in to_records(frame))
    assert count / (time.perf_counter() - start) > 200_000  # a million and more on one quiet core


# --- each format, small ---------------------------------------------------------------------------------------------


def test_taobao_is_sorted_by_time_with_ties_in_file_order(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", TAOBAO + "1,a,7,pv,1511544071\n2,b,7,cart,1511544070\n1,c,7,buy,1511544070\n")
    frame = read_log(path).frame
    assert frame.rows() == [
        ("2", 1511544070000, "add_to_cart", "b", "7", None),
        ("1", 1511544070000, "purchase", "c", "7", None),
        ("1", 1511544071000, "view", "a", "7", None),
    ]
    assert frame.schema == {
        "user_id": pl.String(),
        "timestamp": pl.Int64(),
        "behavior": pl.String(),
        "item_id": pl.String(),
        "category": pl.String(),
        "price": pl.Float64(),
    }


def test_taobao_as_published_has_no_header(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "UserBehavior.csv", "1,2268318,2520377,pv,1511544070\n1,2,3,fav,1511544071"))
    assert log.report.format == "taobao-original"
    assert log.frame["behavior"].to_list() == ["view", "favorite"]


def test_a_known_header_is_known_in_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"user_id": [1], "item_id": [2.0], "category_id": [None], "behavior": ["pv"], "timestamp": [1511544070]},
        schema_overrides={"category_id": pl.Int64},
    ).write_parquet(path)
    log = read_log(path)
    assert log.report.format == "taobao"
    assert log.frame.rows() == [("1", 1511544070000, "view", "2", None, None)]


def test_rees46_category_code_else_category_id(tmp_path: Path) -> None:
    rows = (
        "2019-10-01 00:00:01 UTC,view,10,77,,,1.50,u,s\n"
        "2019-10-01 00:00:02 UTC,cart,10,77,shoes.boots,x,,u,s\n"
        "2019-10-01 00:00:02 UTC,cart,10,77,shoes.boots,x,,u,s\n"
        "2019-10-01 00:00:03 UTC,purchase,10,,,x,free,u,\n"
    )
    log = read_log(written(tmp_path, "2019-Oct.csv", REES46 + rows))
    assert log.report.dropped == {"duplicate": 1}
    assert log.frame["category"].to_list() == ["77", "shoes.boots", None]
    assert log.frame["price"].to_list() == [1.5, None, None]
    assert log.frame["session_id"].to_list() == ["s", "s", None]


def test_a_row_cut_off_inside_quotes_is_dropped(tmp_path: Path) -> None:
    log = read_log(written(tmp_path, "log.csv", TAOBAO + '1,a,7,pv,1511544071\n2,"b'))
    assert (log.report.rows, log.report.events, log.report.dropped) == (2, 1, {"malformed": 1})


def test_movielens_1m_times_are_filled_along_pos(tmp_path: Path) -> None:
    seconds = {1: 1_000_000_000, 3: 1_000_000_010}
    rows = [f"7\t{pos}\tm{pos}\t5\t{seconds.get(pos, '')}\n" for pos in (4, 2, 0, 3, 1)]
    log = read_log(written(tmp_path, "r.tsv", "user\tpos\tmovie\trating\ttimestamp\n" + "".join(rows)))
    assert log.frame["item_id"].to_list() == ["m0", "m1", "m2", "m3", "m4"]
    known, then = seconds[1] * 1000, seconds[3] * 1000
    assert log.frame["timestamp"].to_list() == [known, known, (known + then) / 2, then, then]


def test_movielens_1m_times_never_go_back_and_unreadable_ones_are_not_filled(tmp_path: Path) -> None:
    rows = "1\t0\ta\t5\t1000000009\n1\t1\tb\t5\tyesterday\n1\t2\tc\t5\t1000000001\n2\t0\td\t5\t\n"
    log = read_log(written(tmp_path, "r.tsv", "user\tpos\tmovie\trating\ttimestamp\n" + rows))
    assert log.frame.select("item_id", "timestamp").rows() == [("a", 1000000009000), ("c", 1000000009000)]
    assert log.report.dropped == {"bad_timestamp": 2}  # one unreadable, one user without any time


def test_json_lines_in_the_event_contract(tmp_path: Path) -> None:
    lines = [
        {"user_id": "ü 1", "behavior": "Page_View", "timestamp": 1700000000000, "item_id": "a", "price": 3, "x": {}},
        {"user_id": 2, "behavior": "search", "timestamp": "2023-11-14T23:13:20.5+01:00", "text": "boots"},
        {"user_id": "3", "behavior": "buy", "timestamp": "2023-11-14t22:13:21z", "item_id": 9, "event_id": "e"},
        {"user_id": "4", "behavior": "buy", "timestamp": "2023-11-14 22:13:22", "item_id": "b"},
    ]
    log = read_log(written(tmp_path, "log.jsonl", "\n".join(json.dumps(line) for line in lines)))
    assert log.report.format == "nextmove"
    assert log.frame.rows() == [
        ("ü 1", 1700000000000, "view", "a", None, 3.0, None),
        ("2", 1700000000500, "search", None, None, None, None),
        ("3", 1700000001000, "purchase", "9", None, None, "e"),
        ("4", 1700000002000, "purchase", "b", None, None, None),
    ]


def test_our_own_column_names_in_csv_and_parquet(tmp_path: Path) -> None:
    csv = read_log(written(tmp_path, "log.csv", "timestamp;behavior;user_id\n1700000000000;login;u\n"))
    assert csv.report.format == "nextmove"
    assert csv.frame.rows() == [("u", 1700000000000, "login", None, None, None)]
    csv.frame.with_columns(pl.from_epoch("timestamp", "ms")).write_parquet(tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet").frame.equals(csv.frame)


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ({"timestamp": [datetime(2024, 1, 1, 9, tzinfo=timezone(timedelta(hours=9)))]}, {"timestamp": 1704067200000}),
        ({"timestamp": [date(2024, 1, 1)]}, {"timestamp": 1704067200000}),
        ({"user_id": [7.0]}, {"user_id": "7"}),
        ({"user_id": [7.5]}, {"user_id": "7.5"}),
        ({"item_id": pl.Series(["i"], dtype=pl.Categorical)}, {"item_id": "i"}),
        ({"price": ["1.25"]}, {"price": 1.25}),
        ({"price": [float("inf")]}, {"price": None}),
        ({"category": [None]}, {"category": None}),
    ],
)
def test_parquet_columns_of_many_types(tmp_path: Path, column: dict[str, object], row: dict[str, object]) -> None:
    event = {"user_id": ["u"], "behavior": ["view"], "timestamp": [1700000000000], "item_id": ["i"]}
    pl.DataFrame({**event, **column}).write_parquet(tmp_path / "log.parquet")
    read = read_log(tmp_path / "log.parquet").frame.row(0, named=True)
    assert {name: read[name] for name in row} == row


def test_a_header_in_quotes_after_a_byte_order_mark_with_crlf(tmp_path: Path) -> None:
    text = "\ufeff\r\n" + '"user_id","behavior","timestamp","item_id"\r\nu,view,1700000000000,"a, b\r\nc"\r\n'
    assert read_log(written(tmp_path, "log.csv", text)).frame["item_id"].to_list() == ["a, b\r\nc"]


def test_every_reason_is_counted_once_per_row(tmp_path: Path) -> None:
    good = {"user_id": "u", "behavior": "view", "timestamp": 1700000000000, "item_id": "a"}
    rows = [
        good,
        {**good, "user_id": ""},
        {**good, "user_id": "u" * 256},
        {**good, "user_id": "é" * 129},
        {**good, "behavior": "dance", "item_id": None},
        {**good, "behavior": None},
        {**good, "item_id": ""},
        {**good, "timestamp": 631151999999},
        {**good, "timestamp": "soon"},
        {**good, "timestamp": None},
        {**good, "timestamp": 4102444800000},
        {**good, "user_id": {}},
    ]
    lines = [*map(json.dumps, rows), "", "{", "[1]", '"u"']
    report = read_log(written(tmp_path, "log.jsonl", "\n".join(lines))).report
    assert (report.rows, report.events) == (15, 2)
    assert report.dropped == {
        "malformed": 4,
        "missing_user": 1,
        "user_too_long": 1,
        "unknown_behavior": 2,
        "missing_item": 1,
        "bad_timestamp": 4,
    }
    assert list(report.dropped) == [reason for reason in event_logs.REASONS if reason in report.dropped]


def test_latest_ms_refuses_the_future(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", TAOBAO + "1,a,7,pv,1511544071\n1,a,7,pv,1511544072\n")
    assert read_log(path, latest_ms=1511544071000).report.dropped == {"bad_timestamp": 1}
    assert read_log(path, latest_ms=10**18).report.dropped == {}


def test_several_files_are_one_log(tmp_path: Path) -> None:
    late = written(tmp_path, "b.csv", TAOBAO + "1,late,7,pv,1511544079\n")
    early = written(tmp_path, "a.csv.gz", gzip.compress((TAOBAO + "1,early,7,pv,1511544071\n").encode()))
    log = read_log([late, early])
    assert log.frame["item_id"].to_list() == ["early", "late"]
    assert log.report.paths == (late, early)


def test_behaviors_may_be_ones_own(tmp_path: Path) -> None:
    video = parse('behavior = [{name = "watch", about_item = false, goal = true, aliases = ["pv"]}]')
    path = written(tmp_path, "log.csv", TAOBAO + "1,a,7,pv,1511544071\n1,a,7,buy,1511544071\n")
    log = read_log(path, behaviors=video)
    assert log.frame["behavior"].to_list() == ["watch"]
    assert log.report.dropped == {"unknown_behavior": 1}


# --- some rows at a time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 40, 1000])
def test_a_log_read_in_small_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    csv = TAOBAO + "".join(
        f'{n % 7},"i{n},\n{n % 5}",c,{("pv", "hop")[n % 9 == 8]},{1511544070 + n % 11}\n' for n in range(60)
    )
    rees = REES46 + "".join(f"2019-10-01 00:00:0{n % 5} UTC,view,{n % 3},,ü,b,1,7,s\n" for n in range(60))
    filled = "user\tpos\tmovie\trating\ttimestamp\n" + "".join(
        f"{n % 4}\t{n}\tm{n}\t5\t{1_000_000_000 + n if n % 3 else ''}\n" for n in range(60)
    )
    lines = "".join(
        json.dumps({"user_id": n, "behavior": "search", "timestamp": 1700000000000, "x": '"'}) + "\n" for n in range(60)
    )
    paths = [written(tmp_path, str(number), text) for number, text in enumerate((csv, rees, filled, lines))]
    pl.DataFrame(
        {"user_id": range(60), "behavior": ["login"] * 60, "timestamp": range(10**12, 10**12 + 60)}
    ).write_parquet(tmp_path / "p")
    paths.append(tmp_path / "p")
    monkeypatch.setattr(log_formats, "_SNIFFED", 256)  # the rest is read in blocks
    whole = [read_log(path) for path in paths]
    assert "duplicate" in whole[1].report.dropped
    assert "unknown_behavior" in whole[0].report.dropped
    for name in ("_BLOCK", "_PARQUET_ROWS"):
        monkeypatch.setattr(log_formats, name, block)
    for path, log in zip(paths, whole, strict=True):
        again = read_log(path)
        assert again.report == log.report
        assert again.frame.equals(log.frame)


def test_a_coded_log_holds_the_same_names(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", TAOBAO + "1,a,7,pv,1511544071\n2,b,,cart,1511544070\n")
    coded = read_log(path, coded=True).frame
    names = ["user_id", "behavior", "item_id", "category"]
    assert set(coded.select(names).dtypes) == {pl.Categorical()}
    text = read_log(path).frame
    assert coded.with_columns(pl.col(names).cast(pl.String)).equals(text)
    assert list(to_records(coded)) == list(to_records(text))


PEAK = """
import resource, sys
from pathlib import Path
from model.sequences import sequences
from stream_app.event_logs import read_log
read_log(Path(sys.argv[1]), coded=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = sequences(read_log(Path(sys.argv[2]), coded=True).frame)
print(len(data), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_large_log_takes_a_bounded_share_of_memory(tmp_path: Path, name: str) -> None:
    """Seven times the text at most, users' lives included; reading it whole took eleven times as much."""
    rows, random = 1_000_000, pl.int_range(1_000_000, eager=True).hash(0)
    frame = pl.DataFrame(
        {
            "user_id": random % 10_007,
            "item_id": random % 100_003,
            "category_id": random % 997,
            "behavior": pl.repeat("pv", rows, eager=True),
            "timestamp": random % 700_001 + 1_511_500_000,
        }
    )
    text = frame.write_csv().encode()
    path = written(tmp_path, name, gzip.compress(text, 1) if name.endswith(".gz") else text)
    small = written(tmp_path, "small.csv", text[: text.index(b"\n", 10_000) + 1])
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(small), str(path)], capture_output=True, text=True, check=True
    )
    events, peak = map(int, done.stdout.split())
    assert events == rows
    assert peak < 7 * len(text)


# --- records and JSON lines -----------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
events = st.fixed_dictionaries(
    {
        "user_id": names,
        "timestamp": st.integers(event_logs.EARLIEST_MS, event_logs.LATEST_MS - 1),
        "behavior": st.sampled_from(load().names),
        "item_id": names,
        "category": st.none() | names,
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    }
)


def table(rows: list[dict[str, object]]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema_overrides={"category": pl.String, "price": pl.Float64})
    return frame.select(COLUMNS).sort("timestamp", maintain_order=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(events, min_size=1, max_size=20), gz=st.booleans())
def test_json_lines_round_trip(tmp_path: Path, rows: list[dict[str, object]], gz: bool) -> None:
    frame = table(rows)
    path = tmp_path / ("log.jsonl.gz" if gz else "log.jsonl")
    write_jsonl(frame, path)
    log = read_log(path)
    assert log.report.dropped == {}
    assert log.frame.equals(frame)


def test_records_leave_nulls_out_and_keep_the_order() -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["ü", "b"],
            "timestamp": [2, 1],
            "behavior": ["view", "search"],
            "item_id": ["a b", None],
            "category": [None, None],
            "price": [float("nan"), 1.5],
            "session_id": ["s", None],
        },
        schema_overrides={"category": pl.String},
    )
    assert list(to_records(frame)) == [
        ("ü".encode(), '{"user_id":"ü","behavior":"view","timestamp":2,"item_id":"a b","session_id":"s"}'.encode()),
        (b"b", b'{"user_id":"b","behavior":"search","timestamp":1,"price":1.5}'),
    ]
    assert len(list(to_records(frame.drop("price", "session_id")))) == 2


def test_the_same_table_gives_the_same_file(tmp_path: Path) -> None:
    frame = table(
        [{"user_id": "u", "timestamp": 1, "behavior": "login", "item_id": None, "category": None, "price": 1}]
    )
    write_jsonl(frame, tmp_path / "a.jsonl.gz")
    write_jsonl(frame, tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz"]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    frame = table(
        [{"user_id": "u", "timestamp": 1, "behavior": "login", "item_id": None, "category": None, "price": 1}]
    )
    with pytest.raises(LogError, match="No such file or directory"):
        write_jsonl(frame, tmp_path / "nowhere" / "log.jsonl")

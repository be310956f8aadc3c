"""Files and mappings: what a log is told by, what a mapping may say, and that damage is always one clear line."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_app import event_logs
from stream_app.event_logs import LogError, read_log
from tests.stream_app.test_event_logs import REES46, TAOBAO, mapped, written

# --- a mapping of one's own -----------------------------------------------------------------------------------------

BANK = """
separator = "|"
timestamp_unit = "us"
[columns]
user_id = "client"
behavior = "op"
timestamp = "at"
item_id = ["product", "account"]
[behaviors]
"1" = "view"
"2" = "purchase"
"""


def test_a_mapping_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "ops.csv", "client|op|at|account|product\n7|2|1700000000000000|x|\n7|1|1700000000001499|x|y"
    )
    log = read_log(path, mapping=mapped(tmp_path, BANK))
    assert log.report.format == "mine"
    assert log.frame.select("timestamp", "behavior", "item_id").rows() == [
        (1700000000000, "purchase", "x"),
        (1700000000001, "view", "y"),
    ]


def test_a_mapping_of_json_lines_names_a_missing_key(tmp_path: Path) -> None:
    path = written(tmp_path, "ops.jsonl", '{"client": 7, "op": "1", "when": 1700000000000000, "account": "x"}\n')
    with pytest.raises(LogError, match="missing column at; the file has client, op, when, account"):
        read_log(path, mapping=mapped(tmp_path, BANK))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[columns]\nuser_id = 'u'\n", "lacks timestamp, behavior"),
        ("[columns]\nuser = 'u'\n", "user"),
        ("separator = '::'\nconstant_behavior = 'view'\n[columns]\nuser_id = 'u'\ntimestamp = 't'\n", "separator"),
        ("columns", "mine.toml"),
        ("unit = 's'\n[columns]\n", "unit"),
    ],
)
def test_a_bad_mapping_file_is_one_line(tmp_path: Path, toml: str, message: str) -> None:
    path = written(tmp_path, "log.csv", TAOBAO)
    with pytest.raises(LogError, match=message) as error:
        read_log(path, mapping=mapped(tmp_path, toml))
    assert "\n" not in str(error.value)


def test_a_mapping_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"mapping .*mine\.toml: No such file"):
        read_log(written(tmp_path, "log.csv", TAOBAO), mapping=tmp_path / "mine.toml")


def test_the_ready_formats() -> None:
    names = ["movielens-100k", "movielens-1m", "nextmove", "rees46", "taobao", "taobao-original"]
    assert list(event_logs.formats()) == names
    assert all(event_logs.formats().values())


def test_the_page_on_logs_names_every_format_and_reason_and_its_mapping_works(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text("utf-8")
    assert [name for name in (*event_logs.formats(), *event_logs.REASONS) if f"`{name}`" not in page] == []
    mapping = mapped(tmp_path, page.split("```toml\n")[1].split("```")[0])
    path = written(tmp_path, "ops.csv", "client|op|at|account|product\n7|2|1700000000|x|\n")
    assert read_log(path, mapping=mapping).frame.rows() == [("7", 1700000000000, "purchase", "x", None, None)]


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "the file is empty"),
        ("log.csv", b"\n \n", "the file is empty"),
        ("log.csv.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("log.csv.gz", b"user_id,behavior,timestamp\n", "not a gzip file"),
        ("log.csv.gz", gzip.compress(TAOBAO.encode() * 99, mtime=0)[:-12], "gzip data is damaged"),
        ("log.csv.gz", b"\x1f\x8bjunkjunkjunk", "gzip data is damaged"),
        ("log.csv", b"\x00\x01\x02\x03", "binary data"),
        ("log.csv", "größe,b\n".encode("latin-1"), "not UTF-8 text"),
        ("log.csv", b"a,b,c\n1,2,3\n", "not a known log format .* choose one of movielens-100k, .* or give a mapping"),
        ("log.parquet", b"PAR1 and then nothing PAR1", "cannot be read"),
        ("log.csv", TAOBAO.encode(), "no usable rows as taobao: the file has a header and no rows"),
        ("log.csv", (TAOBAO + "1,2,3,hop,1511544070\n").encode(), "1 unknown_behavior; 'hop' is none of view, search"),
        (
            "log.csv",
            (TAOBAO + "1,2,3,pv,1511544070000\n").encode(),
            "1 bad_timestamp; '1511544070000' .* check the unit",
        ),
        ("log.csv", (TAOBAO + ",2,3,pv,1511544070\n").encode(), "no usable rows as taobao: 1 missing_user$"),
        ("log.csv", (TAOBAO + '1,"2,3,pv,1511544070\n' * 3).encode(), "cannot be read"),
    ],
)
def test_an_unusable_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(LogError, match=message) as error:
        read_log(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_path_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="a directory; name the log files in it"):
        read_log(tmp_path)
    with pytest.raises(LogError, match="no such file"):
        read_log(tmp_path / "log.csv")
    with pytest.raises(LogError, match="no log given"):
        read_log([])


def test_an_unknown_format_lists_the_formats(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="'tmall' is not a log format; choose one of movielens-100k"):
        read_log(written(tmp_path, "log.csv", TAOBAO), format="tmall")


def test_a_format_that_does_not_fit_names_the_missing_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "log.csv", TAOBAO + "1,2,3,pv,1511544070\n")
    with pytest.raises(LogError, match=r"missing column product_id.*; the file has user_id, item_id, category_id"):
        read_log(path, format="rees46")
    with pytest.raises(LogError, match="1 columns, expected 4; check the separator"):
        read_log(path, format="movielens-100k")
    with pytest.raises(LogError, match="wants csv, but the file is jsonl"):
        read_log(written(tmp_path, "log.jsonl", '{"a": 1}\n'), format="movielens-100k")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"missing column user_id, .*; the file has a$"):
        read_log(tmp_path / "log.parquet", format="taobao")


SAMPLES = (
    (TAOBAO + "1,2,3,pv,1511544070\n1,2,3,buy,1511544071\n").encode(),
    (REES46 + '2019-10-01 00:00:00 UTC,view,1,2,"a,b",c,1.5,7,s\n').encode(),
    b'{"user_id":"u","behavior":"view","timestamp":1700000000000,"item_id":"a"}\n' * 2,
    b"user\tpos\tmovie\trating\ttimestamp\n1\t0\t2\t3\t\n1\t1\t2\t3\t1000000000\n",
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    sample, at, length = draw(st.tuples(st.sampled_from(SAMPLES), st.integers(0, 150), st.integers(0, 40)))
    return sample[:at] + draw(st.binary(max_size=12)) + sample[at + length :]


def consistent(path: Path, name: str = "auto") -> bool:
    """Whether the log was read and every row accounted for, or refused in one line."""
    try:
        report = read_log(path, format=name).report
    except LogError as error:
        return len(str(error).splitlines()) == 1
    return report.rows == report.events + sum(report.dropped.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=damaged(), name=st.sampled_from(["auto", "taobao", "rees46", "movielens-1m", "nextmove"]))
def test_damage_never_raises_anything_but_a_log_error(tmp_path: Path, data: bytes, name: str) -> None:
    assert consistent(written(tmp_path, "log", data), name)


def test_damaged_parquet_never_raises_anything_but_a_log_error(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ["u"], "behavior": ["login"], "timestamp": [1700000000000]}).write_parquet(path)
    whole = path.read_bytes()
    for at in range(4, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert consistent(path)

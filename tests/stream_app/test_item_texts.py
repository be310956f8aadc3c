"""Where texts of items come from: a catalogue in any container, or columns of a log."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from stream_app.item_texts import ItemTexts, read_texts
from stream_app.log_formats import LogError

LOG = """event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session
2019-10-01 00:00:00 UTC,view,1,7,electronics.smart_phone,acme,35.79,u,s
2019-10-01 00:00:01 UTC,view,1,7,electronics.smart_phone,later,35.79,u,s
2019-10-01 00:00:02 UTC,view,2,7,,acme,35.79,u,s
2019-10-01 00:00:03 UTC,view,3,8,,,35.79,u,s
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(LOG.encode()))
    return path


def test_columns_of_a_log_give_each_item_what_is_said_first(log: Path) -> None:
    found = read_texts("category_code,brand", [log], format="auto", mapping=None)
    assert found == ItemTexts({"1": "electronics smart phone acme", "2": "acme"}, catalogue=False)


@pytest.mark.parametrize("container", ["csv", "tsv", "jsonl", "parquet"])
def test_a_catalogue_in_any_container(container: str, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["1", "9", "10"],
            "text": ["red shoe", "blue_lamp", ""],
            "category": ["x.y", None, "z"],
            "price": [1.5, 0.25, None],
        }
    )
    path = tmp_path / f"catalogue.{container}"
    if container == "parquet":
        frame.write_parquet(path)
    elif container == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path, separator="\t" if container == "tsv" else ",")
    found = read_texts(str(path), [], format="auto", mapping=None)
    assert found == ItemTexts({"1": "red shoe", "9": "blue lamp"}, True, {"1": "x.y", "10": "z"}, {"1": 1.5, "9": 0.25})


def test_what_is_not_there_is_one_line(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no file title, and .*log.csv.gz has no column title; it has event_time, "):
        read_texts("title", [log], format="auto", mapping=None)
    catalogue = tmp_path / "catalogue.csv"
    catalogue.write_text("id,text\n1,red\n")
    with pytest.raises(LogError, match="has the columns item_id and text: .* has no column item_id; it has id, text"):
        read_texts(str(catalogue), [log], format="auto", mapping=None)
    catalogue.write_text("item_id,text\n1,\n")
    with pytest.raises(LogError, match="no item has a text"):
        read_texts(str(catalogue), [log], format="auto", mapping=None)

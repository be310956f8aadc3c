import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.cleaning import OFF, Cleaning, CleaningReport, clean, summary
from model.window import DAY_MS
from tests.model.conftest import HOUR_MS, make_log

SCHEMA = {
    "user_id": pl.String, "timestamp": pl.Int64, "behavior": pl.String, "item_id": pl.String, "category": pl.String,
}  # fmt: skip


def table(rows):
    """Rows of (user, time, behaviour, item)."""
    return pl.DataFrame([(*row, None) for row in rows], schema=SCHEMA, orient="row")


def taken(report: CleaningReport):
    return {one.rule: (one.rows, one.users) for one in report.removed if one.rows}


def with_bot(rate, hours=2):
    """Ordinary users, and one who does `rate` things in each of so many hours."""
    rows = [
        ("bot", hour * HOUR_MS + step * HOUR_MS // rate + 7, "view", f"i{hour}-{step}")
        for hour in range(hours)
        for step in range(rate)
    ]
    return pl.concat([make_log(users=30), table(rows)]).sort("timestamp", maintain_order=True)


def test_an_ordinary_log_stays_as_it_is(log):
    frame, report = clean(log, Cleaning())
    assert frame.equals(log)
    assert report.before == report.after
    assert report.line() == ""


def test_of_equal_rows_the_first_is_kept():
    frame = table([("a", 5, "view", "x"), ("a", 5, "view", "x"), ("a", 6, "view", "x"), ("b", 5, "view", "x")])
    kept, report = clean(frame, Cleaning())
    assert kept.rows() == [frame.row(0), frame.row(2), frame.row(3)]
    assert taken(report) == {"equal row": (1, 0)}


def test_rows_of_one_event_that_differ_elsewhere_are_one_event():
    frame = table([("a", 5, "view", "x"), ("a", 5, "view", "x"), ("a", 6, "view", None), ("a", 6, "view", None)])
    frame = frame.with_columns(price=pl.Series([1.0, 2.0, 3.0, 4.0]))
    kept, report = clean(frame, Cleaning())
    assert kept["price"].to_list() == [1.0, 3.0, 4.0]  # nothing says that two searches are one
    assert taken(report) == {"same event": (1, 0)}


@pytest.mark.parametrize("time", [DAY_MS, 5])
def test_where_times_are_dates_or_all_equal_equal_rows_are_events_of_their_own(time):
    frame = table([("a", time, "view", "x")] * 3)
    assert clean(frame, Cleaning())[0].height == 3


def test_rows_without_a_user_a_time_or_a_behaviour_are_no_events():
    rows = [(None, 5, "view", "x"), ("a", None, "view", "x"), ("a", 6, None, "x"), ("a", 7, "view", None)]
    kept, report = clean(table(rows), Cleaning())
    assert kept.rows() == [("a", 7, "view", None, None)]
    assert taken(report) == {"missing": (3, 0)}
    assert report.before.missing == {"user_id": 1 / 4, "timestamp": 1 / 4, "behavior": 1 / 4, "item_id": 1 / 4, "category": 1.0}  # fmt: skip


def test_times_far_from_nearly_all_others_are_impossible():
    year = 365 * DAY_MS
    strays = table([("early", -year, "view", "x"), ("user-1", year, "view", "x")])
    frame = pl.concat([make_log(), strays]).sort("timestamp", maintain_order=True)
    kept, report = clean(frame, Cleaning())
    assert taken(report) == {"impossible time": (2, 1)}
    assert kept.equals(make_log())
    (bound,) = (one.bound for one in report.removed if one.rule == "impossible time")
    assert bound.startswith("before 1969-12-")
    low, high = make_log()["timestamp"].quantile(0.01, "linear"), make_log()["timestamp"].quantile(0.99, "linear")
    edge = pl.concat([make_log(), table([("a", int(high + 0.9 * (high - low)), "view", "x")])])
    assert clean(edge, Cleaning())[0].height == edge.height


def test_a_bot_is_found_by_its_events_per_active_hour():
    kept, report = clean(with_bot(rate=900), Cleaning())
    assert taken(report) == {"bot": (2 * 900, 1)}
    assert "bot" not in set(kept["user_id"])
    assert report.line() == f"1,800 of {30 * 50 + 1800:,} events left out: 1,800 bot, 1 of 31 users with them"


def test_a_busy_user_is_no_bot():
    assert taken(clean(with_bot(rate=90), Cleaning())[1]) == {}
    assert taken(clean(with_bot(rate=90), Cleaning(bot_least=0))[1]) == {"bot": (180, 1)}


def test_the_fence_is_tukeys_in_logarithms():
    rates = [1, 2, 4, 8, 600]
    rows = [(f"u{n}", step * 5, "view", f"i{step}") for n, rate in enumerate(rates) for step in range(rate)]
    report = clean(table(rows).sort("timestamp", maintain_order=True), Cleaning(bot_fences=3.0, bot_least=0))[1]
    (bot,) = (one for one in report.removed if one.rule == "bot")
    assert bot.bound == f"more than {np.exp(np.log(8) + 3 * (np.log(8) - np.log(2))):.0f} events per active hour"
    assert (bot.rows, bot.users) == (600, 1)


def test_rare_items_go_only_when_asked():
    frame = table([("a", 1, "view", "x"), ("a", 2, "view", "x"), ("a", 3, "view", "y"), ("a", 4, "search", None)])
    assert clean(frame, Cleaning())[0].height == 4
    kept, report = clean(frame, Cleaning(rare_items=2))
    assert kept["item_id"].to_list() == ["x", "x", None]
    assert taken(report) == {"rare item": (1, 0)}


def test_all_rules_off_take_nothing_but_what_is_no_event():
    frame = pl.concat([with_bot(900), table([("a", 10**15, "view", "x")] * 2)])
    assert clean(frame, OFF)[0].equals(frame)


def test_a_summary_in_figures():
    got = summary(table([("a", 3, "view", "x"), ("a", 9, "view", "y"), ("b", 5, "buy", "x"), ("b", 6, "view", None)]))
    assert (got.events, got.users, got.items, got.from_ms, got.until_ms) == (4, 2, 2, 3, 9)
    assert got.behaviors == {"view": 3 / 4, "buy": 1 / 4}
    assert got.events_per_user == (2.0, 2.0, 2.0)
    assert got.missing["item_id"] == 1 / 4


def test_nothing_is_nothing():
    frame, report = clean(table([]), Cleaning())
    assert (frame.height, report.removed, report.before.events_per_user) == (0, (), ())


def test_a_report_survives_json():
    report = clean(with_bot(900), Cleaning())[1]
    assert msgspec.json.decode(msgspec.json.encode(report), type=CleaningReport) == report


@pytest.mark.parametrize("wrong", [{"stray_spans": -1}, {"bot_fences": float("nan")}, {"rare_items": 0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cleaning(**wrong)


events = st.tuples(
    st.sampled_from(["a", "b", None]), st.integers(-5, 5) | st.none(), st.sampled_from(["view", None]),
    st.sampled_from(["x", "y", None]),
)  # fmt: skip
strict = Cleaning(stray_spans=0.1, bot_fences=0.5, bot_least=1, rare_items=2)


@given(st.lists(events, max_size=30), st.sampled_from([Cleaning(), strict, OFF]))
def test_what_is_left_and_what_is_gone_add_up(rows, cleaning):
    frame = table(rows).with_row_index("place")
    kept, report = clean(frame.drop("place"), cleaning)
    assert report.before.events - sum(one.rows for one in report.removed) == report.after.events == kept.height
    assert report.before.users - sum(one.users for one in report.removed) == report.after.users
    assert not kept.select("user_id", "timestamp", "behavior").null_count().sum_horizontal().sum()
    left = iter(frame.drop("place").rows())
    assert all(row in left for row in kept.rows())  # in the same order

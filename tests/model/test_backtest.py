from functools import partial

import polars as pl
import pytest

from model.backtest import UPDATES, backtest
from model.evaluation import EvaluationError
from model.training import train
from model.window import DAY_MS
from tests.model.conftest import BEHAVIORS, make_log


@pytest.fixture(scope="module")
def frame():
    """Four days; on the last two everybody has moved on to items that nobody had met."""
    log = make_log(users=8, events=24)
    day = (pl.col("timestamp") - pl.col("timestamp").min()) * 4 // (pl.col("timestamp").max() + 1)
    moved = pl.when(day >= 2).then(pl.format("new-{}", "item_id")).otherwise("item_id")
    times = pl.col("timestamp").rank("ordinal").cast(pl.Int64) * 4 * DAY_MS // (pl.len() + 1)
    return log.with_columns(item_id=moved, timestamp=times).sort("timestamp", maintain_order=True)


def test_each_day_is_tested_by_what_was_known_before_it_under_every_way_to_be_up_to_date(frame):
    learned = []

    def learn(events, out, **options):
        learned.append(
            (out.name, events["timestamp"].max() // DAY_MS, options["warm"] and options["warm"].directory.name)
        )
        return train(events, BEHAVIORS, "purchase", out, **options)

    found = list(backtest(frame, learn, 3, UPDATES, epochs=1, device="cpu"))
    days = ["1970-01-02", "1970-01-03", "1970-01-04"]
    assert [(one.day, one.update) for one in found] == [(day, update) for day in days for update in UPDATES]
    assert learned == [
        ("first", 0, None),
        ("retrain-1", 1, None),
        ("fine-tune-1", 1, "first"),
        ("retrain-2", 2, None),
        ("fine-tune-2", 2, "fine-tune-1"),
    ]
    assert len({one.evaluation.model_version for one in found[:3]}) == 1
    kept = [one for one in found if one.update == "keep"]
    assert len({one.evaluation.model_version for one in kept}) == 1
    assert [one.seconds > 0 for one in kept] == [True, False, False]
    for one in found:
        inside = frame.filter(pl.col("timestamp") // DAY_MS == days.index(one.day) + 1)
        assert one.evaluation.test_events == inside.height


def test_a_log_of_too_few_days_is_one_line(frame):
    learn = partial(train, behaviors=BEHAVIORS, goal="purchase")
    with pytest.raises(EvaluationError, match="the log has 3 days with a day before them, not 4"):
        list(backtest(frame, learn, 4))
    with pytest.raises(EvaluationError, match="no update 'hope'; there are retrain, fine-tune, keep"):
        list(backtest(frame, learn, 1, ["hope"]))

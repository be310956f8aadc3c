import json
import math
import os

import numpy as np
import polars as pl
import pytest
import torch

from model import measures
from model.evaluation import EvaluationError, evaluate
from model.sequences import FrameError, sequences
from model.splits import by_time, daily, leave_one_out
from model.targets import Horizons, targets
from model.threads import threads
from model.window import DAY_MS


@pytest.fixture(scope="module")
def evaluation(engine, log):
    return evaluate(engine, log)


def slow_windows(log, split):
    """(history, next event) of every event after the split, by the plainest code."""
    rows = log.sort("timestamp", maintain_order=True).rows(named=True)
    histories = {}
    for place, row in enumerate(rows):
        history = histories.setdefault(row["user_id"], [])
        if place >= int(len(rows) * split):
            yield history[-50:], row
        history.append(row)


def test_the_baselines_by_the_plainest_code(evaluation, log):
    ranks = []
    for history, row in slow_windows(log, 0.8):
        recent = list(dict.fromkeys(one["item_id"] for one in reversed(history)))
        ranks.append(recent.index(row["item_id"]) + 1 if row["item_id"] in recent[:20] else 0)
    ranks = np.array(ranks)
    assert evaluation.test_events == len(ranks) == 2000 - int(2000 * 0.8)
    assert evaluation.scores["repeat"]["item HR@10"] == pytest.approx(measures.value(measures.hit_rate(ranks, 10), 400))
    assert evaluation.scores["repeat"]["item NDCG@10"] == pytest.approx(measures.value(measures.ndcg(ranks, 10), 400))
    assert evaluation.scores["repeat"]["item MRR@20"] == pytest.approx(
        measures.value(measures.reciprocal_rank(ranks), 400)
    )
    usual = log.head(1600)["behavior"].value_counts(sort=True)["behavior"][0]
    hits = [row["behavior"] == usual for _, row in slow_windows(log, 0.8)]
    assert evaluation.scores["majority"]["behavior accuracy"] == pytest.approx(sum(hits) / len(hits))


def test_the_model_is_scored_on_what_it_would_answer_in_the_stream(engine, evaluation, log):
    from model.window import Window

    histories, rows = zip(*slow_windows(log, 0.8), strict=True)
    windows = [
        Window(*([one[name] for one in history] for name in ("item_id", "behavior", "category", "timestamp")))
        for history in histories
    ]
    answers = engine.predict(windows, top_k=20)
    listed = [[item["item_id"] for item in answer.next_items] for answer in answers]
    ranks = measures.ranks_of(listed, [row["item_id"] for row in rows])
    assert evaluation.scores["model"]["item NDCG@10"] == pytest.approx(
        measures.value(measures.ndcg(ranks, 10), 400), abs=1e-6
    )


def test_what_is_learned_beats_chance(evaluation):
    model, popular = evaluation.scores["model"], evaluation.scores["popularity"]
    assert model["item NDCG@10"] > popular["item NDCG@10"] + 0.1
    assert model["behavior log-loss"] < evaluation.scores["majority"]["behavior log-loss"]


def test_questions_are_asked_only_where_the_log_holds_the_answer(engine, log, evaluation):
    times = log["timestamp"].to_numpy()
    horizon = engine.manifest.churn_horizon_ms
    assert times[1600] + horizon <= times[-1]  # some are asked
    assert 0 <= evaluation.scores["model"]["churn AUC"] <= 1
    assert evaluation.scores["majority"]["churn AUC"] == 0.5
    assert targets(np.array([1]), np.array([5]), np.array([False]), Horizons(1, 1), 5).churn_known.tolist() == [False]


def test_first_events_of_users_count_as_misses(engine, log):
    newcomer = log.tail(1).with_columns(user_id=pl.lit("newcomer"), timestamp=pl.col("timestamp") + 1)
    longer = evaluate(engine, pl.concat([log, newcomer]), split=1600 / 2001 + 1e-9)
    assert (longer.test_events, longer.cold_events) == (401, 1)
    shorter = evaluate(engine, log, split=0.8)
    for who in ("model", "repeat"):
        assert longer.scores[who]["item HR@10"] * 401 == pytest.approx(shorter.scores[who]["item HR@10"] * 400)


def test_the_report_is_json_without_nan_and_a_table(evaluation):
    document = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert document["model_version"] == evaluation.model_version
    heading, *rows = evaluation.rows()
    assert heading == ["measure", "model", "95 %", "best baseline", "model is"]
    assert all(len(row) == len(heading) for row in rows)
    assert sum(row[0] == "item NDCG@10" for row in rows) == 1
    assert not any(math.isnan(value) for own in evaluation.scores.values() for value in own.values())


def test_a_log_without_items_or_categories_has_no_such_rows(engine, log):
    bare = log.with_columns(item_id=pl.lit(None, pl.String), category=pl.lit(None, pl.String))
    found = evaluate(engine, bare)
    assert not [name for name in found.scores["model"] if name.startswith(("item", "category"))]
    assert "behavior accuracy" in found.scores["model"]


def test_nothing_to_evaluate_is_one_line(engine, log):
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate(engine, log, split=1.0)
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        evaluate(engine, log.head(1))
    with pytest.raises(FrameError, match="is empty"):
        evaluate(engine, log.head(0))


def test_progress_ends_at_its_total(engine, log):
    seen = []
    evaluate(engine, log, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]


def test_it_takes_half_of_the_cores_and_gives_them_back(engine, log, monkeypatch):
    asked, predict = set(), engine.predict

    def noted(windows, top_k):
        asked.add(torch.get_num_threads())
        return predict(windows, top_k)

    monkeypatch.setattr(engine, "predict", noted)
    half = max(1, os.cpu_count() // 2)
    for before in (half + 1, half):
        with threads(before):
            evaluate(engine, log)
            assert torch.get_num_threads() == before
    assert asked == {half}


def test_nothing_is_cleaned_away_before_it_is_asked(engine, log):
    """Doubled rows, a bot and a time far out count as what they are: events that a worker would have to answer."""
    late = log.tail(200).with_columns(user_id=pl.lit("bot"), timestamp=pl.lit(log["timestamp"][-1], pl.Int64))
    far = log.tail(1).with_columns(timestamp=pl.col("timestamp") * 10)
    dirty = pl.concat([log, late, late, far])
    assert evaluate(engine, dirty, split=0.5).test_events == (2000 + 2 * 200 + 1) - 1200


def test_the_last_event_of_each_user_and_no_question_that_the_choice_answers(engine, log):
    found = evaluate(engine, log, choose=leave_one_out)
    assert (found.test_events, found.users, found.cold_events) == (40, 40, 0)
    assert not [name for name in found.scores["model"] if name.startswith(("churn", "purchase"))]
    assert "item NDCG@10" in found.scores["model"]
    lasts = log.group_by("user_id").agg(pl.col("timestamp").last())["timestamp"]
    assert (found.from_ms, found.until_ms) == (lasts.min(), lasts.max())


def test_days_add_up_to_a_split_at_their_beginning(engine, log):
    folds = list(daily(sequences(log)))[1:]
    days = [evaluate(engine, log, choose=fold.chosen) for fold in folds]
    together = evaluate(engine, log, choose=lambda data: by_time(data, 2 * DAY_MS))
    assert sum(day.test_events for day in days) == together.test_events
    hits = sum(day.scores["model"]["item HR@10"] * day.test_events for day in days)
    assert hits == pytest.approx(together.scores["model"]["item HR@10"] * together.test_events)

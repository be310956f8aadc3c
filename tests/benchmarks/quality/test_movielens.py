import gzip
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.quality import movielens
from benchmarks.quality.ranking import Ranker, measures
from model.callbacks import Callback
from model.recipe import DENSE, Recipe
from model.sequences import sequences, window_list
from model.window import WindowRule
from tests.model.test_learner import Heard

RECIPE = replace(DENSE, epochs=2, positions=512)
RULE = WindowRule(events=16, age_ms=movielens.LAST_MS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 users, each through some of 60 movies in a random order, of different lengths."""
    random = np.random.default_rng(0)
    rows = [
        f"{user}\t{pos}\t{movie}\t5\t{'978300760' if pos % 10 == 0 else ''}"
        for user in range(1, 41)
        for pos, movie in enumerate(random.permutation(60)[: random.integers(20, 50)].tolist())
    ]
    random.shuffle(rows)
    path = tmp_path_factory.mktemp("data") / movielens.FILE
    path.parent.mkdir()
    path.write_bytes(gzip.compress("\n".join(["user\tpos\tmovie\trating\ttimestamp", *rows, ""]).encode()))
    return path.parents[1]


@pytest.fixture(scope="module")
def frame(folder):
    return movielens.read(folder / movielens.FILE)


def test_order_is_that_of_the_positions_and_times_are_a_day_apart(folder, frame):
    rows = pl.read_csv(folder / movielens.FILE, separator="\t").sort("user", "pos")
    data = sequences(frame)
    for user in (1, 17, 40):
        own = [
            item
            for item, number in zip(data.items, data.users, strict=True)
            if frame["user_id"].unique().sort()[int(number)] == str(user)
        ]
        assert own == [str(movie) for movie in rows.filter(pl.col("user") == user)["movie"]]
    same_user = np.diff(data.users) == 0
    assert set(np.diff(data.times_ms)[same_user].tolist()) == {24 * 3600 * 1000}


def test_nothing_is_learned_from_the_last_two_events_of_anyone(frame):
    made = movielens.split(sequences(frame.filter(pl.col("timestamp") < movielens.LAST_MS)), RULE)
    data = made.data
    last = np.append(data.first[1:] == np.arange(1, len(data)), True)  # validates: the one after it was taken away
    assert len(made.checking()) == 2 * 40
    assert not made.inside()[last].any()
    assert made.inside()[~last].all()
    assert not made.learning()[np.flatnonzero(last) - 1].any()


def test_a_measurement_and_what_it_says(folder):
    seen = []
    found = movielens.measure(folder, Heard(seen), preset="small", recipe=RECIPE, rule=RULE)
    assert (found["users"], found["items"], found["backbone"], found["seed"]) == (40, 60, "nextmove", 0)
    low, high = found["metrics"]["hr@10"][1:]
    assert low <= found["metrics"]["hr@10"][0] <= high
    assert sum(bool(one.found) for one in seen) == 2
    again = movielens.measure(folder, Heard(seen), preset="small", recipe=RECIPE, rule=RULE)
    assert again["metrics"] == found["metrics"]


def test_ranks_are_those_of_the_engines_own_scores(frame):
    """Windows cut as in serving, one by one, against the whole catalogue."""
    learner = movielens.learn(frame, Callback(), "nextmove", "small", 0, None, Recipe(), RULE)
    data, vocabulary = sequences(frame), learner.material.vocabulary
    last = np.flatnonzero(np.append(data.first[1:] == np.arange(1, len(data)), True))
    ranks = Ranker(learner.model, vocabulary, RULE).ranks(data, last)
    table, bias = learner.model.item_table()
    for place, window in zip(range(5), window_list(data, (last - 1).tolist(), RULE), strict=False):
        from model.features import encode, pad

        columns = encode([window], vocabulary)
        with torch.inference_mode():
            query = learner.model(pad(columns, columns.starts, columns.lengths, 16), last=True).items.query[0, 0]
            scores = (table @ query + bias)[1:]
        met = {
            vocabulary.items.index[item] - vocabulary.items.first
            for item in data.items[data.first[last[place]] : last[place]]
        }
        wanted = vocabulary.items.index[data.items[last[place]]] - vocabulary.items.first
        better = sum(float(scores[n]) >= float(scores[wanted]) for n in range(len(scores)) if n not in met | {wanted})
        assert ranks[place] == better + 1
    assert set(measures(ranks)) == {"ndcg@10", "hr@10"}

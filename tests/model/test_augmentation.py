import numpy as np
import torch

from model.augmentation import KEPT, crop, reorder
from model.features import Batch


def make_batch(lengths, width):
    ids = torch.arange(len(lengths) * width).view(len(lengths), width)
    columns = dict.fromkeys(("item_rows", "item_ids", "category_rows", "category_ids", "behavior_rows"), ids)
    return Batch(**columns, times_ms=ids, lengths=torch.tensor(lengths))


def test_a_crop_keeps_the_newest_events_and_at_least_half():
    starts, lengths = np.arange(200) * 100, np.full(200, 60)
    new_starts, new_lengths = crop(starts, lengths, 1.0, np.random.default_rng(0))
    assert (new_starts + new_lengths == starts + lengths).all()
    assert (new_lengths >= KEPT * lengths).all()
    assert (new_lengths < lengths).mean() > 0.9
    untouched = crop(starts, lengths, 0.0, np.random.default_rng(0))
    assert (untouched[0] == starts).all()


def test_a_reordered_stretch_holds_the_same_events_at_the_same_times():
    batch, learns = make_batch([40, 35], 40), np.ones((2, 40), np.bool_)
    shuffled, still = reorder(batch, learns, 1.0, np.random.default_rng(4))
    assert not torch.equal(shuffled.item_ids, batch.item_ids)
    assert torch.equal(shuffled.item_ids.sort(1).values, batch.item_ids)
    assert torch.equal(shuffled.item_ids, shuffled.behavior_rows)
    assert torch.equal(shuffled.times_ms, batch.times_ms)
    assert torch.equal(shuffled.item_ids[1, 35:], batch.item_ids[1, 35:])  # padding stays where it is
    assert learns.all()
    assert not still.all()


def test_no_position_learns_an_event_that_it_may_have_been_shown():
    batch = make_batch([40] * 50, 40)
    shuffled, learns = reorder(batch, np.ones((50, 40), np.bool_), 1.0, np.random.default_rng(5))
    for row, place in np.argwhere(learns[:, :-1]).tolist():
        shown = set(shuffled.item_ids[row, : place + 1].tolist())
        assert batch.item_ids[row, place + 1].item() not in shown

"""One event more: the network's heads from kept states equal those of the whole window."""

import pytest
import torch

from model.config import NextMoveConfig
from model.features import Batch
from model.incremental import Step, fill, named
from model.network import NextMoveModel
from model.pool import Event, keep, new_pool, slot_bytes

COLUMNS = ("item_rows", "item_ids", "category_rows", "category_ids", "behavior_rows", "times_ms")
USERS, WINDOW = 12, 20


def network(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"item_rows": 500, "category_rows": 40, "behavior_rows": 7, "width": 32, "layers": 2, "positions": WINDOW}
    model = NextMoveModel(NextMoveConfig(**{**sizes, "heads": 4, "kv_heads": 4, **options})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.15)
    return model


def windows():
    """Of 1 … WINDOW events; few names, so that they come again, and some events without one."""
    lengths = torch.randint(1, WINDOW + 1, (USERS,))
    lengths[:2] = torch.tensor([1, WINDOW])
    inside = torch.arange(WINDOW) < lengths[:, None]
    items, categories = (torch.randint(3, most, (USERS, WINDOW)) for most in (15, 8))
    items[torch.rand(items.shape) < 0.1] = -1
    categories[torch.rand(categories.shape) < 0.1] = -1
    times = torch.randint(0, 3 * 3_600_000, (USERS, WINDOW)).cumsum(1)
    return Batch(
        item_rows=torch.where(items < 0, 2, items) * inside,
        item_ids=torch.where(inside, items, -1),
        category_rows=torch.where(categories < 0, 2, categories) * inside,
        category_ids=torch.where(inside, categories, -1),
        behavior_rows=torch.randint(1, 7, (USERS, WINDOW)) * inside,
        times_ms=torch.where(inside, times, times.gather(1, lengths[:, None] - 1)),
        lengths=lengths,
    )


@torch.inference_mode()
def in_steps(model, batch, pool):
    """The heads at each user's last event, after some events that were filled in and the others one by one."""
    program, heads = Step(model), []
    for user, slot in enumerate(torch.randperm(USERS).tolist()):
        length = int(batch.lengths[user])
        begin = int(torch.randint(0, length, ()))
        if begin:
            columns = [getattr(batch, name)[user : user + 1, :begin] for name in COLUMNS]
            fill(program, pool, torch.tensor([slot]), Batch(*columns, torch.tensor([begin])))
        for place in range(begin, length):
            columns = [getattr(batch, name)[user : user + 1, place] for name in COLUMNS]
            event = Event(torch.tensor([slot]), torch.tensor([place]), *columns)
            found = program(pool, event, named(model, event))
            keep(pool, event, found)
        heads.append(found.heads)
    return heads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_heads_of_steps_are_those_of_whole_windows(seed, copy, kv_heads):
    model = network(seed, copy=copy, kv_heads=kv_heads)
    batch = windows()
    pool = new_pool(model, USERS, WINDOW, torch.float32)
    pool.item_ids.random_(0, 9)  # what others left behind
    pool.latest.fill_(True)
    with torch.inference_mode():
        whole = model(batch, last=True)
    for user, heads in enumerate(in_steps(model, batch, pool)):
        pairs = [(getattr(heads, name), getattr(whole, name)) for name in ("behaviors", "goal", "churn", "log_seconds")]
        for mine, theirs in ((heads.items, whole.items), (heads.categories, whole.categories)):
            pairs.append((mine.query, theirs.query))
            if copy:
                pairs.append((mine.copied.log_catalogue.exp(), theirs.copied.log_catalogue.exp()))
                pairs.append((mine.copied.pointer.exp(), theirs.copied.pointer.exp()))
        for mine, theirs in pairs:
            torch.testing.assert_close(mine[0], theirs[user], rtol=1e-5, atol=1e-5)


def test_bytes_of_a_user_are_what_the_pool_takes():
    model = network(copy=True)
    assert new_pool(model, 7, WINDOW, torch.float32).bytes == 7 * slot_bytes(model, WINDOW, torch.float32)
    states = 2 * WINDOW * (2 * 2 * 32 + 4 * 64)  # bytes: keys and values of two blocks, keys of two pointers
    assert slot_bytes(model, WINDOW, torch.float32) - slot_bytes(model, WINDOW, torch.bfloat16) == states

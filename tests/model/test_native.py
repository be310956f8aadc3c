"""Libraries through their C interface."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import pytest
import torch
from torch import Tensor, nn

from model import ahead_of_time, native
from model.ahead_of_time import AheadOfTime
from model.building import Size
from model.native import Library, is_whole

pytestmark = pytest.mark.skipif(not ahead_of_time.works_on("cpu"), reason="this torch makes no such libraries")


LIMIT_S = 10.0


class Waves(nn.Module):
    """Enough work for a tenth of a second with a few million numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        waves = x.sin().exp().cos().sin().exp().cos() * self.scale
        return waves, waves.sum()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of it, for any number of rows."""
    place = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead_of_time, "folder", lambda: place)
        AheadOfTime(Waves().eval(), lambda _: ({0: Size("rows")},))(torch.rand(5))
    (found,) = place.glob("*.so")
    return found


@pytest.fixture
def library(path: Path) -> Library:
    found = Library(path)
    found.give({"program.scale": torch.tensor([2.0])})
    return found


def test_it_answers_with_the_weights_that_it_was_given_where_they_are(path: Path) -> None:
    one, other = Library(path), Library(path)
    scale, x = torch.tensor([3.0]), torch.rand(7)
    one.give({"program.scale": scale, "another": x})
    other.give({"program.scale": torch.tensor([5.0])})
    assert one.weights == {"program.scale"}
    network = Waves().eval()
    for library, factor in ((one, 3.0), (other, 5.0), (one, 3.0)):
        network.scale.fill_(factor)
        torch.testing.assert_close(tuple(library([x])), network(x))
    network.scale.copy_(scale.fill_(7.0))
    torch.testing.assert_close(tuple(one([x])), network(x))


def test_two_threads_may_call_it_at_once(library: Library) -> None:
    """Each gets the answers to what it gave, and while one is in a long call the other comes through many."""
    begin, over = threading.Barrier(2), threading.Event()
    long, network = torch.rand(4_000_000), Waves().eval()
    wanted = library([long])

    def call() -> list[Tensor]:
        begin.wait(LIMIT_S)
        try:
            return library([long])
        finally:
            over.set()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(call)
        begin.wait(LIMIT_S)
        meanwhile = 0
        while not over.is_set():
            x = torch.rand(100)
            torch.testing.assert_close(tuple(library([x])), network(x))
            meanwhile += not over.is_set()
        torch.testing.assert_close(other.result(), wanted, rtol=0, atol=0)
    assert meanwhile >= 20


def test_others_work_while_a_library_does(library: Library) -> None:
    """Python's lock is free: in the best of a few calls, whoever else wants it waits for less than half of the call."""
    x = torch.rand(4_000_000)
    at: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            at.append(perf_counter())

    looking = threading.Thread(target=look)
    looking.start()
    waits = []
    try:
        for _ in range(5):
            began = perf_counter()
            library([x])
            ended = perf_counter()
            seen = [began, *(one for one in list(at) if began < one < ended), ended]
            waits.append(max(later - one for one, later in pairwise(seen)) / (ended - began))
    finally:
        over.set()
        looking.join()
    assert min(waits) < 0.5


def test_what_was_given_and_answered_is_let_go(path: Path) -> None:
    """By reference counts: nothing stays of a model that was replaced, nor of an answer."""
    library, weight, x = Library(path), torch.tensor([2.0]), torch.rand(4)
    counts = weight._use_count(), x._use_count()
    library.give({"program.scale": weight})
    alone = torch.zeros(3)._use_count()
    assert [answer._use_count() for answer in library([x])] == [alone] * 2
    assert x._use_count() == counts[1]
    assert weight._use_count() > counts[0]
    del library
    assert (weight._use_count(), x._use_count()) == counts


def test_without_weights_it_answers_nothing(path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"nobody has given it program\.scale"):
        Library(path)([torch.rand(3)])


def test_what_it_says_when_it_fails(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.rand(3)
    before = x._use_count()
    with pytest.raises(RuntimeError, match="^Run: .*inputs"):
        library([x, x])
    capfd.readouterr()  # it says so there as well
    assert x._use_count() == before
    assert len(library([torch.rand(3)])) == 2


@pytest.mark.parametrize("left", [0, 0.1, 0.5, 1 - 1e-6])
def test_what_is_no_whole_library(path: Path, tmp_path: Path, left: float) -> None:
    content = path.read_bytes()
    cut = tmp_path / "cut.so"
    cut.write_bytes(content[: int(left * len(content))])
    assert is_whole(path)
    assert not is_whole(cut)
    assert not is_whole(tmp_path / "nowhere")


def test_what_is_written_is_whole(tmp_path: Path) -> None:
    native.write(tmp_path / "any", b"content")
    assert is_whole(tmp_path / "any")

"""Programs for the CPU, compiled ahead of time: each is a library on disk, which the next process loads in a tenth of a second.

torch.export traces a program once, and AOTInductor makes a library of what it finds; to load that nothing is traced. A library is
for one kind of arguments: which dimensions may have any size is said beforehand, and all else about the arguments is fixed.
Libraries lie beside torch's own cache (`TORCHINDUCTOR_CACHE_DIR` moves both), under a name that says all that they depend on:
torch, the processor, the number of threads, this package's code, and the kind of arguments.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn

from model.building import Sizes, build
from model.compiling import ONE_AT_A_TIME
from model.native import Library, is_whole

log = logging.getLogger("nextmove")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

KNOWN = 256  # sets of sizes, some kB each, that are known at once: a list of banned items may often have another length
EXAMPLE = 37  # a size that is nothing else's: what is traced must not take two sizes for one


def works_on(device: str) -> bool:
    """Whether programs for that type of device are compiled this way: for CPUs, in versions of torch that were seen to do it well.

    Libraries of torch 2.11 do not hold on to weights that they share, and one of the step corrupts the heap even where it has copies;
    versions between were not tried.
    """
    return device == "cpu" and torch.__version__ >= "2.15"  # compares as versions do


Kind = tuple[Any, ...]


class Lasting(tuple[T]):
    """An argument that comes again and again, as a tuple of its own: its tensors and their kind are looked for once."""

    tensors: list[Tensor]
    kind: Kind

    def __new__(cls, argument: T) -> Lasting[T]:
        """Nobody gives its tensors other shapes, or puts them elsewhere."""
        self = super().__new__(cls, (argument,))
        self.tensors = []
        self.kind = signature((argument,), self.tensors)
        return self


class AheadOfTime(Generic[P, R]):
    """A program of tensors, whose answer it gives; arguments are tensors, tuples of them, numbers and None.

    `sizes` says of the same arguments which dimensions may have any size: the arguments' structure with `Sizes` in the place
    of tensors. It is asked when arguments have shapes that were not seen before. `about` is what the program depends on besides its
    arguments and the code of this package. Compiled when first called with a kind of arguments, if no library is on
    disk; where that fails it raises, or with `or_plain` the program goes on as it is, and says so. Several threads may call it.
    """

    def __init__(
        self,
        program: Callable[P, R],
        sizes: Callable[..., Any],
        *,
        about: str = "",
        options: Mapping[str, Any] | None = None,
        or_plain: bool = False,
    ) -> None:
        self._program: Callable[..., R] = program
        self._sizes, self._about, self._or_plain = sizes, about, or_plain
        self._options = dict(options or {})
        self._libraries: dict[Kind, Callable[[list[Tensor]], R]] = {}
        self._known: dict[Kind, Callable[[list[Tensor]], R]] = {}  # by all sizes
        self._plain = False
        self._looking = Lock()

    @property
    def is_plain(self) -> bool:
        """Whether it did not compile, and is run as it is."""
        return self._plain

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the program says to these arguments; raises TypeError where one is given by name."""
        if kwargs:
            raise TypeError(f"arguments are given by their places, not as {', '.join(kwargs)}")
        tensors: list[Tensor] = []
        shapes = signature(args, tensors)
        found = self._known.get(shapes)
        if found is None and not self._plain:
            with self._looking:
                found = self._look(shapes, args, tensors)
        return self._program(*args) if found is None else found(tensors)

    def _look(self, shapes: Kind, args: tuple[Any, ...], tensors: list[Tensor]) -> Callable[[list[Tensor]], R] | None:
        """What runs for these shapes, from now on known; None: the program as it is."""
        if shapes in self._known or self._plain:
            return self._known.get(shapes)
        if len(self._known) >= KNOWN:
            self._known.clear()  # their libraries stay
        try:
            self._known[shapes] = self._library(args, tensors)
        except Exception as error:
            if not self._or_plain:
                raise
            self._plain = True
            name = getattr(self._program, "__name__", type(self._program).__name__)
            log.warning("%s is not compiled: %s", name, " ".join(str(error).split())[:200])
        return self._known.get(shapes)

    def _library(self, args: tuple[Any, ...], tensors: list[Tensor]) -> Callable[[list[Tensor]], R]:
        sizes = [
            {place: size for place, size in of_one.items() if size.fits(tensor.shape[place])}
            for tensor, of_one in zip(tensors, leaves(self._sizes(*args), Mapping), strict=True)
        ]
        fixed = tuple(
            (tensor.dtype, *(one.get(place, size) for place, size in enumerate(tensor.shape)))
            for tensor, one in zip(tensors, sizes, strict=True)
        )
        kind = (_shape(args), fixed)
        if kind not in self._libraries:
            self._libraries[kind] = self._loaded(args, tensors, sizes, kind)
        return self._libraries[kind]

    def _loaded(
        self, args: tuple[Any, ...], tensors: list[Tensor], sizes: Sequence[Sizes], kind: Kind
    ) -> Callable[[list[Tensor]], R]:
        flat = _Flat(self._program, args).eval()
        weights = {**dict(flat.named_parameters()), **dict(flat.named_buffers())}
        of = self._program if hasattr(self._program, "__qualname__") else type(self._program)
        about = of.__module__, of.__qualname__, self._about, sorted(self._options.items())
        path = folder() / f"{named(*about, kind)}.so"
        examples = _examples(tensors, sizes)
        with ONE_AT_A_TIME:
            library = _load(path)
            if library is None:
                with one_process(path):
                    library = _load(path)
                    if library is None:
                        build(flat, sizes, examples, self._options, path)
                        library = Library(path)
        library.give({name: weights[name].detach() for name in library.weights})
        rebuild = _builder(self._program(*rebuilt(flat.args, iter(examples))))

        def run(tensors: list[Tensor]) -> R:
            answers = library([each.contiguous() for each in tensors])
            return rebuild(iter(answers))  # type: ignore[no-any-return]  # of that type

        return run


@contextmanager
def one_process(path: Path) -> Iterator[None]:
    """Of several that start with an empty folder one compiles a library, and the others wait for it: the compiler takes all that a core has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        # A process that ends, in whatever way, lets go of it; without locks, as on some network's disks, each compiles for itself
        with suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(path.with_suffix(".lock")))
        yield


def signature(args: tuple[Any, ...], tensors: list[Tensor]) -> Kind:
    """All that there is to know about arguments but the numbers; their tensors are added to the list."""
    found: list[Any] = []
    for each in args:
        if isinstance(each, Tensor):
            tensors.append(each)
            found.append((each.dtype, each.shape))
        elif isinstance(each, Lasting):
            tensors.extend(each.tensors)
            found.append(each.kind)
        else:
            found.append(signature(each, tensors) if isinstance(each, tuple) else each)
    return tuple(found)


def named(*parts: Any) -> str:
    """A name for what depends on these parts, and on what every library depends on."""
    return sha256(repr((_everywhere(), torch.get_num_threads(), parts)).encode()).hexdigest()[:32]


def folder() -> Path:
    """Where libraries lie."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "ahead_of_time"


@cache
def _everywhere() -> tuple[str, ...]:
    """torch, the processor, and this package's code."""
    code = sha256()
    here = Path(__file__).parent
    for source in sorted((*here.glob("*.py"), *here.glob("cpp-headers/*"))):
        code.update(source.read_bytes())
    try:
        described = Path("/proc/cpuinfo").read_text()
        processor = next(line for line in described.splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    return torch.__version__, platform.machine(), processor, code.hexdigest()


class _Flat(nn.Module):
    """The program as a function of its tensors alone, [tensors of the arguments] → [tensors of the answer]."""

    def __init__(self, program: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self.program, self.args = program, _shape(args)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaves(self.program(*rebuilt(self.args, iter(tensors))), Tensor))


class _Here(NamedTuple):
    """The place of a tensor."""


def _shape(part: Any) -> Any:
    """The structure without the tensors."""
    if isinstance(part, Tensor):
        return _Here()
    return _of_type(part, map(_shape, part)) if isinstance(part, tuple) and not isinstance(part, _Here) else part


def rebuilt(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The structure with these tensors in the place of its own."""
    if isinstance(like, Tensor | _Here):
        return next(tensors)
    return _of_type(like, [rebuilt(one, tensors) for one in like]) if isinstance(like, tuple) else like


def _builder(like: Any) -> Callable[[Iterator[Tensor]], Any]:
    """`rebuilt` for one structure, which looks at it only once."""
    if isinstance(like, Tensor):
        return next
    if not isinstance(like, tuple):
        return lambda _: like
    builders = [_builder(one) for one in like]
    return lambda tensors: _of_type(like, [build(tensors) for build in builders])


def leaves(part: Any, kind: type) -> list[Any]:
    """What is of this kind, in order."""
    if isinstance(part, kind):
        return [part]
    return [leaf for one in part for leaf in leaves(one, kind)] if isinstance(part, tuple) else []


def _of_type(like: tuple[Any, ...], parts: Iterable[Any]) -> Any:
    """A tuple of that type from other parts."""
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def _examples(tensors: Sequence[Tensor], sizes: Sequence[Sizes]) -> list[Tensor]:
    """Small tensors of nothing, in which each of the dimensions of any size has a size of its own."""
    numbers: dict[str, int] = {}
    examples = []
    for tensor, of_one in zip(tensors, sizes, strict=True):
        shape = list(tensor.shape)
        for place, size in of_one.items():
            number = max(EXAMPLE + 2 * len(numbers), size.least)
            shape[place] = size.multiple * numbers.setdefault(size.name, number)
        examples.append(torch.zeros(shape, dtype=tensor.dtype, device=tensor.device))
    return examples


def _load(path: Path) -> Library | None:
    """The library that lies there, if a whole one does that this machine can load: others may share the place."""
    try:
        return Library(path) if is_whole(path) else None
    except (OSError, AttributeError, RuntimeError):
        return None

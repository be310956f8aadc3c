"""A library that AOTInductor made, called through its C interface, so that Python's lock is free while it works.

torch's own loader holds the lock for as long as a library runs, and everything else that the process does in Python stands still: an
event loop, its heartbeats. ctypes lets go of it. The interface is that of torch's `aoti_runtime/interface.h`, which is kept stable.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SUM = sha256().digest_size  # bytes
CALLS = 2  # at the same time; a third would wait
POINTER, SIZE, TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


class _Weight(ctypes.Structure):
    """A weight's name in a library, and its tensor."""

    _fields_ = (("name", TEXT), ("tensor", POINTER))


class Library:
    """A library on disk, with weights of its own. Several threads may call it at once; give it weights before.

    Raises OSError where it cannot be loaded, AttributeError where it is another kind of library, and RuntimeError with what the
    library says where anything fails.
    """

    def __init__(self, path: Path) -> None:
        self._functions = _functions(ctypes.CDLL(str(path)))
        self._container = POINTER()
        self._call("CreateWithDevice", ctypes.byref(self._container), CALLS, b"cpu", None)
        self._end = weakref.finalize(self, self._functions["Delete"], self._container)
        self._end.atexit = False  # torch may be gone by then
        self._answers = self._number("NumOutputs")
        self._has_weights = False
        self._names: dict[str, bytes] = {}  # in the library, by the program's
        for place in range(self._number("NumConstants")):
            name, of_program = TEXT(), TEXT()
            self._call("GetConstantName", self._container, place, ctypes.byref(name))
            self._call("GetConstantOriginalFQN", self._container, place, ctypes.byref(of_program))
            self._names[(of_program.value or b"").decode()] = name.value or b""

    @property
    def weights(self) -> set[str]:
        """The names of those that it looks at."""
        return set(self._names)

    def give(self, weights: Mapping[str, Tensor]) -> None:
        """From now on it looks at these weights, in the memory where they are; by name, all of them and maybe others.

        They must be of the types and shapes that it was made for: nobody looks.
        """
        handles = _handles([weights[name] for name in self._names])
        entries = (_Weight * len(handles))(*map(_Weight, self._names.values(), handles))
        try:
            self._call(
                "UpdateUserManagedConstantBufferPairs",
                self._container,
                entries,
                len(entries),
                False,
                True,
            )
        finally:
            _tensors(handles)  # it has handles of its own
        self._has_weights = True

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What it answers to these tensors, which are contiguous and of the kinds that it was made for; Python's lock is free meanwhile."""
        if self._names and not self._has_weights:
            raise RuntimeError(f"nobody has given it {', '.join(self._names)}")
        handles = _handles(tensors)
        given, answers = (POINTER * len(handles))(*handles), (POINTER * self._answers)()
        try:
            self._call("Run", self._container, given, len(given), answers, len(answers), None, None)
        except RuntimeError:
            _tensors([each for each in given if each])  # those that it took are gone from there
            raise
        return _tensors(list(answers))

    def _number(self, of: str) -> int:
        found = SIZE()
        self._call(f"Get{of}", self._container, ctypes.byref(found))
        return found.value

    def _call(self, name: str, *args: Any) -> None:
        if self._functions[name](*args):
            said = TEXT()
            self._functions["LastError"](ctypes.byref(said))
            raise RuntimeError(f"{name}: {(said.value or b'').decode(errors='replace')}")


def write(path: Path, library: bytes) -> None:
    """A library on disk, its sum behind it, which the system's loader does not mind. Raises OSError."""
    path.write_bytes(library + sha256(library).digest())


def is_whole(path: Path) -> bool:
    """Whether a library lies there as `write` left it; to load half of one would end the process."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    library = memoryview(content)[:-SUM]
    return sha256(library).digest() == content[-SUM:]


@cache
def _capsules() -> tuple[Any, Any]:
    """How a pointer is taken out of what torch gives to Python, and put into it."""
    api = ctypes.PyDLL(None)  # these two need Python's lock
    take, put = api.PyCapsule_GetPointer, api.PyCapsule_New
    take.restype, take.argtypes = POINTER, (ctypes.py_object, TEXT)
    put.restype, put.argtypes = ctypes.py_object, (POINTER, TEXT, POINTER)
    return take, put


def _handles(tensors: Sequence[Tensor]) -> list[int]:
    """A handle of each; whoever gets it lets go of it."""
    take, _ = _capsules()
    return [take(each, None) for each in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]  # noqa: SLF001  # its only name


def _tensors(handles: Iterable[int | None]) -> list[Tensor]:
    """The tensors of handles, which are gone then."""
    _, put = _capsules()
    return torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs([put(each, None, None) for each in handles])  # noqa: SLF001


def _functions(library: ctypes.CDLL) -> dict[str, Any]:
    """Those of the interface that are used, by their names without what all have in common."""
    a_text, a_number, any_ = ctypes.POINTER(TEXT), ctypes.POINTER(SIZE), POINTER
    arguments: dict[str, tuple[Any, ...]] = {
        "CreateWithDevice": (ctypes.POINTER(any_), SIZE, TEXT, TEXT),
        "Delete": (any_,),
        "GetNumOutputs": (any_, a_number),
        "GetNumConstants": (any_, a_number),
        "GetConstantName": (any_, SIZE, a_text),
        "GetConstantOriginalFQN": (any_, SIZE, a_text),
        "UpdateUserManagedConstantBufferPairs": (any_, any_, SIZE, ctypes.c_bool, ctypes.c_bool),
        "Run": (any_, any_, SIZE, any_, SIZE, any_, any_),
    }
    found = {name: getattr(library, f"AOTInductorModelContainer{name}") for name in arguments}
    for name, types in arguments.items():
        found[name].argtypes = types
    return {**found, "LastError": library.AOTInductorGetLastError}

"""The behaviour vocabulary: what users can do. It is data, read from a TOML file; no behaviour is named here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec


class BehaviorError(Exception):
    """The behaviour file cannot be used; the message is one line and says why."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    about_item: bool
    goal: bool = False
    aliases: list[str] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    behavior: list[_Entry]


@dataclass(frozen=True, slots=True)
class Behaviors:
    """The closed list of behaviours, in the order of the file.

    `canonical` maps every name and alias, in lower case, to the behaviour's name.
    """

    names: tuple[str, ...]
    goal: str
    about_item: frozenset[str]
    canonical: Mapping[str, str] = field(repr=False)

    def resolve(self, name: str) -> str | None:
        """The behaviour that `name` means, or None if the vocabulary does not know it."""
        return self.canonical.get(name) or self.canonical.get(name.lower())


def parse(text: str) -> Behaviors:
    """Read a vocabulary from TOML text. Raises BehaviorError."""
    try:
        entries = msgspec.convert(tomllib.loads(text), _File).behavior
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BehaviorError(f"behaviour file: {error}") from None
    return _vocabulary(entries)


def load(path: Path | None = None) -> Behaviors:
    """The vocabulary in the file at `path`, or the one that ships with NextMove. Raises BehaviorError."""
    if path is None:
        return _shipped()
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BehaviorError(f"behaviour file {path}: {error}") from None


@cache
def _shipped() -> Behaviors:
    return parse(resources.files(__package__).joinpath("behaviors.toml").read_text("utf-8"))


def _vocabulary(entries: Sequence[_Entry]) -> Behaviors:
    goals = [entry.name for entry in entries if entry.goal]
    if len(goals) != 1:
        raise BehaviorError(f"behaviour file: exactly one behaviour must be the goal, found {goals or 'none'}")
    canonical: dict[str, str] = {}
    for entry in entries:
        if canonical.get(entry.name.lower()) == entry.name:
            raise BehaviorError(f"behaviour file: {entry.name!r} is there twice")
        if "\0" in entry.name:
            raise BehaviorError(f"behaviour file: {entry.name!r} holds a NUL, which histories keep for themselves")
        for name in (entry.name, *entry.aliases):
            if canonical.setdefault(name.lower(), entry.name) != entry.name:
                raise BehaviorError(
                    f"behaviour file: {name!r} means both {canonical[name.lower()]!r} and {entry.name!r}"
                )
    return Behaviors(
        names=tuple(entry.name for entry in entries),
        goal=goals[0],
        about_item=frozenset(entry.name for entry in entries if entry.about_item),
        canonical=canonical,
    )

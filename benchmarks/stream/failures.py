"""What can go wrong with a run, each with a message of which the first line says it all."""

from __future__ import annotations


class RunFailed(Exception):
    """A run that says nothing about speed."""


class ProgramEnded(RunFailed):
    """A program ended though nobody told it to."""


class Stalled(RunFailed):
    """Nothing moves any more, though something should."""


class WrongCount(RunFailed):
    """Events are missing, dropped, unanswered, rejected or answered twice."""


class TooShort(RunFailed):
    """All was answered before the first look."""

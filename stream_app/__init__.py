"""NextMove: next-behaviour predictions from a stream of user events."""

__version__ = "0.1.0"

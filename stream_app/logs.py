"""Logs for people or for machines; every logger of the process, Faust's included, goes the same way."""

from __future__ import annotations

import logging
from typing import Any

import faust
import structlog

from stream_app.settings import Settings


class PlainWorker(faust.Worker):
    """Faust's program without its spinner, for which every DEBUG line would be made, whatever the level."""

    def on_setup_root_logger(self, logger: logging.Logger, level: int) -> None:
        """Faust's hook: the level stays."""
        self.spinner = None


def logging_config(settings: Settings) -> dict[str, Any] | None:
    """The `dictConfig` for JSON lines on stderr; None leaves Faust's own lines for a console."""
    if settings.log_format == "console":
        return None
    shared = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    line = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {"()": structlog.stdlib.ProcessorFormatter, "foreign_pre_chain": shared, "processors": line}
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "root": {"level": settings.log_level.upper(), "handlers": ["stderr"]},
    }

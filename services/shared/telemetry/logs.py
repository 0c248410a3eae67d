"""Structured logs on stderr: one line an event, `key=value`, control bytes escaped, long values cut. Never whole configs or secrets.

The level is `SLUICE_LOG` (debug, info, warning, error; default info).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from services.shared.contracts.problem import printable


class _Format(logging.Formatter):
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        parts = [
            self.formatTime(record),
            record.levelname.lower(),
            self._service,
            record.name.removeprefix("services."),
            record.getMessage(),
        ]
        parts.extend(f"{key}={_value(value)}" for key, value in fields.items())
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _value(value: Any) -> str:
    text = printable(f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value))
    return f'"{text}"' if " " in text or not text else text


class Logger:
    """`log.info("what happened", key=value)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, **fields: Any) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: Any) -> None:
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: Any) -> None:
        """With the traceback of the exception being handled: for bugs."""
        self._logger.error(event, exc_info=True, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    return Logger(name)


def configure(service: str, level: str = "") -> None:
    """Called once by each process. `level`: empty, or one of `logging`'s names, which counts instead of `SLUICE_LOG`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format(service))
    root = logging.getLogger("services")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level or os.environ.get("SLUICE_LOG", "info").upper())

"""Log lines: one for a request, with its sizes and times and nothing that anybody wrote; as text or as JSON."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}


def configure_logs(format: str, level: str) -> None:
    """One handler on stderr for the server's loggers and uvicorn's.

    Args:
        format: "text" or "json".
        level: "debug", "info", "warning" or "error".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    for name in ("pixtral.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    if level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it tells of every start and stop


class TextLines(logging.Formatter):
    """`2026-01-01T00:00:00.000Z INFO request method=GET path=/v1/models status=200`."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, and the place of an error on further lines."""
        words = [f"{_time(record)} {record.levelname} {record.getMessage()}"]
        words += [f"{name}={_word(value)}" for name, value in _extra(record).items()]
        return " ".join(words) + "".join(f"\n    {line}" for line in _places(record))


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= _extra(record)
        if places := _places(record):
            line["error"] = places
        return json.dumps(line, default=str)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _USUAL}


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _word(value: object) -> str:
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text and text else json.dumps(text)


def _places(record: logging.LogRecord) -> list[str]:
    """Where an error came from. Its message is left out: it may quote what a client sent."""
    if not record.exc_info or record.exc_info[1] is None:
        return []
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames] + [type(error).__name__]

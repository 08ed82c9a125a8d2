"""Logs: one JSON object a line. What people wrote is in them only if the operator asked for it."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import IO, Any

from halka.util.errors import DamagedFolderError, HalkaError

LOGGERS = ("halka", "uvicorn")
ABOUT_THE_MACHINE = (OSError, MemoryError, RuntimeError, DamagedFolderError)
"""Errors whose messages are not about texts."""


class JsonFormatter(logging.Formatter):
    """A record as a JSON object: time, level, message, the fields in `extra={"fields": …}`, an error's trace.

    texts  whether errors may say what they are about: their messages may hold a piece of a prompt
    """

    def __init__(self, texts: bool):
        super().__init__()
        self.texts = texts

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["error"] = type(error).__name__
            about_texts = isinstance(error, HalkaError) and not isinstance(error, DamagedFolderError)
            if self.texts or (isinstance(error, ABOUT_THE_MACHINE) and not about_texts):
                line["reason"] = str(error)
            frames = traceback.extract_tb(error.__traceback__)
            line["trace"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, default=str)


def log_to(stream: IO[str], texts: bool) -> None:
    """Write what the server logs to a stream, and nowhere else."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(texts))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

"""Structured logs that cannot contain document text.

A record is a constant event name and fields from an allow-list, each a number, a short code or an identifier, which is
hashed. Exceptions are reported by class and location in the code, never by message. Records of other libraries lose
their message too, since it may quote the data they handled; what remains says where to look. So document text cannot
get into the logs, not even by mistake.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import TypedDict, Unpack

from shared.settings import Settings

_CODE = re.compile(r"[A-Za-z0-9_.:/\-]{1,64}")
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PLACES = 5


class Fields(TypedDict, total=False):
    """All fields a record can have. mypy rejects others; at run time they are dropped and counted.

    A string that is not a code (letters, digits and ``_.:/-``, at most 64 characters) is written as ``?``.
    """

    document_id: str  # written as `document`, the first 16 hex digits of its SHA-256
    error: BaseException | str  # the class; for an exception also its cause and locations in the code
    reason: str
    field: str
    stage: str
    topic: str
    group: str
    type: str
    lang: str
    model_revision: str
    setting: str
    address: str
    state: str
    partition: int
    offset: int
    status: int
    pid: int
    port: int
    attempt: int
    documents: int
    segments: int
    cached: int
    candidates: int
    entities: int
    characters: int
    bytes: int
    tokens: int
    repairs: int
    refused: int
    partitions: int
    in_flight: int
    lag: int
    count: int
    seconds: float


_NAMES = frozenset(Fields.__annotations__)


class Logger:
    """Writes events. Event names are constants in lower case with underscores."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.ERROR, event, fields)

    def _log(self, level: int, event: str, fields: Fields) -> None:
        if self._logger.isEnabledFor(level):
            event = event if _EVENT.fullmatch(event) else "?"
            safe = _safe(fields)
            # The message is complete, so that handlers of other libraries, such as Ray's, show the same text.
            self._logger.log(level, "%s", _text(event, safe), extra={"event": event, "fields": safe})


def get_logger(name: str) -> Logger:
    """The logger of a module: ``get_logger(__name__)``."""
    return Logger(logging.getLogger(name))


def configure(settings: Settings) -> None:
    """Sends this process's records to standard error, by ``log_level`` and ``log_format``.

    Raises ValueError unless the level is DEBUG, INFO, WARNING or ERROR.
    """
    level = settings.log_level.upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("log_level: set BIOBRACKET_LOG_LEVEL to DEBUG, INFO, WARNING or ERROR")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(json_lines=settings.log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class Formatter(logging.Formatter):
    """One record per line, as text or as a JSON object; see the module for what is left out."""

    def __init__(self, *, json_lines: bool) -> None:
        super().__init__()
        self._json = json_lines

    def format(self, record: logging.LogRecord) -> str:
        event: str = getattr(record, "event", "library_message")
        fields: dict[str, str | int | float] | None = getattr(record, "fields", None)
        if fields is None:
            error = record.exc_info[1] if record.exc_info else None
            fields = {"at": f"{record.module}:{record.lineno}", **(_error(error) if error else {})}
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self._json:
            head = {"time": moment, "level": record.levelname, "logger": record.name, "event": event}
            return json.dumps(head | fields, ensure_ascii=False)
        return f"{moment} {record.levelname:<7} {record.name} {_text(event, fields)}"


def _text(event: str, fields: dict[str, str | int | float]) -> str:
    return " ".join((event, *(f"{name}={value}" for name, value in fields.items())))


def _safe(fields: Fields) -> dict[str, str | int | float]:
    safe: dict[str, str | int | float] = {}
    dropped = 0
    for name, value in fields.items():
        if name not in _NAMES:
            dropped += 1
        elif name == "document_id":
            safe["document"] = hashlib.sha256(str(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        elif isinstance(value, BaseException):
            safe |= _error(value)
        elif isinstance(value, float):
            safe[name] = round(value, 6)
        elif isinstance(value, int):
            safe[name] = value
        else:
            safe[name] = value if isinstance(value, str) and _CODE.fullmatch(value) else "?"
    if dropped:
        safe["dropped_fields"] = dropped
    return safe


def _error(error: BaseException) -> dict[str, str | int | float]:
    """The class of an exception and of its cause, and the innermost locations, the raising one last."""
    facts: dict[str, str | int | float] = {"error": type(error).__name__}
    # Even where the cause is suppressed with `from None`, its class is worth reporting.
    cause = error.__cause__ or error.__context__
    if cause is not None:
        facts["cause"] = type(cause).__name__
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    if places:
        facts["at"] = ">".join(places[-_PLACES:])
    return facts

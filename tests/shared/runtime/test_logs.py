"""Fields are logged, and document text is not, however it is passed."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.messages import Document
from shared.runtime import logs
from shared.runtime.logs import configure, get_logger
from shared.settings import Settings

NOTE = "患者 presents with lung cancer"


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def out(root: logging.Logger) -> io.StringIO:
    """The process's log as JSON Lines."""
    stream = io.StringIO()
    configure(Settings(log_format="json", log_level="DEBUG"))
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    return stream


def _records(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_record_is_one_json_object_per_line(out: io.StringIO) -> None:
    get_logger("services.x").info("document_done", entities=3, seconds=0.1234567891, lang="zh", in_flight=0)
    (record,) = _records(out)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {
        "level": "INFO",
        "logger": "services.x",
        "event": "document_done",
        "entities": 3,
        "seconds": 0.123457,
        "lang": "zh",
        "in_flight": 0,
    }


def test_text_format_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_format="text"))
    get_logger("services.x").warning("retry", attempt=2, reason="not_json")
    get_logger("services.x").debug("hidden")
    assert capsys.readouterr().err.endswith("Z WARNING services.x retry attempt=2 reason=not_json\n")


def test_document_ids_are_hashed(out: io.StringIO) -> None:
    get_logger("x").info("document_done", document_id="病历 17\ud800")
    (record,) = _records(out)
    assert re.fullmatch("[0-9a-f]{16}", record["document"])
    assert "document_id" not in record


def test_unknown_fields_are_dropped_and_counted(out: io.StringIO) -> None:
    get_logger("x").info("document_done", text=NOTE, entities=1)  # type: ignore[call-arg]
    (record,) = _records(out)
    assert record["dropped_fields"] == 1
    assert record["entities"] == 1
    assert NOTE not in out.getvalue()


def test_exceptions_are_reported_by_class_and_location(out: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError(NOTE)

    try:
        try:
            fail()
        except ValueError:
            raise RuntimeError(NOTE) from None
    except RuntimeError as error:
        get_logger("x").error("document_failed", error=error)
    (record,) = _records(out)
    assert (record["error"], record["cause"]) == ("RuntimeError", "ValueError")
    assert re.fullmatch(r"test_logs\.py:\d+", record["at"])
    assert "cancer" not in out.getvalue()


def test_other_libraries_lose_their_messages(out: io.StringIO) -> None:
    try:
        Document.model_validate({"id": "a", "text": [NOTE]})
    except ValidationError:
        logging.getLogger("library").exception("cannot read %s", NOTE, stack_info=True)
    logging.getLogger("library").warning(NOTE)
    first, second = _records(out)
    assert (first["event"], first["error"]) == ("library_message", "ValidationError")
    assert re.fullmatch(r"test_logs:\d+", second["at"])
    assert "cancer" not in out.getvalue()


def test_other_handlers_see_no_more(caplog: pytest.LogCaptureFixture) -> None:
    get_logger("x").warning("retry", reason=NOTE, attempt=1)
    assert caplog.messages == ["retry reason=? attempt=1"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="BIOBRACKET_LOG_LEVEL"):
        configure(Settings(log_level="LOUD"))


@given(text=st.text(min_size=1), number=st.integers(), fraction=st.floats())
def test_no_text_gets_into_the_logs(text: str, number: int, fraction: float) -> None:
    note = f"{text} \n{text}"  # a space and a line break, which no code has
    fields: dict[str, Any] = dict.fromkeys(logs.Fields.__annotations__, note)
    fields |= {"lag": number, "seconds": fraction, note: note, "error": ValueError(note)}
    record = logging.LogRecord("x", logging.INFO, note, 1, note, None, None)
    record.event = "done"
    record.fields = logs._safe(fields)  # type: ignore[arg-type]
    for json_lines in (True, False):
        line = logs.Formatter(json_lines=json_lines).format(record)
        assert note not in line
        assert "\n" not in line
    assert set(record.fields.values()) - {number, "?", "ValueError"} <= {
        record.fields["seconds"],
        record.fields["document"],
        record.fields["dropped_fields"],
    }

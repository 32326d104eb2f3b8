from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from services.cli import cli
from services.embedded.servers import Broker, Valkey
from shared.backends.halt_store import HaltStore
from shared.backends.records import Record, dead_letter_headers
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings

TEXT = b'{"id": "note-7", "text": "a secret illness"}'


@pytest.fixture
def run(
    broker: Broker, valkey: Valkey, fresh: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs the commands on a topic with two letters; exit status and output."""
    settings = fresh(broker.url).model_copy(update={"redis": SecretStr(valkey.url), "partitions": 1})
    ensure_topics(settings)
    sink = Sink(settings)
    for offset, reason in enumerate(("exhausted", "invalid")):
        record = Record(settings.topic_documents, 0, offset, b"note-7", TEXT, 1_790_000_000_000)
        headers = dead_letter_headers(record, reason, "text")
        sink.send(settings.topic_dead_letters, b"note-7", TEXT, headers).result(60)
    sink.close()
    for name in ("kafka", "topic_documents", "topic_dead_letters"):
        monkeypatch.setenv(f"BIOBRACKET_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("BIOBRACKET_REDIS", valkey.url)
    monkeypatch.setenv("BIOBRACKET_INGEST_GROUP", settings.topic_documents)

    def command(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["dead-letters", *arguments])
        return result.exit_code, result.output

    return command


def test_content_is_shown_only_when_asked_for(run: Callable[..., tuple[int, str]]) -> None:
    status, said = run("list")
    assert status == 0
    assert "exhausted (text)" in said
    assert "2 letters: 1 exhausted, 1 invalid" in said
    facts = json.loads(run("list", "--json", "--reason", "invalid")[1].splitlines()[0])
    assert (facts["letter"], facts["reason"], facts["offset"], facts["bytes"]) == ("0-1", "invalid", 1, len(TEXT))
    for arguments in (("list",), ("list", "--json"), ("show", "0-0")):
        assert "secret" not in run(*arguments)[1]
    assert "reason: exhausted" in run("show", "0-0")[1]
    assert run("show", "0-0", "--value") == (0, TEXT.decode())
    assert run("show", "0-9")[0] == 1
    assert "letter:" in run("show", "somewhere")[1]
    assert "since:" in run("list", "--since", "yesterday")[1]


def test_replay_and_drop(run: Callable[..., tuple[int, str]]) -> None:
    for command in ("replay", "drop"):
        status, said = run(command)
        assert (status, "--every" in said) == (1, True)
    assert "2 letters" in run("list")[1]
    assert run("replay", "0-0") == (0, "1 letters replayed\n")
    assert "1 letters: 1 invalid" in run("list")[1]
    assert run("drop", "--reason", "invalid") == (0, "1 letters dropped\n")
    assert run("list")[1] == "0 letters\n"
    assert run("drop", "--every") == (0, "0 letters dropped\n")
    assert "replayed" in run("list", "--all")[1]


def test_resume(run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("resume") == (0, "ingest was not halted\n")
    from services.ingest.config import IngestConfig

    store = HaltStore(Settings(), IngestConfig().group)
    store.halt("9 records in a row went to the dead letters")
    assert run("resume")[1] == "ingest goes on; it was halted since 9 records in a row went to the dead letters\n"
    assert store.halted() is None
    store.close()

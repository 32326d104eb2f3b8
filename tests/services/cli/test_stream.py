from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli import cli
from shared.backends.result_store import ResultStore
from shared.backends.streams import client
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.messages import Entity, Extraction, entity_id
from shared.settings import Settings

SECRET = "zq17"


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIOBRACKET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BIOBRACKET_KAFKA", "127.0.0.1:9")
    monkeypatch.setenv("BIOBRACKET_REDIS", f"redis://:{SECRET}@127.0.0.1:9/0")
    monkeypatch.setenv("BIOBRACKET_HTTP_PORT", "9")
    monkeypatch.setattr(client, "CONNECT_MS", 1000)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Settings:
    """Broker and store, to which the command is pointed, without services."""
    ensure_topics(settings)
    monkeypatch.setenv("BIOBRACKET_KAFKA", settings.kafka)
    monkeypatch.setenv("BIOBRACKET_REDIS", settings.redis.get_secret_value())
    for topic in ("documents", "entities", "dead_letters", "feedback"):
        monkeypatch.setenv(f"BIOBRACKET_TOPIC_{topic}".upper(), getattr(settings, f"topic_{topic}"))
    return settings


def call(*arguments: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=given)


def failed(result: Result) -> str:
    """What a command that failed in order says."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert SECRET not in result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def produced(settings: Settings, count: int) -> list[tuple[bytes | None, bytes | None]]:
    source = Source(settings, "test", [settings.topic_documents])
    records: list[tuple[bytes | None, bytes | None]] = []
    while len(records) < count:
        records += [(r.key, r.value) for r in source.poll(0.5, 100)]
    records += [(r.key, r.value) for r in source.poll(0.5, 100)]
    source.close()
    return records


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_HTTP_PORT", "many")
    assert "BIOBRACKET_HTTP_PORT" in failed(call("get", "a"))


@pytest.mark.parametrize("arguments", [("get", "a"), ("status",), ("produce", "FILE"), ("extract", "FILE")])
def test_without_a_running_application_the_remedy_is_named(tmp_path: Path, arguments: Sequence[str]) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{SECRET} asthma")
    assert "`biobracket up`" in failed(call(*(a.replace("FILE", str(file)) for a in arguments)))


@pytest.mark.parametrize("command", ["produce", "extract"])
def test_a_file_that_is_not_there(command: str) -> None:
    assert "nothing.txt" in failed(call(command, "nothing.txt"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"text": "zq17"}', b'{"id": "a", "text": "zq17"}\n{"id": "a", "text": "zq17"}']
)
def test_wrong_notes_of_the_demonstration(tmp_path: Path, content: bytes) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_bytes(content)
    assert "notes" in failed(call("demo", "--notes", str(notes)))


def test_wrong_encoding_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("肺炎".encode("gb18030"))
    assert "iconv" in failed(call("extract", str(file)))


def test_produce_sends_bytes_unchanged_and_warns(servers: Settings, tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_bytes("发热\r\nzq17".encode())
    lines = [
        b'{"id": "a", "text": "x",   "lang": "en"}',
        f"not JSON {SECRET}".encode(),
        b'{"id": "b", "text": "\\ud800"}',
        b"\xff\xfe",
    ]
    jsonl = tmp_path / "notes.jsonl"
    jsonl.write_bytes(b"\r\n".join(lines[:2]) + b"\n\n")
    result = call("produce", str(text), str(jsonl), "-", given=b"\n".join(lines[2:]))
    assert result.exit_code == 0, result.output
    assert "sent 5 of 5 documents" in result.stdout
    assert "3 of them are invalid" in result.stdout
    assert SECRET not in result.output
    for place, field in (("notes.jsonl, line 2", "JSON"), ("standard input, line 1", "text"), ("line 2", "UTF-8")):
        assert re.search(f"{place}: .*{field}", result.stderr)
    records = produced(servers, 5)
    assert sorted(value or b"" for _, value in records if not (value or b"").startswith(b'{"v":1')) == sorted(lines)
    (whole,) = [json.loads(value or b"") for key, value in records if key == b"note.txt"]
    assert whole["text"] == "发热\r\nzq17"
    assert {key for key, _ in records} == {b"note.txt", b"a", None}


def test_produce_refuses_a_file_without_documents_and_sends_nothing_of_it(servers: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,{SECRET}\n2,{SECRET}\n")
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "note.md").write_text("flu")
    result = call("produce", *(str(tmp_path / name) for name in ("a.csv", "b/note.md", "c/note.md")))
    assert result.exit_code == 1
    assert "sent 2 of 3 documents" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert SECRET not in result.output
    assert sorted(key or b"" for key, _ in produced(servers, 2)) == [b"b/note.md", b"c/note.md"]


def test_produce_goes_on_after_what_it_cannot_send(servers: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("flu")
    result = call("produce", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert result.exit_code == 1
    assert "sent 1 of 2 documents" in result.stdout
    assert [key for key, _ in produced(servers, 1)] == [b"b.txt"]


def test_get_and_status(servers: Settings) -> None:
    assert "no result" in failed(call("get", "病历/1"))
    entity = Entity(
        id=entity_id("disease", 0, 4),
        start=0,
        end=4,
        text="右肺腺癌",
        type="disease",
        confidence=0.9,
        generator_confidence=0.9,
    )
    extraction = Extraction(
        document_id="病历/1",
        text_sha256="0" * 64,
        lang="zh",
        types=("disease",),
        entities=(entity,),
        model_revision="0" * 16,
    )
    store = ResultStore.from_settings(servers)
    store.put(extraction)
    store.close()
    assert "右肺腺癌" in call("get", "病历/1").stdout
    assert Extraction.model_validate_json(call("get", "病历/1", "--json").stdout) == extraction
    call("produce", "-", given=b'{"id": "a", "text": "x"}')
    assert "documents 1, entities 1, lag 1" in call("status").stdout

"""The whole way, in embedded mode, with a tiny model: Kafka in, entities out, and what happens when parts die."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.embedded.runtime import RUNTIME_FILE, running
from services.ingest.config import IngestConfig
from shared.backends.records import Record
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Lag
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.messages import Document, Extraction, check_offsets
from shared.model.digests import write_sums
from shared.selection.calibration import Calibration
from shared.selection.selector_folder import calibration_file
from shared.settings import Settings
from tests.support.commands import PATIENCE_S, Command
from tests.support.generators import corpus
from tests.support.selectors import trained
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

TEXTS = {
    "en": "CD28 [1] activates T cells \U0001fac0 in patient %d.\r\nNo asthma.",
    "zh": "患者%d因右肺腺癌（T2N0）入院［见图］。",
}
POISON = [
    (None, b"\xff\xfe not UTF-8"),
    (b"k", b"not JSON"),
    (None, b'{"text": "no id"}'),
    (None, b'{"id": "a", "text": 7}'),
    (None, b'{"id": "a", "text": "\\ud800"}'),
    (None, b'{"id": "a", "text": "x", "lang": "de"}'),
    (None, b'{"id": "a", "text": "x", "types": ["nonsense"]}'),
    (None, b'{"id": "' + b"i" * 10_000_000 + b'", "text": "x"}'),
]


def documents(batch: str, count: int) -> dict[str, Document]:
    made = [
        Document(id=f"{batch}/{i}", text=TEXTS[lang] % i, lang=lang, types=("disease", "protein"))  # type: ignore[arg-type]
        for i, lang in enumerate(["en", "zh"] * (count // 2))
    ]
    return {d.id: d for d in made}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def tiny(model: Path) -> dict[str, str]:
    # The model has little to share out, and on busy cores threads that wait for one another hardly advance.
    return {"BASE_MODEL": str(model), "ADAPTER": "", "GENERATION_THREADS": "1"}


@pytest.fixture(scope="module")
def tiny_selector(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A span encoder that knows proteins and no diseases; how well is no matter."""
    folder = tmp_path_factory.mktemp("selector")
    corpus(folder / "toy")
    settings = Settings(base_model=str(tiny_model), corpora=folder, adapter="")
    selector = trained(folder / "selector", settings, max_tokens=300)
    file = calibration_file(settings.model_copy(update={"selector": str(selector)}))
    assert file is not None
    Calibration.default().save(file)
    write_sums(file.parent, file.name)
    return selector


@pytest.fixture(scope="module")
def up(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_selector: Path
) -> Iterator[tuple[Command, Settings]]:
    model = tiny(tiny_model) | {"SELECTOR": str(tiny_selector), "SELECTION_THREADS": "1"}
    model |= {"SELECTION_MIN_REPLICAS": "2", "SELECTION_MAX_REPLICAS": "2", "SELECTION_NUM_CPUS": "0.1"}
    command = Command(tmp_path_factory.mktemp("up"), model, "up")
    try:
        yield command, command.wait_until_up("Ctrl-C")
    finally:
        command.process.kill()
        command.process.wait()


class Output:
    """Reads both topics from their start."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.source = Source(
            settings, f"test-{time.monotonic_ns()}", [settings.topic_entities, settings.topic_dead_letters]
        )
        self.extractions: dict[str, list[Extraction]] = {}
        self.dead: list[Record] = []

    def read(self) -> None:
        for record in self.source.poll(0.5, 500):
            if record.topic == self.settings.topic_dead_letters:
                self.dead.append(record)
            else:
                extraction = Extraction.model_validate_json(record.value or b"")
                self.extractions.setdefault(extraction.document_id, []).append(extraction)

    def read_until(self, ids: set[str], dead: int = 0) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (ids <= self.extractions.keys() and len(self.dead) >= dead):
            assert time.monotonic() < deadline, (len(self.extractions), len(self.dead))
            self.read()
        self.read()


def assert_complete(settings: Settings, sent: dict[str, Document], output: Output) -> None:
    """Every document came out once, the same on Kafka and in the store, with offsets that hold; nothing is left."""
    store = ResultStore.from_settings(settings)
    for id_, document in sent.items():
        (extraction,) = output.extractions[id_]
        stored = store.get(id_)
        assert stored is not None
        assert stored.key == extraction.key
        assert stored.entities == extraction.entities
        assert extraction.text_sha256 == document.sha256
        assert all(check_offsets(document.text, entity) for entity in extraction.entities)
        assert extraction.counts.refused == 0
    store.close()
    lag = Lag(settings, IngestConfig().group, settings.topic_documents)
    deadline = time.monotonic() + PATIENCE_S
    while lag.read():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lag.close()


def test_documents_come_out_and_poison_is_put_aside(up: tuple[Command, Settings]) -> None:
    command, settings = up
    sent = documents("first", 8)
    sink = Sink(settings)
    for poison, document in zip(POISON, sent.values(), strict=True):
        sink.send(settings.topic_documents, *poison)
        sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())
    sink.flush()
    sink.close()
    output = Output(settings)
    output.read_until(set(sent), dead=len(POISON))
    assert_complete(settings, sent, output)
    # The broker turns no key and an absent one into the same.
    assert Counter(r.value for r in output.dead) == Counter(value for _, value in POISON)
    assert all(dict(r.headers)["biobracket.reason"] for r in output.dead)
    output.source.close()
    printed = command.output.read_text() + command.errors.read_text()
    assert "asthma" not in printed
    assert "腺癌" not in printed


def test_http(up: tuple[Command, Settings]) -> None:
    _, settings = up
    text = "右肺腺癌 [1]"
    with httpx.Client(
        base_url=f"http://{settings.http_host}:{settings.http_port}", timeout=PATIENCE_S, trust_env=False
    ) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        found = Extraction.model_validate_json(client.post("/v1/extract", json={"text": text}).content)
        assert found.lang == "zh"
        assert all(check_offsets(text, entity) for entity in found.entities)
        # What was seen before is not decided again, from when the pipeline knows what selection decides by.
        deadline = time.monotonic() + PATIENCE_S
        while "parsing" in (again := client.post("/v1/extract", json={"text": text}).json())["timings"]:
            assert time.monotonic() < deadline
        assert again["entities"] == [entity.model_dump(mode="json") for entity in found.entities]
        stored = Extraction.model_validate_json(client.get("/v1/documents/first/0").content)
        assert stored.document_id == "first/0"
        for entity in stored.entities[:1]:
            mentions = client.get("/v1/mentions", params={"text": entity.text, "type": entity.type}).json()["mentions"]
            assert "first/0" in {m["document_id"] for m in mentions}
        for status, body in ((400, b"{"), (422, b'{"text": "\\ud800"}'), (413, b" " * (16 * 2**20 + 1))):
            answer = client.post("/v1/extract", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"field", "problem", "remedy"}
        unknown = client.post("/v1/extract", json={"text": "zq17", "types": ["nonsense"]})
        assert unknown.status_code == 422
        assert "zq17" not in unknown.text


def test_what_a_reviewer_rejects_is_gone_the_next_time_and_its_copies(up: tuple[Command, Settings]) -> None:
    command, settings = up
    with httpx.Client(
        base_url=f"http://{settings.http_host}:{settings.http_port}", timeout=PATIENCE_S, trust_env=False
    ) as client:

        def proteins(text: str) -> set[tuple[int, int]]:
            asked = {"text": text, "lang": "en", "types": ["protein"]}
            while (found := client.post("/v1/extract", json=asked)).status_code != 200:  # of a replica that was killed
                time.sleep(0.2)
            return {(e["start"], e["end"]) for e in found.json()["entities"]}

        def on_all_replicas(text: str, span: tuple[int, int]) -> set[bool]:
            return {span in proteins(text) for _ in range(8)}

        text, span = next(
            (text, span)
            for text in (f"Gene {letter}{letter} and CD28 in {n} cells." for n in range(9) for letter in "ABCDEFG")
            for span in sorted(proteins(text))
        )
        feedback = {"text": text, "start": span[0], "end": span[1], "type": "protein", "accepted": False}
        assert on_all_replicas(text, span) == {True}
        given = client.post("/v1/feedback", json=feedback | {"reviewer": "a.chen"}).json()
        assert on_all_replicas(text, span) == {False}
        # In the running text of another document it is the same segment.
        assert (span[0] + 8, span[1] + 8) not in proteins(f"Yes.\r\n\r\n{text}")
        assert client.delete(f"/v1/feedback/{given['id']}").status_code == 204
        assert on_all_replicas(text, span) == {True}
        # Through Kafka as well; and a replica that starts later knows it.
        sink = Sink(settings)
        sink.send(settings.topic_feedback, b"k", json.dumps(feedback | {"id": "k"}).encode()).result(PATIENCE_S)
        sink.close()
        deadline = time.monotonic() + PATIENCE_S
        while span in proteins(text):
            assert time.monotonic() < deadline
        before = set(command.replicas("selection"))
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        while len(set(command.replicas("selection")) - {min(before)}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert on_all_replicas(text, span) == {False}
        assert [each["id"] for each in client.get("/v1/feedback").json()["feedback"]] == ["k"]
        assert client.post("/v1/feedback", json=feedback | {"type": "weather"}).status_code == 422
        client.delete("/v1/feedback/k")
    printed = command.output.read_text() + command.errors.read_text()
    assert "CD28" not in printed


def test_a_killed_model_loses_nothing(up: tuple[Command, Settings]) -> None:
    command, settings = up
    sent = documents("second", 16)
    output = Output(settings)
    sink = Sink(settings)
    for document in sent.values():
        sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())
    killed = command.replica("generation")
    os.kill(killed, signal.SIGKILL)
    sink.flush()
    sink.close()
    output.read_until(set(sent))
    assert_complete(settings, sent, output)
    assert command.replica("generation") != killed
    output.source.close()


def test_sigterm_leaves_nothing_behind(up: tuple[Command, Settings]) -> None:
    command, _ = up
    assert command.send(signal.SIGTERM) == []
    assert command.process.returncode == 0, command.errors.read_text()
    assert not (command.data / RUNTIME_FILE).exists()


def test_demonstration_and_the_crash_of_its_parent(tmp_path: Path, tiny_model: Path) -> None:
    sent = documents("notes", 4)
    notes = tmp_path / "notes.jsonl"
    notes.write_text("".join(d.model_dump_json() + "\n" for d in sent.values()), encoding="utf-8")
    command = Command(tmp_path, tiny(tiny_model), "demo", "--keep", "--notes", str(notes))
    try:
        settings = command.wait_until_up("Ctrl-C")
        printed = command.output.read_text()
        for id_ in sent:
            assert f"{id_}  " in printed
        assert "Summary" in printed
        store = ResultStore.from_settings(settings)
        found = [store.get(id_) for id_ in sent]
        store.close()
        assert sum(len(extraction.entities) for extraction in found if extraction) == _total(printed)
        scratch = next(p for p in command.descendants() if "watchdog.py" in " ".join(p.cmdline())).cmdline()[-1]
        assert command.send(signal.SIGKILL) == []
        assert not Path(scratch).exists()
        assert running(command.data) is None
    finally:
        command.process.kill()
        command.process.wait()


def _total(printed: str) -> int:
    (row,) = [line for line in printed.splitlines() if "│ entities " in line and "second" not in line]
    return int(row.strip("│ ").split("│")[-1])

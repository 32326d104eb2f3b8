"""The whole product while ingest scales up, loses a replica and scales down: the audit finds every document."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

import pytest
import redis
from typer.testing import CliRunner

from services.cli import cli
from services.ingest.config import IngestConfig
from shared.backends import stored_results
from shared.backends.records import Record
from shared.backends.streams.scan import Lag, Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.messages import Document
from shared.settings import Settings
from tests.support.commands import PATIENCE_S, Command
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

DOCUMENTS = 2000
# So few that a burst lasts until there are three replicas, and that each of them holds some of it.
WINDOW = 4
LAG_PER_REPLICA = 4
BURST = 150


def documents() -> Iterator[Document]:
    for n in range(DOCUMENTS):
        text = f"第{n}例 CD{n}。" if n % 2 else f"CD{n} binds."
        yield Document(id=f"d-{n}", text=text, lang="zh" if n % 2 else "en", types=("protein",))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Settings]]:
    given = {
        "BASE_MODEL": str(make_tiny_model(tmp_path_factory.mktemp("model"))),
        "ADAPTER": "",
        "GENERATION_THREADS": "1",
        "INGEST_MAX_REPLICAS": "3",
        "INGEST_MAX_DOCUMENTS": str(WINDOW),
        "INGEST_LAG_PER_REPLICA": str(LAG_PER_REPLICA),
        "INGEST_UPSCALE_DELAY_S": "0",
        "INGEST_DOWNSCALE_DELAY_S": "2",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")
        command = Command(tmp_path_factory.mktemp("up"), given, "up")
    try:
        yield command, command.wait_until_up("Ctrl-C")
    finally:
        if command.process.poll() is None:
            command.send(signal.SIGTERM)


def until(condition: Callable[[], bool], pause_s: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause_s)


def audit(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["audit", *arguments])
    return result.exit_code, result.output.splitlines()


def everything(settings: Settings, topic: str) -> list[Record]:
    with closing(Scan(settings, topic)) as scan:
        return [record for records in scan.read() for record in records]


def test_ingest_scales_and_dies_and_every_document_is_there(
    up: tuple[Command, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, settings = up
    group = IngestConfig().group
    coming = documents()
    with closing(Sink(settings)) as sink, closing(Lag(settings, group, settings.topic_documents)) as lag:

        def send(count: int) -> None:
            for document in islice(coming, count):
                sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())

        def scaled(replicas: int, least: int) -> bool:
            """Whether there are so many; until then documents go on coming, so that the lag stays above the least."""
            if lag.read() < least:
                send(least)
            send(1)
            return len(command.replicas("ingest")) == replicas

        assert len(command.replicas("ingest")) == 1
        until(lambda: scaled(3, BURST))
        os.kill(command.replicas("ingest")[-1], signal.SIGKILL)
        until(lambda: scaled(3, BURST))
        until(lambda: scaled(1, 0))
        send(DOCUMENTS)
        until(lambda: lag.read() == 0)

    monkeypatch.setenv("BIOBRACKET_DATA", str(command.data))
    said = f"{settings.topic_documents}, as far as group {group} has committed it: "
    expected = f"{said}{DOCUMENTS:,} records, {DOCUMENTS:,} results, 0 dead letters, 0 missing"
    assert audit() == (0, [expected])

    # A fault: what one record gave is in neither place.
    lost = everything(settings, settings.topic_documents)[DOCUMENTS // 3]
    assert lost.key is not None
    elsewhere = settings.model_copy(update={"topic_entities": "entities-but-one"})
    ensure_topics(elsewhere)
    with closing(Sink(settings)) as sink:
        for record in everything(settings, settings.topic_entities):
            if record.key != lost.key:
                sink.send(elsewhere.topic_entities, record.key, record.value, record.headers)
    monkeypatch.setenv("BIOBRACKET_TOPIC_ENTITIES", elsewhere.topic_entities)
    with redis.Redis.from_url(settings.redis.get_secret_value()) as client:
        assert client.delete(stored_results.document_key(lost.key.decode()))
    named = f"missing: {lost.topic}, partition {lost.partition}, offset {lost.offset}"
    one_less = f"{said}{DOCUMENTS:,} records, {DOCUMENTS - 1:,} results, 0 dead letters, 1 missing"
    assert audit() == (1, [named, one_less])
    assert audit("--resend") == (1, [named, f"{one_less}, 1 sent again"])
    more = f"{said}{DOCUMENTS + 1:,} records, {DOCUMENTS + 1:,} results, 0 dead letters, 0 missing"
    until(lambda: audit() == (0, [more]), 1.0)

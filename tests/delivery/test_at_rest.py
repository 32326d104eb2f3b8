"""Nothing of a planted word is left at rest: not in Redis, in files, in logs nor in metrics, whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest
from pydantic import SecretStr

from services.embedded.servers import Broker, Valkey
from services.ingest.config import IngestConfig
from shared.backends import vault
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Lag
from shared.backends.streams.sink import Sink
from shared.settings import Settings
from tests.support.clusters import Running, served
from tests.support.commands import PATIENCE_S, Command
from tests.support.marker import Marker
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

DOCUMENTS = 3


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of every run: a tiny model, and all that is ever logged."""
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    return {
        "BASE_MODEL": str(model),
        "ADAPTER": "",
        "SELECTOR": "",
        "GENERATION_THREADS": "1",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
        "AUDIT_KEY": "k",
    }


@contextmanager
def embedded(folder: Path, given: Mapping[str, str]) -> Iterator[Running]:
    """``biobracket up``."""
    command = Command(folder, {**given, "AUDIT": str(folder / "audit")}, "up")
    try:
        settings = command.wait_until_up("Ctrl-C")
        watchdog = next(p for p in command.descendants() if "watchdog.py" in " ".join(p.cmdline()))
        folders = {
            "data": command.data,
            "audit": folder / "audit",
            "ray": Path(watchdog.cmdline()[-1]),
            "output": folder,
        }
        yield Running(settings, folders, command.descendants)
        assert command.send(signal.SIGTERM) == []
    finally:
        command.process.kill()
        command.process.wait()


@contextmanager
def joined(folder: Path, given: Mapping[str, str]) -> Iterator[Running]:
    """``serve run``, with servers of its own."""
    with Broker(folder / "broker") as broker, Valkey(folder / "valkey") as valkey:

        def settings(http: int) -> Settings:
            return Settings(
                kafka=broker.url,
                redis=SecretStr(valkey.url),
                http_port=http,
                encryption_keys=Path(given["ENCRYPTION_KEYS"]),
            )

        names = {**given, "KAFKA": broker.url, "REDIS": valkey.url}
        with served(folder, names, folder / "valkey", settings) as running:
            yield running


def plant(marker: Marker, running: Running, dying: Sequence[str]) -> None:
    """Sends the word wherever a word can be sent, right and wrong, while a replica of each of ``dying`` is killed."""
    settings, word = running.settings, marker.text
    documents = [
        {
            "id": f"{word}/{n}",
            "text": f"患者{word}。CD{n}.",
            "lang": "en" if n % 2 else "zh",
            "types": ["protein"],
            "metadata": {word: word},
            word: word,
        }
        for n in range(DOCUMENTS)
    ]
    feedback = {"id": word, "text": f"a {word} cell", "start": 2, "end": 2 + len(word), "type": "protein"}
    feedback |= {"accepted": True, "document_id": f"{word}/0", "reviewer": word}
    wrong = [
        word.encode("utf-16"),
        f'{{"id": "{word}", "text": "{word}'.encode(),
        f'["{word}"]'.encode(),
        *(
            json.dumps({"id": word, "text": word} | change).encode()
            for change in (
                {"text": [word]},
                {"id": {word: 1}},
                {"lang": word},
                {"types": [word]},
                {"types": word},
                {"metadata": word},
                {"v": word},
                {"text": f"{word}\ud800"},
                {"id": word * 60},
            )
        ),
    ]
    wrong_feedback = [
        json.dumps(feedback | change).encode()
        for change in ({"type": word}, {"start": 1}, {"end": 999}, {"accepted": word}, {"time": word}, {word: word})
    ]
    with closing(Sink(settings)) as sink, httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client:

        def ask(method: str, path: str, **options: object) -> None:
            with suppress(httpx.HTTPError):  # replicas die meanwhile
                client.request(method, path, **options)  # type: ignore[arg-type]

        for value in wrong:
            sink.send(settings.topic_documents, word.encode(), value, ((word, word.encode()),))
        for value in (*wrong_feedback, json.dumps(feedback | {"id": f"{word}-2"}).encode()):
            sink.send(settings.topic_feedback, word.encode(), value)
        sink.send(settings.topic_feedback, f"{word}-3".encode(), None)
        sink.flush()
        for path in (f"/v1/documents/{quote(word)}", f"/v1/{quote(word)}", f"/v1/feedback?limit={quote(word)}"):
            ask("GET", path)
        for parameters in (
            {"text": word},
            {"text": word, "type": word},
            {"text": word, "limit": word},
            {"text": word * 99},
        ):
            ask("GET", "/v1/mentions", params=parameters)
        ask("POST", "/v1/feedback", json=feedback)
        ask("DELETE", f"/v1/feedback/{quote(word)}-4")
        for value in wrong_feedback:
            ask("POST", "/v1/feedback", content=value, headers={"Content-Type": "application/json"})
        for value in wrong:
            ask("POST", "/v1/extract", content=value, headers={"Content-Type": "application/json"})
        for service in (*dying, None):
            for document in documents:
                sink.send(settings.topic_documents, str(document["id"]).encode(), json.dumps(document).encode())
            sink.flush()
            if service is not None:
                with suppress(psutil.Error):
                    os.kill(running.replica(service), signal.SIGKILL)
            ask("POST", "/v1/extract", json={"text": f"{service} {word}", "types": ["protein"]})
            ask("GET", f"/v1/documents/{quote(word)}%2F1")
        sink.send(settings.topic_documents, word.encode(), wrong[0]).result(PATIENCE_S)  # to the replica that is new
    with closing(Lag(settings, IngestConfig().group, settings.topic_documents)) as lag:
        deadline = time.monotonic() + PATIENCE_S
        while lag.read():
            assert time.monotonic() < deadline
            time.sleep(0.5)
    with closing(ResultStore.from_settings(settings)) as store:  # it came out, and is found
        found = [store.get(f"{word}/{n}") for n in range(DOCUMENTS)]
    assert all(each is not None and each.metadata == {word: word} for each in found)
    while not running.ready():
        time.sleep(1)
    answer = httpx.get(f"{running.url}/v1/feedback", timeout=60, trust_env=False).json()["feedback"]
    assert {each["id"] for each in answer} == {word, f"{word}-2"}


def metrics(running: Running) -> bytes:
    """What Ray's metrics endpoints tell, the product's own metrics included."""
    deadline = time.monotonic() + 120
    while True:
        content = b""
        for file in running.folders["ray"].glob("session_latest/metrics_export_port_*"):
            with suppress(httpx.HTTPError):
                content += httpx.get(
                    f"http://127.0.0.1:{file.read_text()}/metrics", timeout=30, trust_env=False
                ).content
        if b"biobracket_dead_letters" in content or time.monotonic() > deadline:
            return content
        time.sleep(2)


def traces(marker: Marker, running: Running) -> dict[str, list[str]]:
    """Where the word is found."""
    told = metrics(running)
    found: dict[str, list[str]] = defaultdict(list)
    found["redis"] += marker.in_redis(running.settings.redis.get_secret_value())
    found["metrics"] += marker.traces(told)
    time.sleep(2)  # Valkey writes once a second
    for name, folder in running.folders.items():
        for trace in marker.in_folder(folder):
            found[name].append(trace)
    return {name: sorted(set(each)) for name, each in found.items() if each}


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    marker = Marker()
    for content in (
        marker.text.encode(),
        marker.text.encode("utf-16"),
        json.dumps(marker.text).encode(),
        json.dumps(json.dumps(marker.text)).encode(),
        marker.text.upper().encode(),
    ):
        assert marker.traces(b"x" + content)
    import base64

    for n in range(6):
        assert marker.traces(base64.b64encode(b"x" * n + marker.text.encode()))
        assert marker.traces(base64.urlsafe_b64encode(b"\xff" * n + marker.text.encode()))
    assert not marker.traces(Marker().text.encode() + base64.b64encode(os.urandom(10_000)))


@pytest.mark.parametrize(("start", "dying"), [(embedded, ("generation", "ingest")), (joined, ("pipeline", "query"))])
def test_nothing_of_a_planted_word_is_left(
    tmp_path: Path, given: dict[str, str], start: Callable[..., Running], dying: tuple[str, ...]
) -> None:
    vault.create(tmp_path / "keys.json")
    marker = Marker()
    with start(tmp_path, {**given, "ENCRYPTION_KEYS": str(tmp_path / "keys.json")}) as running:
        running.settings = running.settings.model_copy(update={"encryption_keys": tmp_path / "keys.json"})
        plant(marker, running, dying)
        assert b"biobracket_dead_letters" in metrics(running)
        assert traces(marker, running) == {}


def test_without_keys_it_is_found_in_redis_and_the_data_folder(tmp_path: Path, given: dict[str, str]) -> None:
    marker = Marker()
    with embedded(tmp_path, given) as running:
        plant(marker, running, ("pipeline",))  # what its memory held is looked up in Redis then
        found = traces(marker, running)
    # The folder of the output holds that of the data.
    assert found.keys() == {"redis", "data", "output"}
    assert all("appendonly" in each for name in ("data", "output") for each in found[name])
    assert {each.split(":")[1] for each in found["redis"]} >= {"{}", "m", "s", "{feedback}"}

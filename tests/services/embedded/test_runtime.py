from __future__ import annotations

import os
import stat
from pathlib import Path

import httpx
import pytest

from services.embedded import runtime
from services.embedded.runtime import RUNTIME_FILE, Addresses, Runtime, RuntimeFailure, attached, running
from services.ingest.config import IngestConfig
from shared.settings import Settings


def write(data: Path, pid: int) -> Addresses:
    addresses = Addresses(
        pid=pid,
        kafka="127.0.0.1:1111",
        redis="redis://:secret@127.0.0.1:2222/0",
        http_url="http://127.0.0.1:3333",
        http_host="127.0.0.1",
        http_port=3333,
    )
    (data / RUNTIME_FILE).write_text(addresses.model_dump_json())
    return addresses


def test_a_running_runtime_is_found_by_its_folder(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    addresses = write(tmp_path, os.getpid())
    assert running(tmp_path) == addresses
    settings = attached(Settings(data=tmp_path))
    assert settings.kafka == "127.0.0.1:1111"
    assert settings.redis.get_secret_value() == "redis://:secret@127.0.0.1:2222/0"
    assert settings.http_port == 3333
    assert "secret" not in repr(settings)


def test_addresses_of_the_environment_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, os.getpid())
    monkeypatch.setenv("BIOBRACKET_KAFKA", "kafka.example:9092")
    settings = attached(Settings(data=tmp_path))
    assert settings.kafka == "kafka.example:9092"
    assert settings.http_port == 3333


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_broken_runtime_file_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / RUNTIME_FILE).write_text(content)
    assert running(tmp_path) is None


def test_the_file_of_a_dead_runtime_is_passed_over(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    write(tmp_path, pid)
    assert running(tmp_path) is None
    assert attached(Settings(data=tmp_path)).kafka == Settings().kafka


def test_a_folder_serves_one_runtime(tmp_path: Path) -> None:
    with runtime._locked(tmp_path), pytest.raises(RuntimeFailure, match=r"data: .* --data"):
        Runtime(Settings(data=tmp_path)).start()
    with runtime._locked(tmp_path):
        pass


def test_a_missing_adapter_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="BIOBRACKET_ADAPTER"):
        Runtime(Settings(data=tmp_path, adapter=str(tmp_path / "none"))).start()
    assert stat.S_IMODE(tmp_path.stat().st_mode) & 0o700
    assert not (tmp_path / "broker").exists()
    assert not (tmp_path / RUNTIME_FILE).exists()


@pytest.mark.parametrize(
    ("cores", "replicas", "threads", "requests"),
    [(1, "1", "1", "8"), (2, "2", "1", "16"), (4, "4", "1", "32"), (6, "4", "2", "32"), (32, "4", "8", "32")],
)
def test_generation_on_a_cpu_has_a_process_for_each_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, replicas: str, threads: str, requests: str
) -> None:
    monkeypatch.setattr(runtime, "cpus", lambda: cores)
    found = runtime._replicas_of_generation()
    assert found == {
        "BIOBRACKET_GENERATION_MIN_REPLICAS": replicas,
        "BIOBRACKET_GENERATION_MAX_REPLICAS": replicas,
        "BIOBRACKET_GENERATION_THREADS": threads,
        "BIOBRACKET_PIPELINE_REQUESTS_IN_FLIGHT": requests,
    }


@pytest.mark.parametrize(
    ("given", "replicas", "threads"),
    [({"MAX": "3"}, ("1", "3"), "2"), ({"MIN": "2"}, ("2", "2"), "3"), ({"MIN": "1", "MAX": "6"}, ("1", "6"), "1")],
)
def test_replicas_that_the_environment_gives_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], replicas: tuple[str, str], threads: str
) -> None:
    monkeypatch.setattr(runtime, "cpus", lambda: 6)
    for name, value in given.items():
        monkeypatch.setenv(f"BIOBRACKET_GENERATION_{name}_REPLICAS", value)
    found = runtime._replicas_of_generation()
    assert (found["BIOBRACKET_GENERATION_MIN_REPLICAS"], found["BIOBRACKET_GENERATION_MAX_REPLICAS"]) == replicas
    assert found["BIOBRACKET_GENERATION_THREADS"] == threads


@pytest.mark.parametrize(("name", "value"), [("THREADS", "2"), ("NUM_GPUS", "1")])
def test_what_the_environment_says_of_generation_stands(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"BIOBRACKET_GENERATION_{name}", value)
    assert runtime._replicas_of_generation() == {}


@pytest.mark.parametrize("given", [{}, {"kafka": "kafka.example:9092"}])
def test_the_group_is_what_the_broker_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    monkeypatch.delenv("BIOBRACKET_KAFKA", raising=False)
    monkeypatch.setenv("BIOBRACKET_INGEST_INSTANCE", "pod-a")
    monkeypatch.delenv("BIOBRACKET_INGEST_SESSION_S", raising=False)
    started = Runtime(Settings(data=tmp_path, **given))
    started._set_environment()
    try:
        config = IngestConfig()
    finally:
        started.stop()
    assert (config.instance, config.session_s) == (("pod-a", 10.0) if given else ("", 6.0))


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_A", "old")
    monkeypatch.delenv("BIOBRACKET_B", raising=False)
    with runtime._environment({"BIOBRACKET_A": "new", "BIOBRACKET_B": "new"}):
        assert os.environ["BIOBRACKET_A"] == os.environ["BIOBRACKET_B"] == "new"
    assert os.environ["BIOBRACKET_A"] == "old"
    assert "BIOBRACKET_B" not in os.environ


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (httpx.Response(200, json={"status": "ready"}), True),
        (httpx.Response(503, json={"missing": ["ingest: halted, since 9 records in a row"]}), True),
        (httpx.Response(503, json={"missing": ["ingest: halted, since 9 records", "store: does not answer"]}), False),
        (httpx.Response(503, json={"missing": []}), False),
        (httpx.Response(503, text="no replica"), False),
        (httpx.Response(404, json=[]), False),
    ],
)
def test_a_halt_from_before_is_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, ready: bool
) -> None:
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    assert Runtime(Settings(data=tmp_path, http_port=1))._ready() is ready

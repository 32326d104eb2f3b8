"""The whole product on secured servers, each service with a user and rules of its own, where no text may be stored."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import redis
from typer.testing import CliRunner

from services.cli import cli
from services.ingest.config import IngestConfig
from shared.backends.access import KAFKA
from shared.backends.streams.scan import Scan
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.certificates import Authority, Issuer
from tests.support.clusters import Running, served
from tests.support.commands import PATIENCE_S
from tests.support.kafka import Unavailable as NoKafka
from tests.support.marker import Marker, free_port
from tests.support.redis_server import Unavailable as NoRedis
from tests.support.secured import SecureKafka, SecureRedis
from tests.support.tiny import make_tiny_model

pytestmark = pytest.mark.slow

AUDIT_KEY = "zq17-audit-key"
DASHBOARD = ("/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes?view=summary", "/api/v0/actors?detail=1")
DOCUMENTS = 6


class Hospital:
    """Kafka and Redis of a hospital, and the settings that its processes get."""

    def __init__(self, folder: Path) -> None:
        try:
            authority, issuer = Authority(folder / "authority"), Issuer(algorithm="RS256")
            self.kafka = SecureKafka(folder / "kafka", authority, issuer)
            self.redis = SecureRedis(folder / "redis", authority)
        except (NoKafka, NoRedis) as missing:
            pytest.skip(str(missing))
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.authority = authority

    def prepare(self) -> None:
        """Topics, users and their rules, as an administrator makes them."""
        ensure_topics(Settings(kafka=self.kafka.address))
        for service in KAFKA:
            password = f"zq17-{os.urandom(9).hex()}"
            (self.secrets / f"kafka-{service}").write_text(password)
            self.kafka.add_user(f"ner-{service}", password)
            self.kafka.allow(f"ner-{service}", Settings(), IngestConfig().group, service)
        for service, password in self.redis.passwords.items():
            (self.secrets / f"redis-{service}").write_text(password)

    @property
    def given(self) -> dict[str, str]:
        """The same for every process."""
        ca = str(self.authority.file)
        return {
            "KAFKA": self.kafka.sasl,
            "KAFKA_PROTOCOL": "SASL_SSL",
            "KAFKA_CA": ca,
            "KAFKA_USER": "ner-{service}",
            "KAFKA_PASSWORD_FILE": str(self.secrets / "kafka-{service}"),
            "REDIS": f"rediss://{{service}}@127.0.0.1:{self.redis.tls_port}/0",
            "REDIS_CA": ca,
            "REDIS_PASSWORD_FILE": str(self.secrets / "redis-{service}"),
            "STORE_TEXT": "none",
            "LOG_LEVEL": "DEBUG",
            "AUDIT_KEY": AUDIT_KEY,
        }

    def passwords(self) -> set[str]:
        return {file.read_text() for file in self.secrets.iterdir()}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path_factory.mktemp("hospital"))
    with hospital.kafka, hospital.redis:
        hospital.prepare()
        yield hospital


@pytest.fixture(scope="module")
def running(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    model = {"BASE_MODEL": str(make_tiny_model(tmp_path_factory.mktemp("model"))), "ADAPTER": "", "SELECTOR": ""}
    given = {**hospital.given, **model, "GENERATION_THREADS": "1"}

    def settings(http: int) -> Settings:
        return Settings(http_port=http)

    with served(folder, given, hospital.redis.data, settings, dashboard=free_port()) as running:
        yield running


@pytest.fixture
def command(
    hospital: Hospital, running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """Runs a command of ours as a service; its output."""
    for name, value in hospital.given.items():
        monkeypatch.setenv(f"BIOBRACKET_{name}", value)
    monkeypatch.setenv("BIOBRACKET_DATA", str(tmp_path / "no-embedded-servers"))
    monkeypatch.setenv("BIOBRACKET_HTTP_URL", running.url)

    def run(*arguments: str, service: str = "operator", code: int = 0) -> str:
        monkeypatch.setenv("BIOBRACKET_SERVICE", service)
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == code, result.output
        return result.output

    return run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def traces(secrets: set[str], running: Running) -> set[str]:
    """Where a secret stands that should stand nowhere: command lines, Ray's folder, output, audit trail."""
    found = set()
    for process in running.descendants():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            found |= {f"command line of {process.name()}" for secret in secrets if secret in line}
    for name, folder in running.folders.items():
        if name != "data":
            for path in folder.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                    found |= {f"{name}: {path.name}" for secret in secrets if secret.encode() in content}
    return found


def test_a_document_goes_through_and_is_erased_by_users_with_their_rules_alone(
    hospital: Hospital, running: Running, command: Callable[..., str], tmp_path: Path
) -> None:
    marker = Marker()
    notes = tmp_path / "notes.jsonl"
    lines = [
        {"id": f"d-{n}", "text": f"患者{marker.text}。CD{n}.", "types": ["protein"], "metadata": {"ward": marker.text}}
        for n in range(DOCUMENTS)
    ]
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"id": "x", "text": 7}\n')
    command("produce", str(notes), service="producer")
    complete = f"{DOCUMENTS + 1} records, {DOCUMENTS} results, 1 dead letters, 0 missing"  # the last is no document
    until(lambda: complete in _audit(command))

    with httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client:
        answer = client.get("/v1/documents/d-1").raise_for_status().json()
        assert "text-not-stored" in answer["warnings"]
        assert answer["entities"]
        assert {entity["text"] for entity in answer["entities"]} == {""}
        assert client.post("/v1/extract", json={"text": f"a {marker.text}"}).status_code == 200
        feedback = {"text": f"a {marker.text} cell", "start": 2, "end": 4, "type": "protein", "accepted": False}
        assert client.post("/v1/feedback", json=feedback).is_client_error
        assert client.delete("/v1/documents/d-1").is_success
        until(lambda: client.get("/v1/documents/d-1").status_code == 404)
    command("forget", "d-2", "--yes")
    assert "1" in command("dead-letters", "list")

    # `entities` holds the texts, for who may read it; Redis holds none.
    reader = Settings(
        service="reader",
        kafka=hospital.kafka.sasl,
        kafka_protocol="SASL_SSL",
        kafka_ca=hospital.authority.file,
        kafka_user="ner-{service}",
        kafka_password_file=hospital.secrets / "kafka-{service}",
    )
    with closing(Scan(reader, reader.topic_entities)) as scan:
        values = [record.value for records in scan.read() for record in records]
    assert any(marker.text.encode() in (value or b"") for value in values)
    assert values.count(None) == 2
    assert list(marker.in_redis(hospital.redis.url)) == []
    for folder in (running.folders["ray"], running.folders["output"], running.folders["audit"]):
        assert list(marker.in_folder(folder)) == []


def _audit(command: Callable[..., str]) -> str:
    try:
        return command("audit")
    except AssertionError:  # not all there yet
        return ""


def test_a_user_can_do_no_more_than_its_rules_say(running: Running, command: Callable[..., str]) -> None:
    assert "that this user may see" in command("dead-letters", "list", service="producer", code=1)
    assert "1 letters: 1 invalid" in command("dead-letters", "list")


def test_no_secret_is_told(hospital: Hospital, running: Running, command: Callable[..., str]) -> None:
    told = hospital.passwords() | {AUDIT_KEY, running.token}
    assert all(len(secret) >= len(AUDIT_KEY) for secret in told)

    # Errors that could tell one: the password of the pipeline's user is another now, and a command's is wrong.
    with redis.Redis.from_url(hospital.redis.url) as client:
        client.execute_command("ACL", "SETUSER", "pipeline", "resetpass", ">other-1", *_rules(hospital, "pipeline"))
        client.client_kill_filter(_type="normal", user="pipeline")
    with httpx.Client(base_url=running.url, timeout=60, trust_env=False) as client:
        answer = client.post("/v1/extract", json={"text": "CD28 binds.", "types": ["protein"]})
        assert "cache-unavailable" in answer.raise_for_status().json()["warnings"]
    outputs = [command("settings"), command("settings", "--markdown"), command("access", "redis")]
    (hospital.secrets / "redis-operator").write_text("zq17-not-the-password")
    outputs.append(command("status", code=1))

    with httpx.Client(
        base_url=f"http://127.0.0.1:{running.dashboard}",
        headers={"Authorization": f"Bearer {running.token}"},
        timeout=60,
        trust_env=False,
    ) as ray:
        answers = {path: ray.get(path) for path in DASHBOARD}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(DASHBOARD, 200)
    outputs += [answer.text for answer in answers.values()]
    assert "biobracket" in answers["/api/serve/applications/"].text
    told.add("zq17-not-the-password")
    assert [text for text in outputs if any(secret in text for secret in told)] == []
    assert traces(told, running) == set()


def _rules(hospital: Hospital, service: str) -> list[str]:
    return hospital.redis.rules[service].split()


@pytest.mark.parametrize("path", DASHBOARD)
def test_ray_tells_nothing_without_its_token(running: Running, path: str) -> None:
    answer = httpx.get(f"http://127.0.0.1:{running.dashboard}{path}", timeout=60, trust_env=False)
    assert answer.status_code == 401
    with_another = {"Authorization": "Bearer " + "0" * 64}
    assert httpx.get(answer.request.url, headers=with_another, timeout=60, trust_env=False).status_code in (401, 403)

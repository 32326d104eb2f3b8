from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import uvicorn
from pydantic import SecretStr

from services.cli.http_client import http_client
from services.query.auth import key_file
from shared.settings import Settings
from tests.support.certificates import Authority
from tests.support.cli import SECRET, call, failed
from tests.support.http import World

pytestmark = pytest.mark.usefixtures("nothing_runs")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(keys: Path) -> str:
    from datetime import UTC, datetime

    return key_file.create(keys, "ward-3", ["extract"], 0, datetime.now(UTC))[0]


@pytest.fixture
def url(authority: Authority, keys: Path, key: str) -> Iterator[str]:
    """The application over https, with authentication."""
    certificate, private = authority.issue()
    world = World(api_keys=keys, timeout_s=60.0)
    config = uvicorn.Config(
        world.app, port=0, ssl_certfile=certificate, ssl_keyfile=private, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"https://localhost:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_command_authenticates_by_environment_or_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, authority: Authority, key: str
) -> None:
    text = tmp_path / "a.txt"
    text.write_text(f"{SECRET} asthma")
    monkeypatch.setenv("BIOBRACKET_HTTP_URL", url)
    assert "BIOBRACKET_HTTP_CA" in failed(call("extract", str(text)))
    monkeypatch.setenv("BIOBRACKET_HTTP_CA", str(authority.file))
    assert failed(call("extract", str(text))).startswith("error: authorization: is missing")
    monkeypatch.setenv("BIOBRACKET_TOKEN", key)
    assert call("extract", str(text), "--json").exit_code == 0
    file = tmp_path / "token"
    file.write_text(f"{key}\n")
    monkeypatch.setenv("BIOBRACKET_TOKEN_FILE", str(file))
    assert "unset one" in failed(call("extract", str(text)))
    monkeypatch.delenv("BIOBRACKET_TOKEN")
    assert call("extract", str(text), "--json").exit_code == 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"token": SecretStr(SECRET), "http_url": "http://ner.example"}, "http_url"),
        ({"token": SecretStr(f"{SECRET} x")}, "BIOBRACKET_TOKEN"),
        ({"token": SecretStr("患者")}, "BIOBRACKET_TOKEN"),
        ({"token_file": Path("/none")}, "BIOBRACKET_TOKEN_FILE"),
        ({"http_ca": Path("/none")}, "BIOBRACKET_HTTP_CA"),
    ],
)
def test_what_would_be_unsafe_or_cannot_be(
    given: dict[str, object], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        http_client(Settings(**given))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert named in said
    assert SECRET not in said


def test_a_token_may_travel_over_loopback() -> None:
    with http_client(Settings(token=SecretStr("a"), http_url="http://127.0.0.1:1")) as client:
        assert client.headers["authorization"] == "Bearer a"
    with http_client(Settings(http_url="http://ner.example/prefix/")) as client:
        assert "authorization" not in client.headers
        assert str(client.base_url) == "http://ner.example/prefix/"

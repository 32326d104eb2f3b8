from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from services.embedded import http_server
from services.embedded.http_server import HttpServerError
from services.query import tls
from services.query.auth import key_file
from shared.settings import Settings
from tests.support.certificates import Authority, pem
from tests.support.commands import PATIENCE_S, Command
from tests.support.tiny import make_tiny_model


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HttpServerError, match="BIOBRACKET_HTTP_PORT"):
            http_server.port(Settings(http_port=port))
    assert http_server.port(Settings(http_port=0)) > 0
    assert http_server.port(Settings()) > 0


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("ner.example", "http://ner.example:80"),
    ],
)
def test_urls(host: str, url: str) -> None:
    assert http_server.url(Settings(http_host=host, http_port=80)) == url


def test_strangers_are_kept_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    http_server.check(Settings())
    everywhere = Settings(http_host="0.0.0.0")
    with pytest.raises(HttpServerError, match="BIOBRACKET_QUERY_ALLOW_UNAUTHENTICATED"):
        http_server.check(everywhere)
    monkeypatch.setenv("BIOBRACKET_QUERY_API_KEYS", str(tmp_path / "none"))
    with pytest.raises(HttpServerError, match="biobracket keys create"):
        http_server.check(everywhere)
    monkeypatch.delenv("BIOBRACKET_QUERY_API_KEYS")
    monkeypatch.setenv("BIOBRACKET_QUERY_ALLOW_UNAUTHENTICATED", "true")
    http_server.check(everywhere)


def test_certificate_and_key_have_to_fit(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("a")
    _, other = authority.issue("b")
    http_server.check(Settings(http_certificate=certificate, http_key=key))
    locked = tmp_path / "locked.key"
    locked.write_bytes(pem(ec.generate_private_key(ec.SECP256R1()), b"password"))
    for wrong in (other, locked, tmp_path / "none"):
        with pytest.raises(HttpServerError, match="BIOBRACKET_HTTP_KEY"):
            http_server.check(Settings(http_certificate=certificate, http_key=wrong))


def test_files_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Authority(tmp_path).issue("a")
    monkeypatch.setenv("BIOBRACKET_QUERY_API_KEYS", "keys.json")
    settings = Settings(http_certificate=Path("a.pem"), http_key=Path("a.key"))
    assert http_server.environment(settings) == {
        "BIOBRACKET_HTTP_CERTIFICATE": str(tmp_path / "a.pem"),
        "BIOBRACKET_HTTP_KEY": str(tmp_path / "a.key"),
        "BIOBRACKET_QUERY_API_KEYS": str(tmp_path / "keys.json"),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": tls.HOOK,
    }
    assert http_server.options(settings)["ssl_certfile"] == str(tmp_path / "a.pem")
    assert isinstance(http_server.trust(settings), ssl.SSLContext)
    monkeypatch.delenv("BIOBRACKET_QUERY_API_KEYS")
    assert http_server.environment(Settings()) == {}
    assert set(http_server.options(Settings())) == {"host", "port"}


@pytest.mark.slow
def test_the_whole_server_beyond_loopback(tmp_path: Path) -> None:
    """Serve's own proxy and replicas: credentials, clients, and a certificate and a key that change while it runs."""
    authority, keys = Authority(tmp_path / "ca"), tmp_path / "keys.json"
    certificate, private = authority.issue(hosts=("127.0.0.1",))
    key, made = key_file.create(keys, "ward-3", ["extract"], 0, datetime.now(UTC))
    settings = {
        "BASE_MODEL": str(make_tiny_model(tmp_path / "model")),
        "ADAPTER": "",
        "GENERATION_THREADS": "1",
        "HTTP_HOST": "0.0.0.0",
        "HTTP_CERTIFICATE": str(certificate),
        "HTTP_KEY": str(private),
        "QUERY_API_KEYS": str(keys),
        "QUERY_FAILED_RATE": "1/hour",
    }
    command = Command(tmp_path, settings, "up")
    try:
        address = command.wait_until_up("Ctrl-C").http_url
        assert address.startswith("https://127.0.0.1:")
        trusted, bearer = ssl.create_default_context(cafile=authority.file), {"Authorization": f"Bearer {key}"}

        def ask(method: str, path: str, headers: dict[str, str] | None = None, **more: object) -> int:
            with httpx.Client(base_url=address, timeout=PATIENCE_S, trust_env=False, verify=trusted) as client:
                return client.request(method, path, headers=headers, **more).status_code  # type: ignore[arg-type]

        assert ask("GET", "/readyz") == 200
        assert [ask("GET", path) for path in ("/docs", "/openapi.json", "/v1/documents/a", "/nowhere")] == [401] * 4
        assert ask("POST", "/v1/extract", bearer, json={"text": "CD28 activates T cells."}) == 200
        assert ask("GET", "/v1/documents/a", bearer) == 403
        assert [ask("GET", "/docs", {"Authorization": "Bearer bbk_x"}) for _ in range(2)] == [401, 429]
        shown = command.output.read_text() + command.errors.read_text()
        assert key not in shown
        other = Authority(tmp_path / "other")
        for old, new in zip((certificate, private), other.issue(hosts=("127.0.0.1",)), strict=True):
            old.write_bytes(new.read_bytes())
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            ask("GET", "/healthz")
        trusted = ssl.create_default_context(cafile=other.file)
        assert ask("POST", "/v1/extract", bearer, json={"text": "CD28"}) == 200
        key_file.revoke(keys, made.id, datetime.now(UTC))
        assert ask("POST", "/v1/extract", bearer, json={"text": "CD28"}) == 429  # no other word on a credential now
    finally:
        command.process.terminate()
        command.process.wait(PATIENCE_S)

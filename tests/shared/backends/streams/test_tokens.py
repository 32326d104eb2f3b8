"""Tokens of a file, and of an endpoint of OAuth 2.0 over https."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from shared.backends.credentials import client_context
from shared.backends.streams.tokens import FetchedTokens, tokens
from shared.errors import StreamError
from shared.settings import Settings
from tests.support.certificates import Authority

SECRET = "zq17"


class TokenServer:
    """A token endpoint, which gives a new token each time, or another answer."""

    def __init__(self, authority: Authority) -> None:
        self.answer: tuple[int, bytes] | None = None
        self.expires_in: float | None = 100
        self.asked: list[tuple[dict[str, list[str]], str]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                served.asked.append((form, self.headers["Authorization"]))
                fields = {"access_token": f"token-{len(served.asked)}", "expires_in": served.expires_in}
                status, body = served.answer or (200, json.dumps(fields).encode())
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("login"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def server(authority: Authority) -> Iterator[TokenServer]:
    made = TokenServer(authority)
    yield made
    made.stop()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetched(server: TokenServer, authority: Authority, clock: Clock) -> FetchedTokens:
    context = client_context("BIOBRACKET_X", (str(authority.file), None, None), StreamError)
    return FetchedTokens(server.url, lambda: ("client", SECRET), "kafka", context, clock)


def test_a_token_is_renewed_before_it_ends(fetched: FetchedTokens, server: TokenServer, clock: Clock) -> None:
    assert [fetched.token(), fetched.token()] == ["token-1", "token-1"]
    ((form, login),) = server.asked
    assert form == {"grant_type": ["client_credentials"], "scope": ["kafka"]}
    assert login == "Basic " + base64.b64encode(f"client:{SECRET}".encode()).decode()
    clock.now = 79
    assert fetched.token() == "token-1"
    clock.now = 81
    assert fetched.token() == "token-2"


def test_a_token_is_used_till_its_end_where_there_is_no_other(
    fetched: FetchedTokens, server: TokenServer, clock: Clock
) -> None:
    fetched.token()
    server.answer = (503, b"")
    clock.now = 81
    assert fetched.token() == "token-1"
    clock.now = 101
    with pytest.raises(StreamError, match="status 503") as failed:
        fetched.token()
    assert failed.value.retryable


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"", "refuses the client .*BIOBRACKET_KAFKA_PASSWORD"),
        (400, b'{"error": "zq17"}', "refuses the client"),
        (302, b"", "status 302"),
        (200, b"zq17", "no JSON object"),
        (200, b"[]", "no JSON object"),
        (200, b'{"access_token": 17}', "an access_token that is none"),
        (200, b'{"access_token": "zq17\\u0001auth=x"}', "an access_token that is none"),
        (200, b'{"access_token": "x", "expires_in": "zq17"}', "no JSON object"),
    ],
)
def test_an_answer_without_a_token_is_one_clear_error(
    fetched: FetchedTokens, server: TokenServer, status: int, body: bytes, says: str
) -> None:
    server.answer = (status, body)
    with pytest.raises(StreamError, match=f"^kafka_token_url: .*{says}") as failed:
        fetched.token()
    assert SECRET not in str(failed.value)
    assert "\n" not in str(failed.value)


def test_tokens_of_settings(server: TokenServer, authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "ingest.secret"
    file.write_text(SECRET)
    settings = Settings(
        service="ingest",
        kafka_user="ner-{service}",
        kafka_password_file=tmp_path / "{service}.secret",
        kafka_token_url=server.url,
        kafka_token_ca=authority.file,
    )
    provider = tokens(settings)
    assert tokens(settings) is provider
    assert provider.token() == "token-1"
    assert server.asked[0][1] == "Basic " + base64.b64encode(f"ner-ingest:{SECRET}".encode()).decode()
    with pytest.raises(StreamError, match=r"certificate does not pass.*BIOBRACKET_KAFKA_TOKEN_CA"):
        tokens(settings.model_copy(update={"kafka_token_ca": None}))
    with pytest.raises(StreamError, match="either BIOBRACKET_KAFKA_TOKEN_FILE"):
        tokens(settings.model_copy(update={"kafka_token_file": file}))


def test_the_token_of_a_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    provider = tokens(Settings(kafka_token_file=file))
    assert provider.token() == "first"
    file.write_text("second")
    assert provider.token() == "second"
    file.unlink()
    with pytest.raises(StreamError, match="BIOBRACKET_KAFKA_TOKEN_FILE"):
        tokens(Settings(kafka_token_file=file))

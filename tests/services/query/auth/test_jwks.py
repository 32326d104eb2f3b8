from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.query.auth.callers import AuthenticationError, Unavailable
from services.query.auth.jwks import FileKeys, UrlKeys, public_keys
from tests.support.certificates import Authority, Issuer


class JwksServer:
    """A JWKS over https, which can fail or send elsewhere."""

    def __init__(self, authority: Authority) -> None:
        self.answer: tuple[int, bytes, str] = (200, b"", "")
        self.asked = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.asked += 1
                status, body, location = served.answer
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("jwks"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_port}/jwks"
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
def server(authority: Authority) -> Iterator[JwksServer]:
    made = JwksServer(authority)
    yield made
    made.stop()


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
        Issuer().jwk(kid=None),
        Issuer().jwk(kid=7),
        Issuer().jwk(use="enc"),
        Issuer().jwk(d="AAAA"),
        {"kty": "RSA", "kid": "a", "n": "!", "e": "AQAB"},
        "a",
    ],
)
def test_what_is_no_public_key_for_signatures_is_left_out(entry: Any) -> None:
    with pytest.raises(ValueError, match="no public key"):
        public_keys({"keys": [entry]})
    assert set(public_keys({"keys": [entry, Issuer("b").jwk()]})) == {"b"}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys": 7}', b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_jwks(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jwks").write_bytes(content)
    with pytest.raises(AuthenticationError, match="BIOBRACKET_QUERY_JWKS"):
        FileKeys(tmp_path / "jwks")


def test_a_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "jwks"
    with pytest.raises(AuthenticationError, match="No such file"):
        FileKeys(file)
    file.write_bytes(Issuer("a").jwks())
    keys = FileKeys(file)
    assert asyncio.run(keys.find("a"))
    file.write_bytes(Issuer("b").jwks())
    assert asyncio.run(keys.find("a")) is None
    assert asyncio.run(keys.find("b"))
    file.write_bytes(b"{")
    with pytest.raises(Unavailable):
        asyncio.run(keys.find("b"))


def test_a_url_is_asked_seldom_and_its_keys_outlive_it_for_an_hour(server: JwksServer, authority: Authority) -> None:
    now = [0.0]
    keys = UrlKeys(server.url, authority.file, lambda: now[0])

    async def find(kid: str, at: float) -> bool:
        now[0] = at
        return await keys.find(kid) is not None

    async def steps() -> None:
        server.answer = (200, Issuer("a").jwks(), "")
        assert await find("a", 0)
        assert not await find("b", 29)
        assert server.asked == 1
        server.answer = (200, Issuer("a").jwks(Issuer("b").jwk()), "")
        assert await find("b", 30)
        assert await find("a", 329)
        assert server.asked == 2
        server.answer = (500, b"", "")
        assert await find("a", 330)
        assert server.asked == 3
        assert await find("a", 3629)
        assert server.asked == 4
        with pytest.raises(Unavailable):
            await find("a", 3930)
        server.answer = (200, Issuer("a").jwks(), "")
        with pytest.raises(Unavailable):
            await find("a", 3959)
        assert await find("a", 3960)

    asyncio.run(steps())


@pytest.mark.parametrize(
    "answer",
    [
        (302, b"", "http://127.0.0.1:9/"),
        (200, b"{", ""),
        (200, b"[]", ""),
        (200, b'{"keys": []}', ""),
    ],
)
def test_a_url_without_keys(server: JwksServer, authority: Authority, answer: tuple[int, bytes, str]) -> None:
    server.answer = answer
    with pytest.raises(Unavailable):
        asyncio.run(UrlKeys(server.url, authority.file).find("a"))


def test_a_certificate_of_another_authority_is_not_trusted(server: JwksServer, tmp_path: Path) -> None:
    server.answer = (200, Issuer("a").jwks(), "")
    with pytest.raises(Unavailable):
        asyncio.run(UrlKeys(server.url, Authority(tmp_path / "other").file).find("a"))
    with pytest.raises(AuthenticationError, match="BIOBRACKET_QUERY_JWT_CA"):
        UrlKeys(server.url, tmp_path / "none")

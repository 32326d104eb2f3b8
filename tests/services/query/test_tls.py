from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import uvicorn.config

from services.query.tls import Certificate, reload_certificates
from tests.support.certificates import Authority, Files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Serve's proxy once the hook was called."""
    monkeypatch.setattr(uvicorn.config, "create_ssl_context", uvicorn.config.create_ssl_context)
    assert reload_certificates() == []


async def presented(port: int, authority: Authority, host: str | None = "localhost") -> bytes | None:
    """The certificate of a server, as its client gets it; the connection is checked like any other."""
    context = ssl.create_default_context(cafile=authority.file)
    context.check_hostname = host is not None
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host or "")
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return bytes(certificate)


def der(files: Files) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files[0].read_text())


@pytest.mark.usefixtures("hooked")
def test_a_server_presents_what_its_files_hold(authority: Authority) -> None:
    first = authority.issue()
    context = uvicorn.config.create_ssl_context(
        str(first[0]), str(first[1]), None, ssl.PROTOCOL_TLS_SERVER, ssl.CERT_NONE, None, None
    )

    async def steps() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            one = der(first)
            assert await presented(port, authority) == one
            key = first[1].read_bytes()
            certificate = first[0].read_bytes()
            second = authority.issue()
            two, newest_key = der(second), second[1].read_bytes()
            second[1].write_bytes(key)  # the certificate alone is new, as while files are being replaced
            assert await presented(port, authority) == one
            second[1].write_bytes(newest_key)
            assert await presented(port, authority) == two
            assert await presented(port, authority, host=None) == two
            second[0].unlink()
            assert await presented(port, authority) == two
            second[0].write_bytes(certificate)
            second[1].write_bytes(key)
            assert await presented(port, authority) == one

    asyncio.run(steps())


def test_files_that_do_not_fit_at_the_start_are_an_error(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.issue("a")
    _, key = authority.issue("b")

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    with pytest.raises(ssl.SSLError):
        Certificate(make, certificate, key)

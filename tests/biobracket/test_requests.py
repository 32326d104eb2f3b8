from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from biobracket.errors import BiobracketError
from biobracket.requests import Call, address_of, answer, headers_of, pause


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("BIOBRACKET_TOKEN", "BIOBRACKET_TOKEN_FILE", "BIOBRACKET_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)


def test_pauses():
    assert pause(httpx.Response(503, headers={"Retry-After": "5"}), 0) == 5
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 0 < pause(httpx.Response(429, headers={"Retry-After": soon}), 0) <= 30
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=30), usegmt=True)
    assert pause(httpx.Response(429, headers={"Retry-After": past}), 0) == 0
    assert 1 <= pause(httpx.Response(502), 2) <= 2
    assert pause(httpx.Response(503, headers={"Retry-After": "3600"}), 0) is None
    assert pause(httpx.Response(422), 0) is None
    assert pause(httpx.ReadTimeout("late"), 0) is None
    assert pause(httpx.ConnectError("none"), 0) > 0


def test_addresses(monkeypatch):
    assert address_of(None) == "http://127.0.0.1:8000"
    monkeypatch.setenv("BIOBRACKET_HTTP_URL", "https://ner.example.org/")
    assert address_of(None) == "https://ner.example.org"
    with pytest.raises(BiobracketError, match="no address"):
        address_of("ftp://x")


def test_tokens(monkeypatch, tmp_path):
    assert headers_of("http://127.0.0.1", None, None) == {}
    monkeypatch.setenv("BIOBRACKET_TOKEN", "key")
    assert headers_of("https://a", None, None) == {"Authorization": "Bearer key"}
    with pytest.raises(BiobracketError, match="unencrypted"):
        headers_of("http://ner.example.org", None, None)
    monkeypatch.setenv("BIOBRACKET_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(BiobracketError, match="both"):
        headers_of("https://a", None, None)
    monkeypatch.delenv("BIOBRACKET_TOKEN")
    with pytest.raises(BiobracketError, match="token_file: cannot be read"):
        headers_of("https://a", None, None)
    with pytest.raises(BiobracketError, match="one word"):
        headers_of("https://a", "two words", None)


def test_an_answer_of_something_else():
    call = Call("GET", "/", lambda content: int(content))
    with pytest.raises(BiobracketError, match="something else"):
        answer(call, httpx.Response(200, content=b"<html>"), "http://a")

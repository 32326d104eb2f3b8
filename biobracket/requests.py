"""What both clients share: where a server is, what is sent, and what answers mean."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpx

from biobracket.errors import ApiError, BiobracketError

T = TypeVar("T")

_AGAIN = {429, 502, 503, 504}
_LONGEST_S = 60.0
_DEFAULT = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None

    def request(self) -> dict[str, Any]:
        """Arguments of httpx."""
        return {"method": self.method, "url": self.path, "params": self.query, "json": self.body}


def address_of(url: str | None) -> str:
    """The address of the server, without a slash at its end. BiobracketError where it is none."""
    address = (url or os.environ.get("BIOBRACKET_HTTP_URL") or _DEFAULT).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise BiobracketError("url: is no address; write https://ner.example.org, without user, password or query")
    return address


def headers_of(address: str, token: str | None, token_file: Path | str | None) -> dict[str, str]:
    """The header with the credential, if there is one. BiobracketError where it cannot be sent."""
    if token is None and token_file is None:
        token, token_file = os.environ.get("BIOBRACKET_TOKEN"), os.environ.get("BIOBRACKET_TOKEN_FILE")
    if token and token_file:
        raise BiobracketError("token: both a token and a file of one are given; give one")
    if token_file:
        try:
            token = Path(token_file).read_text("ascii")
        except (OSError, UnicodeDecodeError):
            raise BiobracketError("token_file: cannot be read; name a file that holds an API key or token") from None
    if not (token := (token or "").strip()):
        return {}
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise BiobracketError("token: is no API key or JSON Web Token, which is one word of ASCII characters")
    parts = urlsplit(address)
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise BiobracketError("url: the token would travel unencrypted; give an https:// address")
    return {"Authorization": f"Bearer {token}"}


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def pause(response: httpx.Response | httpx.TransportError, attempt: int) -> float | None:
    """Seconds until a request may be sent again; None where that would not help.

    As ``Retry-After`` says, in seconds or as a date; else twice as long each time, from half a second on, with jitter.
    """
    if isinstance(response, httpx.TransportError):
        # An answer that does not come in time would not come the next time.
        wanted = None if isinstance(response, httpx.ReadTimeout) else _backoff(attempt)
    elif response.status_code not in _AGAIN:
        wanted = None
    else:
        wanted = _retry_after(response.headers.get("Retry-After", ""))
        wanted = _backoff(attempt) if wanted is None else wanted
    return wanted if wanted is None or wanted <= _LONGEST_S else None


def _backoff(attempt: int) -> float:
    return min(_LONGEST_S, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _retry_after(value: str) -> float | None:
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def answer(call: Call[T], response: httpx.Response | httpx.TransportError, address: str) -> T:
    """What was asked for. ApiError where the server refuses, BiobracketError where there is no answer that is one."""
    if isinstance(response, httpx.TransportError):
        # `from None`: the request in the cause holds the text.
        raise BiobracketError(
            f"nothing answers at {address} ({type(response).__name__}); start it with `biobracket up`, or give the "
            "address of a server that runs"
        ) from None
    if not response.is_success:
        try:
            said = json.loads(response.content)["error"]
            refusal = ApiError(response.status_code, said["field"], said["problem"], said["remedy"])
        except (ValueError, KeyError, TypeError):
            refusal = ApiError(response.status_code, "http", "is refused", f"see the log of {address}")
        raise refusal
    try:
        return call.read(response.content)
    except (ValueError, KeyError, TypeError):
        raise BiobracketError(f"{address} answers something else; see that it is biobracket of this version") from None

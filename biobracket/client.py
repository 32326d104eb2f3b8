"""Clients of the HTTP interface, one that waits and one for asyncio, with the same methods."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from biobracket.requests import Call, address_of, answer, headers_of, pause
from shared.messages import Extraction, Lang, Mention
from shared.selection.feedback import Feedback

T = TypeVar("T")


def _extract(text: str, given: Mapping[str, Any]) -> Call[Extraction]:
    body = {"text": text, **{name: value for name, value in given.items() if value is not None}}
    return Call("POST", "/v1/extract", Extraction.model_validate_json, body=body)


def _get(id: str) -> Call[Extraction]:
    return Call("GET", f"/v1/documents/{quote(id, safe='')}", Extraction.model_validate_json)


def _search(text: str, type: str | None, limit: int | None) -> Call[list[Mention]]:
    query = {name: value for name, value in (("text", text), ("type", type), ("limit", limit)) if value is not None}
    return Call("GET", "/v1/mentions", _mentions, query=query)


def _mentions(content: bytes) -> list[Mention]:
    return [Mention.model_validate(each) for each in json.loads(content)["mentions"]]


def _feedback(text: str, start: int, end: int, type: str, accepted: bool, given: Mapping[str, Any]) -> Call[Feedback]:
    body = {"text": text, "start": start, "end": end, "type": type, "accepted": accepted}
    body |= {name: value for name, value in given.items() if value is not None}
    return Call("POST", "/v1/feedback", Feedback.model_validate_json, body=body)


def _delete(id: str) -> Call[None]:
    return Call("DELETE", f"/v1/documents/{quote(id, safe='')}", lambda _: None)


class _Options:
    """What both clients are made of."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        timeout_s: float = 120.0,
        retries: int = 4,
    ) -> None:
        """``url``: of the server; ``BIOBRACKET_HTTP_URL`` if None, else ``http://127.0.0.1:8000``.

        ``token``, ``token_file``: an API key or JSON Web Token, or a file that holds one; ``BIOBRACKET_TOKEN`` and
        ``BIOBRACKET_TOKEN_FILE`` if both are None. ``retries``: how often a request is sent again after 429, 502, 503,
        504 or no connection, after the pause that ``Retry-After`` asks for. BiobracketError for a wrong setting.
        """
        self.url = address_of(url)
        self._headers = headers_of(self.url, token, token_file)
        self._timeout_s = timeout_s
        self._retries = retries

    def _httpx(self) -> dict[str, Any]:
        # `trust_env`: no proxy must come between, or see the text.
        return {"base_url": self.url, "headers": self._headers, "timeout": self._timeout_s, "trust_env": False}


class Client(_Options):
    """A client that waits for each answer. ApiError where the server refuses, BiobracketError where none answers."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self._client = httpx.Client(**self._httpx())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connections."""
        self._client.close()

    def _call(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                response: httpx.Response | httpx.TransportError = self._client.request(**call.request())
            except httpx.TransportError as error:
                response = error
            if attempt >= self._retries or (seconds := pause(response, attempt)) is None:
                return answer(call, response, self.url)
            time.sleep(seconds)
            attempt += 1

    def extract(
        self,
        text: str,
        *,
        id: str | None = None,
        lang: Lang | None = None,
        types: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Extraction:
        """The entities of a text; nothing is stored."""
        return self._call(_extract(text, {"id": id, "lang": lang, "types": types, "metadata": metadata}))

    def get(self, id: str) -> Extraction:
        """The newest stored result of a document; ApiError of status 404 where there is none."""
        return self._call(_get(id))

    def search(self, text: str, *, type: str | None = None, limit: int | None = None) -> list[Mention]:
        """Where a text is mentioned."""
        return self._call(_search(text, type, limit))

    def feedback(
        self,
        text: str,
        start: int,
        end: int,
        type: str,
        accepted: bool,
        *,
        document_id: str | None = None,
        reviewer: str | None = None,
    ) -> Feedback:
        """Accepts or rejects the mention ``text[start:end]``; what is stored."""
        given = {"document_id": document_id, "reviewer": reviewer}
        return self._call(_feedback(text, start, end, type, accepted, given))

    def delete(self, id: str) -> None:
        """Erases a document."""
        self._call(_delete(id))


class AsyncClient(_Options):
    """A client for asyncio; the methods are those of :class:`Client`."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self._client = httpx.AsyncClient(**self._httpx())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets go of the connections."""
        await self._client.aclose()

    async def _call(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                response: httpx.Response | httpx.TransportError = await self._client.request(**call.request())
            except httpx.TransportError as error:
                response = error
            if attempt >= self._retries or (seconds := pause(response, attempt)) is None:
                return answer(call, response, self.url)
            await asyncio.sleep(seconds)
            attempt += 1

    async def extract(
        self,
        text: str,
        *,
        id: str | None = None,
        lang: Lang | None = None,
        types: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Extraction:
        """The entities of a text; nothing is stored."""
        return await self._call(_extract(text, {"id": id, "lang": lang, "types": types, "metadata": metadata}))

    async def get(self, id: str) -> Extraction:
        """The newest stored result of a document; ApiError of status 404 where there is none."""
        return await self._call(_get(id))

    async def search(self, text: str, *, type: str | None = None, limit: int | None = None) -> list[Mention]:
        """Where a text is mentioned."""
        return await self._call(_search(text, type, limit))

    async def feedback(
        self,
        text: str,
        start: int,
        end: int,
        type: str,
        accepted: bool,
        *,
        document_id: str | None = None,
        reviewer: str | None = None,
    ) -> Feedback:
        """Accepts or rejects the mention ``text[start:end]``; what is stored."""
        given = {"document_id": document_id, "reviewer": reviewer}
        return await self._call(_feedback(text, start, end, type, accepted, given))

    async def delete(self, id: str) -> None:
        """Erases a document."""
        await self._call(_delete(id))

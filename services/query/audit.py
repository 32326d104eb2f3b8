"""The audit trail of HTTP: an entry for each request that concerns a document or mention, also where it is refused."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.audit_trail import Action, AuditTrail
from services.query.errors import ApiError
from services.query.routes import extract, feedback, results
from shared.runtime.logs import get_logger

logger = get_logger(__name__)

_DOCUMENTS = "/v1/documents/"
_ANYBODY = "anybody"  # where the server runs without authentication, or nobody was recognised


class Audited:
    """ASGI middleware around authentication. Without an entry there is no answer: a trail that cannot be written to
    makes it a 503.
    """

    def __init__(self, app: ASGIApp, trail: AuditTrail) -> None:
        self.app = app
        self._trail = trail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = _action(scope) if scope["type"] == "http" else None
        if action is None:
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        refused = False

        async def audited(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and not refused:
                caller = state.get("caller")
                who = _ANYBODY if caller is None else caller.id
                try:
                    self._trail.add(who, action, _subject(scope, state), str(message["status"]))
                except OSError as error:
                    refused = True
                    logger.error("audit_failed", error=error)
                    await _REFUSAL(scope, receive, send)
            if not refused:
                await send(message)

        await self.app(scope, receive, audited)


def _unwritable() -> JSONResponse:
    refusal = ApiError(503, "system", "cannot write its audit trail", "try again; the server's log has the cause")
    return JSONResponse(refusal.body.model_dump(), refusal.status_code, headers={"Retry-After": "30"})


_REFUSAL = _unwritable()


def _action(scope: Scope) -> Action | None:
    path, method = scope["path"], scope["method"]
    if path.startswith(_DOCUMENTS):
        return "forget" if method == "DELETE" else "read"
    if path == results.MENTIONS:
        return "search"
    if path == extract.PATH:
        return "extract"
    return "feedback" if path == feedback.PATH or path.startswith(f"{feedback.PATH}/") else None


def _subject(scope: Scope, state: dict[str, Any]) -> str:
    """What a request is about: the id of a document or of feedback, or the words that are looked for."""
    path: str = scope["path"]
    if path == results.MENTIONS:
        return "".join(parse_qs(scope["query_string"].decode("latin-1")).get("text", []))
    for prefix in (_DOCUMENTS, f"{feedback.PATH}/"):
        if path.startswith(prefix):
            return path.removeprefix(prefix)
    return str(state.get("subject", ""))  # set by routes that read it from the body

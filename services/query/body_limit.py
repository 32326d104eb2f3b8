"""A limit on the size of request bodies."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.query.errors import ApiError


class BodyLimit:
    """ASGI middleware that rejects a body above ``max_bytes`` while reading it, whatever length it declares."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = ApiError(
            413,
            "body",
            f"is larger than {self.max_bytes} bytes",
            "split the document, or raise BIOBRACKET_QUERY_MAX_BODY_BYTES",
        )
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.max_bytes:
            await JSONResponse(too_large.body.model_dump(), 413)(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise too_large
            return message

        await self.app(scope, limited, send)

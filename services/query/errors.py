"""Error answers: what is wrong with a request, and what to do about it.

Every error is ``{"error": {"field": ..., "problem": ..., "remedy": ...}}`` and never echoes the request: a request
holds clinical text, and an answer may end up in the log of a proxy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from shared.errors import StoreError, StreamError
from shared.messages import MAX_ID_CHARS
from shared.runtime.logs import get_logger

logger = get_logger(__name__)


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str = Field(description="The part of the request, or of the system, at fault.")
    problem: str = Field(description="What is wrong with it.")
    remedy: str = Field(description="What to do.")


class Failure(BaseModel):
    """The body of every error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "field": "text",
                        "problem": "is missing",
                        "remedy": "send the text as a JSON string of Unicode characters",
                    }
                }
            ]
        }
    )

    error: Problem = Field(description="The first error found.")


class ApiError(HTTPException):
    """An error answer in its three parts."""

    def __init__(self, status: int, field: str, problem: str, remedy: str, headers: Mapping[str, str] | None = None):
        super().__init__(status, headers=headers)
        self.body = Failure(error=Problem(field=field, problem=problem, remedy=remedy))


_BODY_REMEDY = "send one JSON object in UTF-8, such as {}, with Content-Type: application/json"

ID_REMEDY = f"send a string of 1 to {MAX_ID_CHARS} Unicode characters"
LIMIT_REMEDY = "send a whole number from 1 to the maximum allowed, or omit it"
LANG_REMEDY = "send zh or en, or omit it to have the language detected"
VERSION_REMEDY = "send 1, or omit it"


def body_remedy(example: str) -> str:
    """What to do about a body that is not a JSON object like ``example``."""
    return _BODY_REMEDY.format(example)


class RequestHelp(NamedTuple):
    """What a route says about requests that do not validate.

    ``remedies``: what to do, by parameter or body member; ``members``: names that a body may have.
    """

    remedies: Mapping[str, str]
    members: Iterable[str] = ()


_ANY_REQUEST = RequestHelp({"body": body_remedy('{"text": "..."}'), "id": ID_REMEDY})

_BY_STATUS = {
    400: ("body", "cannot be read as JSON", _ANY_REQUEST.remedies["body"]),
    404: ("path", "does not exist", "see /docs for the paths"),
    405: ("method", "is not allowed on this path", "see /docs for the methods"),
}


def _problem(error: Mapping[str, Any], request_help: RequestHelp) -> Problem:
    """What pydantic found, without the input; the names of unknown members are input as well."""
    names = [name for name in error["loc"][1:2] if name in request_help.remedies]
    field = names[0] if names else "body"
    kind = error["type"]
    if kind == "json_invalid":
        problem = "is not JSON"
    elif kind == "missing":
        problem = "is missing"
    elif kind == "extra_forbidden":
        field = "body"
        problem = f"has an unknown member; the known ones are {', '.join(request_help.members)}"
    elif kind == "string_unicode":
        problem = "holds a lone surrogate, which is not Unicode text"
    else:
        message = str(error["msg"]).removeprefix("Value error, ")
        if kind == "value_error" and field == "body":  # across several members: the message starts with one of them
            field, _, message = message.partition(": ")
        problem = message[:1].lower() + message[1:]
    return Problem(field=field, problem=problem, remedy=request_help.remedies[field])


def add_handlers(app: FastAPI, helps: Mapping[str, RequestHelp]) -> None:
    """Give every error that leaves the application the one format. ``helps``: by path."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        problem = _problem(first, helps.get(request.url.path, _ANY_REQUEST))
        status = 400 if first["type"] == "json_invalid" else 422
        return JSONResponse(Failure(error=problem).model_dump(), status)

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, ApiError):
            body = error.body
        else:
            field, problem, remedy = _BY_STATUS.get(error.status_code, ("request", "is refused", "see /docs"))
            body = Failure(error=Problem(field=field, problem=problem, remedy=remedy))
        return JSONResponse(body.model_dump(), error.status_code, headers=error.headers)

    @app.exception_handler(StoreError)
    @app.exception_handler(StreamError)
    async def backend_failed(_: Request, error: StoreError | StreamError) -> JSONResponse:
        name = "store" if isinstance(error, StoreError) else "kafka"
        logger.warning(f"{name}_failed", error=error)
        body = Problem(field=name, problem="does not answer", remedy="try again; the server's log has the cause")
        return JSONResponse(Failure(error=body).model_dump(), 503, headers={"Retry-After": "5"})

"""``POST /v1/extract``: the entities of one text."""

# No `from __future__ import annotations` where a route's types depend on arguments of its router: FastAPI resolves
# annotations that are strings in the module's namespace.

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from services.query.auth.scopes import requires
from services.query.errors import (
    ID_REMEDY,
    LANG_REMEDY,
    VERSION_REMEDY,
    ApiError,
    Failure,
    RequestHelp,
    body_remedy,
)
from shared import entity_types
from shared.entity_types import DEFAULTS, TYPES
from shared.errors import DocumentError, StoreError
from shared.messages import MAX_ID_CHARS, MAX_TYPES, Document, Extraction
from shared.runtime.logs import get_logger

PATH = "/v1/extract"

ExtractDocument = Callable[[Document], Awaitable[Extraction]]
"""Raises :class:`shared.errors.DocumentError` for a fault of the document and :class:`Busy` for one to retry later."""

logger = get_logger(__name__)


class Busy(Exception):
    """Raised by an extractor with too many requests waiting; answered with 503."""


class ExtractRequest(Document):
    """A text to extract entities from. Only ``text`` is required."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "Activation of the CD28 surface receptor provides a second signal for T cell activation."},
                {"id": "bl-2", "text": "患者因右肺腺癌入院。", "lang": "zh", "types": ["disease", "body"]},
            ]
        },
    )

    id: str = Field(
        default_factory=lambda: uuid.uuid4().hex,
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="Identifier of the document; generated if omitted.",
    )

    def document(self) -> Document:
        """The same as a plain :class:`Document`."""
        return Document(**dict(self))


HELP = RequestHelp(
    {
        "body": body_remedy('{"text": "..."}'),
        "text": "send the text as a JSON string of Unicode characters; decode the source with its right encoding first",
        "id": f"{ID_REMEDY}, or omit it to have one generated",
        "lang": LANG_REMEDY,
        "types": f"send a list of at most {MAX_TYPES} of {', '.join(TYPES)}; or omit it for the default set "
        f"(en: {', '.join(DEFAULTS['en'])}; zh: {', '.join(DEFAULTS['zh'])})",
        "metadata": "send a JSON object, or omit it",
        "v": VERSION_REMEDY,
    },
    tuple(ExtractRequest.model_fields),
)


def router(extractor: ExtractDocument, timeout_s: float, most: int) -> APIRouter:
    """The route.

    An extraction that takes longer than ``timeout_s`` seconds is answered with 504, one beyond ``most`` at a time
    with 503.
    """
    routes = APIRouter()
    under_way = 0

    @routes.post(
        PATH,
        dependencies=[requires("extract")],
        summary="Extract entities from one text",
        responses={
            code: {"model": Failure, "description": what}
            for code, what in (
                (400, "The body is not JSON."),
                (413, "The body is too large."),
                (422, "A field is wrong."),
                (503, "The system is busy or starting; try again."),
                (504, "The extraction took too long."),
            )
        },
    )
    async def extract_entities(request: ExtractRequest, http: Request) -> Extraction:
        """Waits for the entities of one text. To process many texts, send them through Kafka."""
        nonlocal under_way
        http.state.subject = request.id
        under_way += 1
        try:
            if under_way > most:
                raise Busy
            if request.types is not None:
                entity_types.check(request.types)
            return await asyncio.wait_for(extractor(request.document()), timeout_s)
        except DocumentError as error:
            raise ApiError(422, error.field, error.problem, error.remedy) from None
        except Busy:
            raise ApiError(
                503, "system", "has too many requests waiting", "try again later", {"Retry-After": "5"}
            ) from None
        except TimeoutError:
            raise ApiError(
                504,
                "text",
                f"took longer than {timeout_s:g} seconds",
                "send it through Kafka, split it, or raise BIOBRACKET_QUERY_TIMEOUT_S",
            ) from None
        except StoreError:
            raise
        except Exception as error:
            # Its message and traceback may hold what was being processed; its class cannot.
            logger.error("extract_failed", error=error)
            raise ApiError(
                500, "system", "failed to process the document", "try again; the server's log has the cause"
            ) from None
        finally:
            under_way -= 1

    return routes

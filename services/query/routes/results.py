"""``GET /v1/documents/{id}`` and ``GET /v1/mentions``: stored extractions."""

# Annotations must not be strings here: the types of a route's parameters depend on arguments of its router.

from typing import Annotated, Protocol

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from services.query.auth.scopes import requires
from services.query.errors import LIMIT_REMEDY, ApiError, Failure, RequestHelp, body_remedy
from services.query.routes.identifiers import PathId
from shared.entity_types import TYPES
from shared.messages import Extraction, Mention

MENTIONS = "/v1/mentions"
_MAX_TEXT = 1000

MENTIONS_HELP = RequestHelp(
    {
        "body": body_remedy("{}"),
        "text": f"send the words of the mention, 1 to {_MAX_TEXT} characters",
        "type": f"send one of {', '.join(TYPES)}; or omit it for all types",
        "limit": LIMIT_REMEDY,
    }
)


class ResultReader(Protocol):
    """What these routes need of a result store; :class:`shared.backends.result_store.ResultStore` is one."""

    def get(self, document_id: str) -> Extraction | None: ...

    def mentions(self, text: str, type: str | None, limit: int = 100) -> list[Mention]: ...


class Mentions(BaseModel):
    """Where a text is mentioned."""

    mentions: tuple[Mention, ...] = Field(
        description="The mentions, those of the most recently written document first."
    )


def router(store: ResultReader, max_mentions: int) -> APIRouter:
    """The routes; a request may ask for at most ``max_mentions``."""
    routes = APIRouter()

    @routes.get(
        "/v1/documents/{id:document}",
        dependencies=[requires("read")],
        summary="Get the entities of a document",
        responses={
            404: {"model": Failure, "description": "No result is stored for the document."},
            422: {"model": Failure, "description": "The identifier is too long."},
        },
    )
    def get_document(id: PathId) -> Extraction:
        """The newest extraction of a document that came in through Kafka."""
        extraction = store.get(id)
        if extraction is None:
            raise ApiError(
                404,
                "id",
                "no result is stored for this document",
                "check the identifier; a document that was just sent takes a moment, and one that cannot be processed "
                "is in the dead-letters topic",
            )
        return extraction

    @routes.get(
        MENTIONS,
        dependencies=[requires("read")],
        summary="Find the documents that mention a text",
        responses={422: {"model": Failure, "description": "A parameter is wrong."}},
    )
    def get_mentions(
        text: Annotated[
            str,
            Query(min_length=1, max_length=_MAX_TEXT, description="The mention, in any case.", examples=["CD28"]),
        ],
        type: Annotated[
            str | None, Query(description="Entity type key; all types if omitted.", examples=["protein"])
        ] = None,
        limit: Annotated[int, Query(ge=1, le=max_mentions, description="Most mentions to return.")] = min(
            100, max_mentions
        ),
    ) -> Mentions:
        """Mentions by their text, ignoring case and surrounding white space."""
        if type is not None and type not in TYPES:
            raise ApiError(422, "type", "is not a known entity type", MENTIONS_HELP.remedies["type"])
        return Mentions(mentions=tuple(store.mentions(text, type, limit)))

    return routes

"""The HTTP interface: a FastAPI application over an extractor and a result store, with no Ray in it.

Every error is ``{"error": {"field": ..., "problem": ..., "remedy": ...}}`` and never repeats what was sent: a request
holds clinical text, and an answer may end in the log of a proxy.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.query.config import QueryConfig
from shared import entity_types
from shared.entity_types import DEFAULTS, TYPES
from shared.errors import DocumentError, StoreError
from shared.messages import MAX_ID_CHARS, MAX_TYPES, Document, Extraction, Mention
from shared.runtime.logs import get_logger
from shared.selection.feedback import MAX_TEXT, Feedback, FeedbackPage, Opinion

Extract = Callable[[Document], Awaitable[Extraction]]
Missing = Callable[[], Awaitable[Sequence[str]]]

FEEDBACK = "/v1/feedback"

logger = get_logger(__name__)


class Results(Protocol):
    """What the interface needs of a result store; :class:`shared.backends.result_store.ResultStore` is one."""

    def get(self, document_id: str) -> Extraction | None: ...

    def mentions(self, text: str, type: str | None, limit: int = 100) -> list[Mention]: ...


class Reviews(Protocol):
    """What the interface needs to take feedback; :class:`shared.backends.feedback_store.FeedbackStore` is one."""

    def put(self, feedback: Feedback) -> bool: ...

    def undo(self, id: str) -> bool: ...

    def page(self, limit: int = 100, before: int | None = None) -> FeedbackPage: ...


class Busy(Exception):
    """Raised by an extractor that has too much to do; answered with 503."""


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
        description="Identifier of the document; made when absent.",
    )

    def document(self) -> Document:
        """The same as a plain :class:`Document`."""
        return Document(**dict(self))


class Mentions(BaseModel):
    """Where a text is mentioned."""

    mentions: tuple[Mention, ...] = Field(description="Mentions of the text, of documents written last first.")


class Problem(BaseModel):
    """What is wrong with a request."""

    field: str = Field(description="The part of the request, or of the system, that is at fault.")
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

    error: Problem = Field(description="The first thing that is wrong.")


class Health(BaseModel):
    """The state of this process."""

    status: str = Field(description="`alive` or `ready`.", examples=["alive"])


class Unready(BaseModel):
    """What has to come up before requests can be served."""

    status: str = Field(default="not ready", description="Always `not ready`.")
    missing: tuple[str, ...] = Field(
        description="What is missing, and what to do about it.",
        examples=[["store: does not answer; check BIOBRACKET_REDIS"]],
    )


class DocumentId(StringConvertor):
    """Any identifier in an address, with slashes and line ends."""

    regex = "(?s:.*)"


register_url_convertor("document", DocumentId())


class ApiError(HTTPException):
    """An error with its three parts."""

    def __init__(self, status: int, field: str, problem: str, remedy: str, headers: Mapping[str, str] | None = None):
        super().__init__(status, headers=headers)
        self.body = Failure(error=Problem(field=field, problem=problem, remedy=remedy))


_BODY_REMEDY = 'send one JSON object in UTF-8, such as {"text": "..."}, with Content-Type: application/json'

_REMEDIES = {
    "body": _BODY_REMEDY,
    "text": "send the text as a JSON string of Unicode characters; decode the source with its right encoding first",
    "id": f"send a string of 1 to {MAX_ID_CHARS} Unicode characters, or leave it out to have one made",
    "lang": "send zh or en, or leave it out to have the language detected",
    "types": f"send a list of at most {MAX_TYPES} of {', '.join(TYPES)}; or leave it out for the default set "
    f"(en: {', '.join(DEFAULTS['en'])}; zh: {', '.join(DEFAULTS['zh'])})",
    "metadata": "send a JSON object, or leave it out",
    "v": "send 1, or leave it out",
    "type": f"send one of {', '.join(TYPES)}; or leave it out for all types",
    "before": "send `next` of the page before, or leave it out for the first page",
    "limit": "send a whole number from 1 to the largest allowed, or leave it out",
}

_OF_FEEDBACK = _REMEDIES | {
    "body": 'send one JSON object in UTF-8, such as {"text": "...", "start": 0, "end": 4, "type": "disease", '
    '"accepted": false}, with Content-Type: application/json',
    "text": f"send 1 to {MAX_TEXT} Unicode characters: the sentence that the mention stands in",
    "start": "send the offset of the mention in the text, in Unicode code points from 0; no white space belongs to it",
    "end": "send the offset behind the mention in the text, in Unicode code points",
    "type": f"send one of {', '.join(TYPES)}",
    "accepted": "send true or false",
    "reviewer": f"send a string of at most {MAX_ID_CHARS} Unicode characters, or leave it out",
    "time": "send Unix seconds, or leave it out",
}

_BY_STATUS = {
    400: ("body", "cannot be read as JSON", _BODY_REMEDY),
    404: ("path", "there is nothing at this address", "see /docs for the addresses"),
    405: ("method", "this address does not take the method", "see /docs for the methods"),
}


def problem_of(error: Mapping[str, Any], known: Iterable[str], remedies: Mapping[str, str]) -> Problem:
    """What pydantic found wrong, without the input; the names of members that were sent are input as well.

    ``known``: the names of the members that a body may have; ``remedies``: what to do, by member.
    """
    names = [name for name in error["loc"][1:2] if name in remedies]
    field = names[0] if names else "body"
    kind = error["type"]
    if kind == "json_invalid":
        problem = "is not JSON"
    elif kind == "missing":
        problem = "is missing"
    elif kind == "extra_forbidden":
        field = "body"
        problem = f"has a member that is not known; the known ones are {', '.join(known)}"
    elif kind == "string_unicode":
        problem = "holds a lone surrogate, which is not Unicode text"
    else:
        message = str(error["msg"]).removeprefix("Value error, ")
        if kind == "value_error" and field == "body":  # of several members: it begins with the one to change
            field, _, message = message.partition(": ")
        problem = message[:1].lower() + message[1:]
    return Problem(field=field, problem=problem, remedy=remedies[field])


class BodyLimit:
    """ASGI middleware that refuses a body above ``max_bytes`` while it is read, whatever length it declares."""

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


def create_app(
    *,
    extract: Extract,
    store: Results,
    reviews: Reviews,
    missing: Missing,
    config: QueryConfig,
) -> FastAPI:
    """The HTTP application.

    ``extract`` takes a document to its extraction (:class:`DocumentError` where the document is at fault,
    :class:`Busy` where it should be tried later). ``store`` is asked in threads. ``missing`` names, a string each, what
    is not ready yet; none when all is. ``reviews``, also asked in threads, takes feedback.
    """
    app = FastAPI(
        title="biobracket",
        version="1",
        summary="Nested biomedical entities of Chinese and English text.",
        description="Offsets count Unicode code points; `text[start:end] == entity.text` always holds.",
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        status = 400 if first["type"] == "json_invalid" else 422
        if request.url.path == FEEDBACK:
            problem = problem_of(first, Opinion.model_fields, _OF_FEEDBACK)
        else:
            problem = problem_of(first, ExtractRequest.model_fields, _REMEDIES)
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
    async def store_failed(_: Request, error: StoreError) -> JSONResponse:
        logger.warning("store_failed", error=error)
        body = Problem(field="store", problem="does not answer", remedy="try again; the operator sees why in the log")
        return JSONResponse(Failure(error=body).model_dump(), 503, headers={"Retry-After": "5"})

    @app.post(
        "/v1/extract",
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
    async def extract_entities(request: ExtractRequest) -> Extraction:
        """Waits for the entities of one text. For many texts, Kafka is the way in."""
        try:
            if request.types is not None:
                entity_types.check(request.types)
            return await asyncio.wait_for(extract(request.document()), config.timeout_s)
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
                f"took longer than {config.timeout_s:g} seconds",
                "send it through Kafka, split it, or raise BIOBRACKET_QUERY_TIMEOUT_S",
            ) from None
        except StoreError:
            raise
        except Exception as error:
            # Its message and traceback may hold what was being processed; its class cannot.
            logger.error("extract_failed", error=error)
            raise ApiError(
                500, "system", "failed to process the document", "try again; the operator sees why in the log"
            ) from None

    @app.get(
        "/v1/documents/{id:document}",
        summary="Get the entities of a document",
        responses={
            404: {"model": Failure, "description": "No result is stored for the document."},
            422: {"model": Failure, "description": "The identifier is too long."},
        },
    )
    def get_document(
        id: Annotated[
            str,
            Path(min_length=1, max_length=MAX_ID_CHARS, description="Identifier of the document.", examples=["note-1"]),
        ],
    ) -> Extraction:
        """The newest extraction of a document that came in through Kafka."""
        extraction = store.get(id)
        if extraction is None:
            raise ApiError(
                404,
                "id",
                "no result is stored for this document",
                "check the identifier; a document sent just now takes a moment, and one that cannot be processed is "
                "in the dead-letters topic",
            )
        return extraction

    @app.get(
        "/v1/mentions",
        summary="Find the documents that mention a text",
        responses={422: {"model": Failure, "description": "A parameter is wrong."}},
    )
    def get_mentions(
        text: Annotated[
            str,
            Query(min_length=1, max_length=1000, description="The mention, in any case.", examples=["CD28"]),
        ],
        type: Annotated[
            str | None, Query(description="Entity type key; all types when absent.", examples=["protein"])
        ] = None,
        limit: Annotated[int, Query(ge=1, le=config.max_mentions, description="Most mentions to give.")] = min(
            100, config.max_mentions
        ),
    ) -> Mentions:
        """Mentions by their text, case-insensitively and without surrounding white space."""
        if type is not None and type not in TYPES:
            raise ApiError(422, "type", "is no known entity type", _REMEDIES["type"])
        return Mentions(mentions=tuple(store.mentions(text, type, limit)))

    @app.post(
        FEEDBACK,
        status_code=201,
        summary="Accept or reject a mention",
        responses={
            409: {"model": Failure, "description": "It is older than what is there."},
            422: {"model": Failure, "description": "A field is wrong."},
        },
    )
    def give_feedback(opinion: Opinion) -> Feedback:
        """Counts from the next extraction on, for the mention and for near copies of it, on every replica.

        A later opinion on the same mention, or of the same `id`, replaces an earlier one. What is stored is the answer.
        """
        feedback = opinion.feedback(time.time())
        if not reviews.put(feedback):
            raise ApiError(
                409,
                "time",
                "is not after that of the opinion which is there, or which was taken back",
                "leave it out, or send when this opinion was given",
            )
        return feedback

    @app.get(
        FEEDBACK,
        summary="List feedback",
        responses={422: {"model": Failure, "description": "A parameter is wrong."}},
    )
    def list_feedback(
        limit: Annotated[int, Query(ge=1, le=config.max_mentions, description="Most opinions to give.")] = min(
            100, config.max_mentions
        ),
        before: Annotated[int | None, Query(ge=0, description="`next` of the page before.")] = None,
    ) -> FeedbackPage:
        """Those changed last first."""
        return reviews.page(limit, before)

    @app.delete(
        FEEDBACK + "/{id:document}",
        status_code=204,
        summary="Take feedback back",
        responses={
            404: {"model": Failure, "description": "There is no feedback of this id."},
            422: {"model": Failure, "description": "The identifier is too long."},
        },
    )
    def undo_feedback(
        id: Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS, description="Identifier of the feedback.")],
    ) -> None:
        """As if it had never been given, from the next extraction on."""
        if not reviews.undo(id):
            raise ApiError(404, "id", "no feedback has this id", "see GET /v1/feedback for those there are")

    @app.get("/healthz", summary="Whether this process is alive")
    async def healthz() -> Health:
        """Answers as long as the process does."""
        return Health(status="alive")

    @app.get(
        "/readyz",
        summary="Whether requests can be served",
        responses={503: {"model": Unready, "description": "Something is missing."}},
        response_model=Health,
    )
    async def readyz() -> Health | JSONResponse:
        """Asks the store and the model."""
        if what := await missing():
            return JSONResponse(Unready(missing=tuple(what)).model_dump(), 503)
        return Health(status="ready")

    return app

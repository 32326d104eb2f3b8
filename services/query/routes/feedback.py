"""``/v1/feedback``: reviewers accept or reject mentions."""

# Annotations must not be strings here: the types of a route's parameters depend on arguments of its router.

import time
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request

from services.query.auth.scopes import requires
from services.query.errors import (
    ID_REMEDY,
    LANG_REMEDY,
    LIMIT_REMEDY,
    VERSION_REMEDY,
    ApiError,
    Failure,
    RequestHelp,
    body_remedy,
)
from services.query.routes.identifiers import PathId
from shared.entity_types import TYPES
from shared.errors import DocumentError
from shared.messages import MAX_ID_CHARS
from shared.selection.feedback import MAX_TEXT, Feedback, FeedbackPage, NewFeedback

PATH = "/v1/feedback"

HELP = RequestHelp(
    {
        "body": body_remedy('{"text": "...", "start": 0, "end": 4, "type": "disease", "accepted": false}'),
        "text": f"send 1 to {MAX_TEXT} Unicode characters: the sentence around the mention",
        "start": "send the offset of the mention in the text, in Unicode code points; no white space at its start",
        "end": "send the offset after the last character of the mention, in Unicode code points",
        "type": f"send one of {', '.join(TYPES)}",
        "accepted": "send true or false",
        "id": f"{ID_REMEDY}, or omit it to have one generated",
        "document_id": f"{ID_REMEDY}, or omit it",
        "lang": LANG_REMEDY,
        "reviewer": f"send a string of at most {MAX_ID_CHARS} Unicode characters, or omit it",
        "time": "send Unix seconds, or omit it",
        "v": VERSION_REMEDY,
        "before": "send `next` from the previous page, or omit it for the first page",
        "limit": LIMIT_REMEDY,
    },
    tuple(NewFeedback.model_fields),
)


class FeedbackBackend(Protocol):
    """What these routes need of a store; :class:`shared.backends.feedback_store.FeedbackStore` is one."""

    def put(self, feedback: Feedback) -> bool: ...

    def undo(self, id: str) -> bool: ...

    def page(self, limit: int = 100, before: int | None = None) -> FeedbackPage: ...


def router(store: FeedbackBackend, max_page: int) -> APIRouter:
    """The routes; a page holds at most ``max_page`` items."""
    routes = APIRouter()

    @routes.post(
        PATH,
        status_code=201,
        dependencies=[requires("feedback")],
        summary="Accept or reject a mention",
        responses={
            409: {
                "model": Failure,
                "description": "Newer feedback on the mention is already stored, or no text is kept here.",
            },
            422: {"model": Failure, "description": "A field is wrong."},
        },
    )
    def give_feedback(given: NewFeedback, http: Request) -> Feedback:
        """Takes effect from the next extraction on, for the mention and near copies of it, on every replica.

        Later feedback on the same mention, or with the same `id`, replaces earlier feedback. Returns what is stored.
        """
        feedback = given.feedback(time.time())
        http.state.subject = feedback.id
        try:
            stored = store.put(feedback)
        except DocumentError as error:
            raise ApiError(409, error.field, error.problem, error.remedy) from None
        if not stored:
            raise ApiError(
                409,
                "time",
                "is not later than that of the feedback already stored or withdrawn",
                "omit it, or send the time at which this feedback was given",
            )
        return feedback

    @routes.get(
        PATH,
        dependencies=[requires("feedback")],
        summary="List feedback",
        responses={422: {"model": Failure, "description": "A parameter is wrong."}},
    )
    def list_feedback(
        limit: Annotated[int, Query(ge=1, le=max_page, description="Most items to return.")] = min(100, max_page),
        before: Annotated[int | None, Query(ge=0, description="`next` from the previous page.")] = None,
    ) -> FeedbackPage:
        """The most recently changed first."""
        return store.page(limit, before)

    @routes.delete(
        PATH + "/{id:document}",
        status_code=204,
        dependencies=[requires("feedback")],
        summary="Withdraw feedback",
        responses={
            404: {"model": Failure, "description": "There is no feedback with this id."},
            422: {"model": Failure, "description": "The identifier is too long."},
        },
    )
    def undo_feedback(id: PathId) -> None:
        """From the next extraction on, as if it had never been given."""
        if not store.undo(id):
            raise ApiError(404, "id", "no feedback has this id", "list the feedback with GET /v1/feedback")

    return routes

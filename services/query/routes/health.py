"""``/healthz`` and ``/readyz``: probes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from services.query.auth.scopes import OPEN

Missing = Callable[[], Awaitable[Sequence[str]]]


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


def router(missing: Missing) -> APIRouter:
    """The probes; ``missing`` returns a line for each part of the system that is not ready."""
    routes = APIRouter()

    @routes.get("/healthz", dependencies=[OPEN], summary="Whether this process is alive")
    async def healthz() -> Health:
        """Answers for as long as the process runs."""
        return Health(status="alive")

    @routes.get(
        "/readyz",
        dependencies=[OPEN],
        summary="Whether requests can be served",
        responses={503: {"model": Unready, "description": "Something is missing."}},
        response_model=Health,
    )
    async def readyz() -> Health | JSONResponse:
        """Asks the store, the model and the consumer."""
        if what := await missing():
            return JSONResponse(Unready(missing=tuple(what)).model_dump(), 503)
        return Health(status="ready")

    return routes

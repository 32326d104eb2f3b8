"""The HTTP application: routes, error answers and the body limit put together, with no Ray in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import RouteContext, iter_route_contexts

from services.audit_trail import AuditTrail
from services.query import errors
from services.query.audit import Audited
from services.query.auth.authentication import Authentication
from services.query.auth.limits import Limits
from services.query.auth.middleware import AccessControl
from services.query.auth.scopes import requires
from services.query.body_limit import BodyLimit
from services.query.config import QueryConfig
from services.query.routes import erasure, extract, feedback, health, results


def create_app(
    *,
    extractor: extract.ExtractDocument,
    result_store: results.ResultReader,
    feedback_store: feedback.FeedbackBackend,
    erase: erasure.Erase,
    missing: health.Missing,
    config: QueryConfig,
    trail: AuditTrail | None = None,
) -> FastAPI:
    """The HTTP application.

    ``extractor`` returns the extraction of a document, see :data:`.routes.extract.ExtractDocument` for its errors. Both
    stores and ``erase`` may block, so they are called from worker threads. ``missing`` returns a line for each part of
    the system that is not ready. With authentication in ``config``, every route but the probes takes a credential;
    raises :class:`.auth.callers.AuthenticationError` where that cannot be set up. ``trail`` gets an entry for each
    request that concerns a document or mention.
    """
    app = FastAPI(
        title="biobracket",
        version="1",
        summary="Nested biomedical entities of Chinese and English text.",
        description="Offsets count Unicode code points; `text[start:end] == entity.text` always holds.",
        openapi_url=None,  # these paths need a declaration, too: see below
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    if (authentication := Authentication.from_config(config)) is not None:
        app.add_middleware(
            AccessControl,
            authentication=authentication,
            limits=Limits(rate=config.rate, concurrent=config.max_caller_requests, failures=config.failed_rate),
            routes=lambda: routes(app),
        )
    if trail is not None:
        app.add_middleware(Audited, trail=trail)  # the last added is the first that a request meets
    errors.add_handlers(
        app, {extract.PATH: extract.HELP, results.MENTIONS: results.MENTIONS_HELP, feedback.PATH: feedback.HELP}
    )
    for router in (
        extract.router(extractor, config.timeout_s, config.max_extractions),
        results.router(result_store, config.max_mentions),
        erasure.router(erase),
        feedback.router(feedback_store, config.max_mentions),
    ):
        app.include_router(router, responses=_REFUSALS)
    app.include_router(health.router(missing))
    _describe(app)
    return app


_REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": errors.Failure, "description": what}
    for code, what in (
        (401, "There is no credential, or it is not accepted."),
        (403, "The credential has not the scope of this operation."),
        (429, "The caller has too many requests; retry after `Retry-After` seconds."),
    )
}


def routes(app: FastAPI) -> Sequence[RouteContext]:
    """All routes, those of routers included, in the order in which they are tried."""
    return tuple(iter_route_contexts(app.routes))


def _describe(app: FastAPI) -> None:
    """FastAPI's own paths for the description of the interface, for every caller that is known."""
    known = [requires(None)]

    @app.get("/openapi.json", include_in_schema=False, dependencies=known)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False, dependencies=known)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(openapi_url="openapi.json", title=app.title)

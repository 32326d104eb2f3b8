"""The HTTP application: routes, error answers and the body limit put together, with no Ray in it."""

from __future__ import annotations

from fastapi import FastAPI

from services.query import errors
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
) -> FastAPI:
    """The HTTP application.

    ``extractor`` returns the extraction of a document, see :data:`.routes.extract.ExtractDocument` for its errors. Both
    stores and ``erase`` may block, so they are called from worker threads. ``missing`` returns a line for each part of
    the system that is not ready.
    """
    app = FastAPI(
        title="biobracket",
        version="1",
        summary="Nested biomedical entities of Chinese and English text.",
        description="Offsets count Unicode code points; `text[start:end] == entity.text` always holds.",
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=config.max_body_bytes)
    errors.add_handlers(
        app, {extract.PATH: extract.HELP, results.MENTIONS: results.MENTIONS_HELP, feedback.PATH: feedback.HELP}
    )
    app.include_router(extract.router(extractor, config.timeout_s, config.max_extractions))
    app.include_router(results.router(result_store, config.max_mentions))
    app.include_router(erasure.router(erase))
    app.include_router(feedback.router(feedback_store, config.max_mentions))
    app.include_router(health.router(missing))
    return app

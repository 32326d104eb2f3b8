"""The Ray Serve binding of the HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray._private.authentication.authentication_utils import is_token_auth_enabled  # Ray says it nowhere else
from ray.exceptions import RayTaskError
from ray.serve import context as serve_context
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from services.audit_trail import AuditTrail
from services.handles import answer
from services.query import exposure
from services.query.api import create_app
from services.query.config import QueryConfig
from services.query.routes.extract import Busy
from services.replica_deployment import deployment
from shared.backends.eraser import Eraser
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.errors import DocumentError, Overloaded, StoreError
from shared.messages import Document, Extraction
from shared.runtime.logs import configure, get_logger
from shared.settings import settings

_CONFIG = QueryConfig()

logger = get_logger(__name__)


@deployment("query", _CONFIG)
@serve.ingress()
class Query:
    """Serves HTTP. One-off documents go through the pipeline; stored results come from the store.

    The arguments are the handles of other services; ``ingest`` is only probed.
    """

    def __init__(
        self, pipeline: DeploymentHandle[Any], generation: DeploymentHandle[Any], ingest: DeploymentHandle[Any]
    ) -> None:
        configure(settings("query"))
        _refuse_strangers()
        self._pipeline = pipeline
        self._generation = generation
        self._ingest = ingest
        self._store = ResultStore.from_settings(settings("query"))
        self._feedback = FeedbackStore.from_settings(settings("query"))
        self._trail = AuditTrail.from_settings(settings("query"))
        self._eraser = Eraser(settings("query"), self._store, self._feedback)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve calls this after the constructor."""
        return create_app(
            extractor=self._extract,
            result_store=self._store,
            feedback_store=self._feedback,
            erase=lambda document_id: self._eraser.erase([(document_id, None)]),
            missing=self._missing,
            config=_CONFIG,
            trail=self._trail,
        )

    async def _extract(self, document: Document) -> Extraction:
        try:
            extraction: Extraction = await answer(self._pipeline.extract.remote(document))
        except BackPressureError:
            raise Busy from None
        except RayTaskError as error:
            raise _cause(error) from None
        return extraction

    async def _ingest_goes_on(self) -> str | None:
        status = await answer(self._ingest.status.remote())
        return None if status["problem"] is None else f"ingest: {status['problem']}"

    async def _missing(self) -> list[str]:
        found = await asyncio.gather(
            _probe("store", "check that BIOBRACKET_REDIS names a running server", asyncio.to_thread(self._store.ping)),
            _probe(
                "generation",
                "the model is still loading, or its replica's log says why it failed",
                answer(self._generation.ready.remote()),
            ),
            _probe("ingest", "it is still starting, or its replica's log says why it failed", self._ingest_goes_on()),
        )
        return [missing for missing in found if missing]


def _refuse_strangers() -> None:
    """Raises ValueError where Ray or Serve listens beyond loopback and nobody has to authenticate."""
    address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    if said := exposure.ray_problem(address, is_token_auth_enabled(), _CONFIG):
        raise ValueError(said)
    client = serve_context._get_global_client()  # noqa: SLF001 - Serve says it nowhere else
    if client is None or (host := client.http_config.host) is None:
        return  # there is no proxy
    if said := exposure.problem(host, _CONFIG):
        raise ValueError(said)
    if not exposure.is_loopback(host) and client.http_config.ssl_certfile is None:
        logger.warning("http_without_tls")  # which something in front may add


def _cause(error: RayTaskError) -> Exception:
    """The exception raised in another actor, without the traceback that Ray adds to its message."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    if isinstance(cause, (BackPressureError, Overloaded)):
        return Busy()
    return cause if isinstance(cause, (DocumentError, StoreError)) else RuntimeError(type(cause).__name__)


async def _probe(name: str, remedy: str, reply: Awaitable[Any]) -> str | None:
    try:
        problem = await asyncio.wait_for(reply, _CONFIG.probe_s)
    except Exception:  # whatever it is, that part is not ready; its own log says why
        return f"{name}: does not answer; {remedy}"
    return problem if isinstance(problem, str) else None

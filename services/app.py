"""The application graph: which service calls which. Each service's config.py sets its replicas and resources.

    query ──► pipeline ──► generation, parsing, selection
    ingest ──► pipeline

``serve run services.app:app`` runs it on a Ray cluster; ``biobracket up`` runs it on this machine, with its own
servers.
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application

from services.generation.deployment import Generation
from services.ingest.deployment import Ingest
from services.parsing.deployment import Parsing
from services.pipeline.deployment import PipelineService
from services.query.deployment import Query
from services.selection.deployment import Selection

NAME = "biobracket"


def app(args: dict[str, Any] | None = None) -> Application:
    """Build the application. It takes no arguments: see ``biobracket settings`` for its environment variables."""
    if args:
        raise ValueError(
            f"{', '.join(sorted(args))}: the application takes no arguments; set BIOBRACKET_ environment variables"
        )
    generation = Generation.bind()
    pipeline = PipelineService.bind(generation, Parsing.bind(), Selection.bind())
    return Query.bind(pipeline, generation, Ingest.bind(pipeline))

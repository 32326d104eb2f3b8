"""All metrics. Services turn them into Ray counters, gauges and histograms, which Ray exports to Prometheus.

Prometheus sees `ray_<name>`, a counter as `ray_<name>_total`. No tag holds document text or an identifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

# From a cached segment on a GPU (milliseconds) to a 10 MB document on a busy CPU.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """Name, kind, description, tags, and for a histogram the bounds of its buckets."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


class Observe(Protocol):
    """Takes an observation: a counter's increment, a gauge's value, or a histogram's sample."""

    def __call__(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None: ...


def unobserved(metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
    """Ignores an observation."""


# Documents whose result is stored and published; a document that arrives twice counts twice.
DOCUMENTS = Metric("biobracket_documents", "counter", "Documents processed.", ("lang",))
# Versions of a document whose result was not stored, since that of a later version was: amendments and replays.
SUPERSEDED = Metric("biobracket_superseded", "counter", "Results behind a later version of their document.")
# Erasures that were asked for on the topic of documents, each counted when it is carried out.
ERASURES = Metric("biobracket_erasures", "counter", "Documents erased.")
# Documents sent to the dead-letter topic; tag `reason` is a shared.backends.records.DeadLetterReason.
DEAD_LETTERS = Metric("biobracket_dead_letters", "counter", "Documents sent to dead letters.", ("reason",))
# Reviewers' feedback through Kafka; tag `kind` is accepted, rejected or undone.
FEEDBACK = Metric("biobracket_feedback", "counter", "Pieces of feedback from reviewers.", ("kind",))
# Attempts after the first, by the stage that failed.
RETRIES = Metric("biobracket_retries", "counter", "Repeated attempts.", ("stage",))
# Segments that documents were split into, cached ones included.
SEGMENTS = Metric("biobracket_segments", "counter", "Segments processed.", ("lang",))
# Segments the generator was spared by a cache; their sum over SEGMENTS is the hit rate. Tag `layer`: local or store if
# the final selection was in the replica's memory or in Redis, lines if only the generator's lines were.
CACHE_HITS = Metric("biobracket_cache_hits", "counter", "Segments found in a cache.", ("layer",))
# Segments waiting or running in a generation replica. If it is near zero while documents wait elsewhere, generation is
# not the bottleneck.
GENERATION_SEGMENTS = Metric("biobracket_generation_segments", "gauge", "Segments in a generation replica.")
# Entities in results, by canonical type key.
ENTITIES = Metric("biobracket_entities", "counter", "Entities found.", ("type",))
# Corrections the parser made to tagged lines; more than a few point to an unconstrained or a bad model.
REPAIRS = Metric("biobracket_repairs", "counter", "Corrections to tagged lines.", ("kind",))
# Entities that broke text[start:end] == entity.text; each is a bug.
REFUSED = Metric("biobracket_refused", "counter", "Entities that broke the offset invariant.")
# Records between committed offsets and high-water marks in a replica's partitions; ingest scales on it.
LAG = Metric("biobracket_lag", "gauge", "Documents waiting, in records.")
# Fields of documents and feedback that this version does not know, such as those of a later one, or a typing error.
UNKNOWN_FIELDS = Metric("biobracket_unknown_fields", "counter", "Unknown fields in records.")
# 1 where a replica of ingest has come to a silent stop, see services/ingest/stalls.py; its health check fails then.
STALLED = Metric("biobracket_stalled", "gauge", "Whether ingest has stalled.")
# 1 while the group is halted, since too much went to the dead letters. An alarm.
HALTED = Metric("biobracket_halted", "gauge", "Whether consumption is halted.")
# The epoch of the group's lease under which an ingest replica consumes; 0 while another deployment does.
LEASE_EPOCH = Metric("biobracket_lease_epoch", "gauge", "Epoch of the group's lease.")
# Documents being processed by an ingest replica.
IN_FLIGHT = Metric("biobracket_in_flight", "gauge", "Documents in flight.")
# From reading a document to committing its result.
DOCUMENT_SECONDS = Metric("biobracket_document_seconds", "histogram", "Seconds a document takes.", (), SECONDS)
# One stage: cache, generation, parsing, selection, store, publish.
STAGE_SECONDS = Metric("biobracket_stage_seconds", "histogram", "Seconds a stage takes.", ("stage",), SECONDS)

METRICS = (
    DOCUMENTS, SUPERSEDED, ERASURES, DEAD_LETTERS, FEEDBACK, RETRIES, SEGMENTS, GENERATION_SEGMENTS, CACHE_HITS,
    ENTITIES, REPAIRS, REFUSED, LAG, UNKNOWN_FIELDS, STALLED, HALTED, LEASE_EPOCH, IN_FLIGHT, DOCUMENT_SECONDS,
    STAGE_SECONDS,
)  # fmt: skip

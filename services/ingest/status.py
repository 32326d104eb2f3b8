"""What a consumer says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Status:
    """What a consumer is doing. ``processed``, ``dead_lettered`` and ``retries`` count from its start."""

    lag: int  # records of its partitions that are not yet committed
    in_flight: int
    in_flight_bytes: int
    paused: bool
    processed: int
    dead_lettered: int
    retries: int
    halted: str | None  # why the group takes up no more documents
    problem: str | None  # what keeps this consumer from going on, and what to do
    committed: dict[str, int]  # the next offset to read by `<topic>-<partition>`
    waiting: bool = False  # for the group's lease: another deployment consumes, or the pipeline is not ready


WAITING = Status(
    lag=0,
    in_flight=0,
    in_flight_bytes=0,
    paused=True,
    processed=0,
    dead_lettered=0,
    retries=0,
    halted=None,
    problem=None,
    committed={},
    waiting=True,
)
"""What a replica says between its terms, see :mod:`services.ingest.handover`."""

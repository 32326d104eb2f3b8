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

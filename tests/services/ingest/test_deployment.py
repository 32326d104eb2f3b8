"""Failures as they arrive from other actors."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from services.ingest.config import IngestConfig
from services.ingest.deployment import CRASHES, TRANSIENT, _lease, _membership
from shared.errors import DocumentError, Overloaded


def far(error: Exception) -> RayError:
    """The error as the caller of a service sees it that the service's own call met with."""
    again = pickle.loads(pickle.dumps(RayTaskError("tag", "traceback", error)))
    return again.as_instanceof_cause()


def test_a_document_at_fault_is_told_across_actors() -> None:
    error = far(DocumentError("text", "is too long", "split it", reason="too_large"))
    assert isinstance(error, DocumentError)
    assert not isinstance(error, TRANSIENT)
    assert (error.field, error.reason) == ("text", "too_large")


@pytest.mark.parametrize("error", [ActorUnavailableError("gone", b"0" * 16), TaskCancelledError()])
def test_an_actor_out_of_reach_is_an_outage_near_and_far(error: Exception) -> None:
    assert isinstance(error, TRANSIENT)
    assert isinstance(far(error), TRANSIENT)


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("killed"), WorkerCrashedError()])
def test_a_death_is_no_outage_near_and_far(error: Exception) -> None:
    for each in (error, far(error)):
        assert isinstance(each, CRASHES)
        assert not isinstance(each, TRANSIENT)


def test_serve_says_in_several_ways_to_come_back_later() -> None:
    assert issubclass(RequestCancelledError, TRANSIENT)
    assert isinstance(far(BackPressureError(1, 1)), TRANSIENT)
    assert isinstance(far(Overloaded("generation: full")), Overloaded)


def test_what_a_service_fails_at_is_no_outage() -> None:
    assert not isinstance(far(ValueError("x")), TRANSIENT)


def test_replicas_are_members_of_different_names_or_of_none() -> None:
    named = IngestConfig(instance="pod-a", session_s=30, heartbeat_s=2)
    assert [_membership(named, rank).instance for rank in range(3)] == ["pod-a-0", "pod-a-1", "pod-a-2"]
    assert (_membership(named, 0).session_s, _membership(named, 0).heartbeat_s) == (30, 2)
    assert _membership(IngestConfig(instance=""), 1).instance == ""


def test_only_a_deployment_with_a_name_needs_the_lease_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _lease(IngestConfig(deployment="")) is None
    monkeypatch.setenv("BIOBRACKET_REDIS", "redis://127.0.0.1:1/0")
    lease = _lease(IngestConfig(deployment="cluster-a"))
    assert lease is not None
    lease.close()

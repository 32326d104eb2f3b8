"""Failures as they arrive from other actors."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from services.ingest.deployment import CRASHES, TRANSIENT
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


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("gone", b"0" * 16)])
def test_a_dead_actor_is_a_crash_near_and_far(error: Exception) -> None:
    assert isinstance(error, CRASHES)
    assert isinstance(far(error), CRASHES)


def test_a_cancelled_call_is_an_outage_near_and_far() -> None:
    assert isinstance(TaskCancelledError(), TRANSIENT)
    assert isinstance(far(TaskCancelledError()), TRANSIENT)


def test_serve_says_in_several_ways_to_come_back_later() -> None:
    assert issubclass(RequestCancelledError, TRANSIENT)
    assert isinstance(far(BackPressureError(1, 1)), TRANSIENT)
    assert isinstance(far(Overloaded("generation: full")), Overloaded)


def test_what_a_service_fails_at_is_no_outage() -> None:
    assert not isinstance(far(ValueError("x")), TRANSIENT)

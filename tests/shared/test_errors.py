from __future__ import annotations

import pickle

import pytest

from shared.errors import BackendError, DocumentError, MixedAssignors, Rebalancing, StoreError, StreamError


def test_a_document_error_names_field_problem_and_remedy() -> None:
    error = pickle.loads(pickle.dumps(DocumentError("text", "is empty", "send some", "empty")))
    assert str(error) == "text: is empty; send some"
    assert (error.field, error.problem, error.remedy, error.reason) == ("text", "is empty", "send some", "empty")


@pytest.mark.parametrize("kind", [StoreError, StreamError, Rebalancing, MixedAssignors])
@pytest.mark.parametrize("retryable", [True, False])
def test_errors_survive_pickling(kind: type[BackendError], retryable: bool) -> None:
    error = pickle.loads(pickle.dumps(kind("redis: full", retryable=retryable)))
    assert (type(error), str(error), error.retryable) == (kind, "redis: full", retryable)

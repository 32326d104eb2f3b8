from __future__ import annotations

import pickle

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from shared.errors import (
    BackendError,
    DocumentError,
    MixedAssignors,
    Rebalancing,
    StoreError,
    StreamError,
    first_problem,
)


def test_a_document_error_names_field_problem_and_remedy() -> None:
    error = pickle.loads(pickle.dumps(DocumentError("text", "is empty", "send some", "empty")))
    assert str(error) == "text: is empty; send some"
    assert (error.field, error.problem, error.remedy, error.reason) == ("text", "is empty", "send some", "empty")


@pytest.mark.parametrize("kind", [StoreError, StreamError, Rebalancing, MixedAssignors])
@pytest.mark.parametrize("retryable", [True, False])
def test_errors_survive_pickling(kind: type[BackendError], retryable: bool) -> None:
    error = pickle.loads(pickle.dumps(kind("redis: full", retryable=retryable)))
    assert (type(error), str(error), error.retryable) == (kind, "redis: full", retryable)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    inner: dict[str, int] = {}

    @field_validator("inner")
    @classmethod
    def _small(cls, value: dict[str, int]) -> dict[str, int]:
        if len(value) > 1:
            raise ValueError("has too many")
        return value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"inner": {"a": ["患者"]}}', "inner.a: Input should be a valid integer"),
        ('{"inner": {"患者 zq17": []}}', "inner.…: Input should be a valid integer"),
        ('{"患者 zq17": 1}', "…: Extra inputs are not permitted"),
        ('{"zq17": 1}', "zq17: Extra inputs are not permitted"),
        ('{"inner": {"a": 1, "b": 2}}', "inner: has too many"),
        ('["患者"]', "file: Input should be an object"),
    ],
)
def test_the_first_problem_names_the_place_and_quotes_nothing(given: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Strict.model_validate_json(given)
    assert first_problem(caught.value) == said

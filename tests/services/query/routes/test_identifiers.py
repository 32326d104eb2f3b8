from __future__ import annotations

from urllib.parse import quote

import pytest

from shared.messages import Extraction
from tests.support.http import World, assert_problem


@pytest.mark.parametrize("id_", ["note-1", "a/b", "病历-2", "a b?c#d", "x" * 512, "a\nb"])
def test_document_by_id(world: World, id_: str) -> None:
    world.post({"id": id_, "text": "x"})
    response = world.client.get(f"/v1/documents/{quote(id_)}")
    assert response.status_code == 200
    assert Extraction.model_validate_json(response.content).document_id == id_


@pytest.mark.parametrize("id_", ["", "y" * 513])
def test_document_id_of_a_wrong_length(world: World, id_: str) -> None:
    assert_problem(world.client.get(f"/v1/documents/{id_}"), 422, "id")

from __future__ import annotations

import pytest

from shared.backends.mention_index import MentionIndex, keys_of
from shared.messages import Entity, Extraction
from tests.support.servers import Target


def extraction(document_id: str) -> Extraction:
    entity = Entity(
        id="disease:0-5", start=0, end=5, text="Fever", type="disease", confidence=0.9, generator_confidence=0.9
    )
    return Extraction(
        document_id=document_id, text_sha256="", lang="en", types=(), entities=(entity,), model_revision="r"
    )


@pytest.fixture
def index(target: Target) -> MentionIndex:
    target.everywhere("FLUSHALL")
    return MentionIndex(target.client, 0)


def test_a_document_is_found_by_what_its_result_says(index: MentionIndex, target: Target) -> None:
    keys = keys_of(extraction("a"))
    assert len(keys) == 2
    assert not any("ever" in key for key in keys)
    index.add("a", keys)
    index.add("b", keys)
    results = {"a": extraction("a")}  # that of the other one is not there
    found = index.find(" fever", None, 10, lambda ids: [results.get(id_) for id_ in ids])
    assert [mention.document_id for mention in found] == ["a"]
    index.remove("a", keys)
    index.remove("b", keys)
    assert target.keys() == []

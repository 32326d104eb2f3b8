"""What a stored result holds, with and without text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from shared.backends.mention_index import keys_of
from shared.backends.result_store import ResultStore, Write
from shared.backends.stored_results import StoredResults, document_key, member_key, without_text
from shared.backends.vault import PLAIN, SealError, vault
from shared.errors import StoreError
from shared.messages import TEXT_NOT_STORED, Entity, Evidence, Extraction, SourcePosition
from tests.support.servers import Target


def extraction(document_id: str = "病历 1", at: int = 0) -> Extraction:
    evidence = Evidence(text="Fever", type="disease", accepted=True, similarity=0.5, note="of Fever")
    entity = Entity(
        id="disease:0-5",
        start=0,
        end=5,
        text="Fever",
        type="disease",
        confidence=0.9,
        generator_confidence=0.8,
        evidence=(evidence,),
        comment="Fever, really",
    )
    return Extraction(
        document_id=document_id,
        text_sha256="0" * 64,
        lang="en",
        types=("disease",),
        entities=(entity,),
        metadata={"why": "Fever"},
        source=SourcePosition(topic="t", partition=0, offset=at, timestamp_ms=0),
        model_revision="r",
        summary="Fever",
    )


@pytest.fixture
def store(target: Target) -> Iterator[ResultStore]:
    """One that keeps no text."""
    target.everywhere("FLUSHALL")
    with closing(ResultStore.from_settings(target.settings.model_copy(update={"store_text": "none"}))) as made:
        yield made


def everything(target: Target) -> bytes:
    """Keys and values of the server."""
    read = {
        b"hash": target.client.hgetall,
        b"string": target.client.get,
        b"set": target.client.smembers,
        b"zset": lambda key: target.client.zrange(key, 0, -1),
    }
    return repr({key: read[target.client.type(key)](key) for key in target.keys()}).encode()  # noqa: SIM118 - not a dict


def test_a_result_without_text_has_offsets_types_and_hashes(store: ResultStore, target: Target) -> None:
    given = extraction()
    assert store.put(given) == Write("written", given)
    assert b"ever" not in everything(target).replace(b"never", b"").lower()
    kept = store.get(given.document_id)
    assert kept is not None
    (entity,) = kept.entities
    assert (entity.start, entity.end, entity.type, entity.text) == (0, 5, "disease", "")
    assert entity.evidence[0].text is None
    assert (kept.text_sha256, kept.metadata, kept.warnings) == (given.text_sha256, {}, (TEXT_NOT_STORED,))
    assert kept.key == given.key
    # It is found by what it no longer says.
    assert [mention.document_id for mention in store.mentions(" FEVER")] == [given.document_id]
    assert store.mentions("fever", "protein") == store.mentions("cough") == store.mentions("") == []
    assert store.counts() == {"documents": 1, "entities": 1}
    # Published again it has its text, as long as somebody has it.
    assert store.put(given) == Write("unchanged", given)
    newer = given.model_copy(update={"entities": (), "source": extraction(at=1).source})
    assert store.put(newer).outcome == "written"
    assert store.mentions("fever") == []
    assert not [key for key in target.keys() if key.startswith(b"bb:m:")]  # noqa: SIM118 - not a dict


def test_without_text_nothing_is_cached(store: ResultStore, target: Target) -> None:
    store.put_segments({"s": b"fever"})
    assert store.get_segments(["s", "t"]) == [None, None]
    assert target.keys() == []


def test_a_result_read_at_another_document_is_refused(target: Target) -> None:
    own = vault(target.settings)
    if own is PLAIN:
        pytest.skip("not encrypted")
    target.everywhere("FLUSHALL")
    with closing(ResultStore.from_settings(target.settings)) as kept:
        kept.put(extraction("a"))
        here, there = (document_key(id_, own) for id_ in "ab")
        target.client.copy(here, there)
        with pytest.raises(StoreError, match="another place"):
            kept.get("b")
        raw = bytearray(target.client.hget(here, "json"))
        raw[-1] ^= 1
        target.client.hset(here, "json", bytes(raw))
        for read in (lambda: kept.get("a"), lambda: list(kept.results()), lambda: kept.mentions("fever")):
            with pytest.raises(SealError, match="was changed") as refused:
                read()
            assert "ever" not in str(refused.value)
        # What is damaged is in nobody's way.
        assert kept.put(extraction("a", at=1)).outcome == "written"
        assert kept.get("a") == extraction("a", at=1)
        kept.put_segments({"s": b"fever"})
        (segment,) = target.client.scan_iter(match="bb:s:*")
        target.client.append(segment, b"x")
        assert kept.get_segments(["s"]) == [None]


def test_the_key_of_a_member_is_that_of_its_document(target: Target) -> None:
    own = vault(target.settings)
    assert member_key(own.member("document", "a"), own) == document_key("a", own)


def test_what_has_no_text_already_keeps_its_hash() -> None:
    once = without_text(extraction(), PLAIN)
    assert without_text(once, PLAIN) == once
    assert keys_of(once) == keys_of(extraction())
    assert StoredResults().version(once) == StoredResults().version(extraction())

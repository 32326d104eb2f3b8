"""Erasures as they are asked for, on real brokers, without an ingest that carries them out."""

from __future__ import annotations

from contextlib import closing

import pytest

from shared.backends.eraser import Eraser
from shared.backends.feedback_store import FeedbackStore
from shared.backends.records import erases, position_of
from shared.backends.result_store import ResultStore
from shared.backends.streams import client
from shared.backends.streams.scan import Scan
from shared.backends.streams.topics import ensure_topics
from shared.errors import StreamError
from shared.messages import Erasure, Extraction, SourcePosition
from shared.selection.feedback import NewFeedback
from shared.settings import Settings


def extraction(document_id: str, source: SourcePosition) -> Extraction:
    return Extraction(
        document_id=document_id, text_sha256="", lang="en", types=(), entities=(), source=source, model_revision="r"
    )


def test_a_record_asks_and_the_store_is_clear_at_once(each_broker: Settings) -> None:
    settings = each_broker
    ensure_topics(settings)
    with closing(ResultStore.from_settings(settings)) as store, closing(FeedbackStore.from_settings(settings)) as given:
        early = SourcePosition(topic=settings.topic_documents, partition=0, offset=0, timestamp_ms=1)
        late = SourcePosition(topic="another", partition=0, offset=0, timestamp_ms=2**41)
        store.put(extraction("病历/1", early))
        store.put(extraction("amended", late))
        feedback = {"text": "cold", "start": 0, "end": 4, "type": "disease", "accepted": False, "document_id": "病历/1"}
        given.put(NewFeedback.model_validate(feedback).feedback(now=1.0))
        with closing(Eraser(settings, store, given)) as eraser:
            # The second one up to a version that is not the newest any more.
            assert eraser.erase([("病历/1", None), ("amended", early), ("never there", None)]) == 3
        assert store.get("病历/1") is None
        assert store.get("amended") is not None
        assert store.counts()["documents"] == 1
        assert given.page().feedback == ()
        with closing(Scan(settings, settings.topic_documents)) as scan:
            records = [record for records in scan.read() for record in records]
        assert all(erases(record) for record in records)
        asked = {(record.key or b"").decode(): position_of(record) for record in records}
        assert asked.keys() == {"病历/1", "amended", "never there"}
        assert asked["amended"] == early
        # Ingest finds it done, but for the topic of entities.
        erasure = Erasure(document_id="never there", source=asked["never there"])
        assert store.newest(["never there"]) == [erasure]
        assert store.erase(erasure).unpublished == erasure


def test_without_a_broker_nothing_is_erased(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_MS", 200)
    nowhere = settings.model_copy(update={"kafka": "127.0.0.1:1"})
    with closing(ResultStore.from_settings(nowhere)) as store, closing(FeedbackStore.from_settings(nowhere)) as given:
        place = SourcePosition(topic="t", partition=0, offset=0, timestamp_ms=0)
        store.put(extraction("d", place))
        eraser = Eraser(nowhere, store, given)
        with pytest.raises(StreamError, match="BIOBRACKET_KAFKA"):
            eraser.erase([("d", None)])
        eraser.close()
        assert store.get("d") is not None

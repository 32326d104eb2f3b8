from __future__ import annotations

import time
from collections.abc import Callable

from shared.backends.streams.scan import Lag, Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.settings import Settings
from tests.support.streams import PATIENCE_S, ends, fill, read


def test_lag_of_a_group_is_seen_from_outside(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    outside = Lag(stream, stream.topic_documents, stream.topic_documents)
    assert outside.read() == 0
    fill(sink, stream, 12)
    assert outside.read() == 12
    member = source()
    member.commit(ends(read(member, 12)))
    assert outside.read() == 0
    sink.send(stream.topic_documents, b"k", b"v").result(PATIENCE_S)
    assert outside.read() == 1
    outside.close()


def test_a_scan_reads_what_is_there_from_outside_any_group(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    scan = Scan(stream, stream.topic_documents)
    assert [record for batch in scan.read() for record in batch] == []
    for n in range(6):
        sink.send(stream.topic_documents, b"one", b"%d" % n).result(PATIENCE_S)
        time.sleep(0.02)  # else time stamps are the same
    everything = [record for batch in scan.read() for record in batch]
    assert [record.value for record in everything] == [b"%d" % n for n in range(6)]
    assert scan.progress() == (6, 6)
    place, since = everything[0].partition, everything[2].timestamp_ms
    assert [record.value for batch in scan.read({place: 4}, since_ms=since) for record in batch] == [b"2", b"3"]
    assert [record for batch in scan.read(since_ms=since + 3_600_000) for record in batch] == []
    assert scan.committed(stream.topic_documents) == {}
    member = source()
    read(member, 6)
    member.commit({(stream.topic_documents, place): 3})
    assert scan.committed(stream.topic_documents) == {place: 3}
    scan.close()

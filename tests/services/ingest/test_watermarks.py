"""The low-water mark against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.watermarks import Watermark


@given(offsets=st.lists(st.integers(0, 60), unique=True).map(sorted), data=st.data())
def test_the_position_is_the_first_that_is_not_done(offsets: list[int], data: st.DataObject) -> None:
    watermark = Watermark(offsets[0] if offsets else 7)
    unread = list(offsets)
    read: list[int] = []
    done: set[int] = set()
    before = watermark.position
    while unread or len(done) < len(read):
        undone = [offset for offset in read if offset not in done]
        if unread and (not undone or data.draw(st.booleans())):
            read.append(unread.pop(0))
            watermark.add(read[-1])
        else:
            offset = data.draw(st.sampled_from(undone))
            done.add(offset)
            watermark.done(offset)
        undone = [offset for offset in read if offset not in done]
        assert watermark.position == (undone[0] if undone else read[-1] + 1)
        assert watermark.position >= before
        assert all(offset in done for offset in read if offset < watermark.position)
        before = watermark.position
    assert watermark.position == (offsets[-1] + 1 if offsets else 7)


def test_done_twice_changes_nothing() -> None:
    watermark = Watermark(5)
    watermark.add(5)
    watermark.add(6)
    for _ in range(2):
        watermark.done(5)
        assert watermark.position == 6
    watermark.done(6)
    assert watermark.position == watermark.next == 7


def test_offsets_only_rise() -> None:
    watermark = Watermark(5)
    watermark.add(5)
    with pytest.raises(ValueError, match="order"):
        watermark.add(5)

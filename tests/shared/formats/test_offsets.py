from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.formats.offsets import Offsets


@given(st.text("a\x7f\x80β\u07ff\u0800患\uffff𝒜\U0010ffff", max_size=20))
def test_offsets_are_lengths_of_what_is_before(text):
    ways = {"codepoint": len, "utf16": lambda t: len(t.encode("utf-16-le")) // 2, "byte": lambda t: len(t.encode())}
    for unit, length in ways.items():
        offsets = Offsets(text, unit)
        assert [offsets[i] for i in range(len(text) + 1)] == [length(text[:i]) for i in range(len(text) + 1)]

"""What a tagged line says, read without the services."""

from __future__ import annotations

import math
import re

from shared import entity_types
from shared.messages import TaggedLine
from shared.text.tagging import decode

_MARKS = re.compile(r"\\[\[\]\\|]|[\[\]]")

Span = tuple[int, int]


def mentions(line: TaggedLine) -> dict[str, dict[Span, float]]:
    """Of each type that was asked for its mentions, by offsets within the segment, and their probability.

    A mention that two copies have is as probable as the likelier. Fails where a copy is not the segment.
    """
    found: dict[str, dict[Span, float]] = {key: {} for key in line.types}
    if not line.tagged:
        assert line.brackets == ()
        return found
    keys = {entity_types.get(key).name(line.segment.lang): key for key in line.types}
    text, spans = decode(line.tagged)
    size = len(line.segment.text) + 1
    copies = (len(text) + 1) // size
    assert text == "\n".join([line.segment.text] * copies)
    assert line.brackets is not None
    pairs = _pairs(line.tagged, line.brackets)
    assert len(pairs) == len(spans) > 0
    for (start, end, name), logprob in zip(spans, pairs, strict=True):
        copy, at = divmod(start, size)
        span = at, end - copy * size
        own = found[keys[name]]
        own[span] = max(own.get(span, 0.0), line.presence * math.exp(logprob))
    return found


def _pairs(tagged: str, brackets: tuple[float, ...]) -> list[float]:
    """The log-probability of both brackets of each mention, in the order of the opening ones."""
    marks = [mark[0] for mark in _MARKS.finditer(tagged) if mark[0] in "[]"]
    pairs: list[float] = []
    open_: list[int] = []
    for mark, logprob in zip(marks, brackets, strict=True):
        assert logprob <= 0.0
        if mark == "[":
            open_.append(len(pairs))
            pairs.append(logprob)
        else:
            pairs[open_.pop()] += logprob
    assert not open_
    return pairs

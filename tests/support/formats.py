"""Extractions of any texts, and what a writer makes of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from hypothesis import strategies as st

from shared.formats.common import Annotated, Write, Writing, annotated
from shared.messages import Entity, Extraction, entity_id
from tests.support.annotated import ALPHABET

TYPES = ("disease", "cell_line", "药物")
Spans = Sequence[tuple[int, int, str]]


def document(text: str, spans: Spans, id_: str = "note-1") -> Annotated:
    entities = [
        Entity(
            id=entity_id(type_, start, end),
            start=start,
            end=end,
            text=text[start:end],
            type=type_,
            confidence=0.75,
            generator_confidence=0.5,
            parent_id=next(
                (entity_id(t, s, e) for s, e, t in spans if s <= start and end <= e and (s, e) != (start, end)), None
            ),
        )
        for start, end, type_ in spans
    ]
    extraction = Extraction(
        document_id=id_,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        lang="zh" if "患" in text else "en",
        types=TYPES,
        entities=tuple(entities),
        model_revision="0" * 16,
    )
    return annotated(extraction, text)


@st.composite
def documents(draw: st.DrawFn, alphabet: str = ALPHABET + "\r\n\t") -> Annotated:
    """A document with entities, nested, crossing and touching ones too, none with white space at its ends."""
    text = draw(st.text(alphabet, min_size=1, max_size=30).filter(str.strip))
    starts = st.integers(0, len(text) - 1)
    span = starts.flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, len(text))))
    span = span.filter(lambda s: text[slice(*s)] == text[slice(*s)].strip())
    entity = st.tuples(span, st.sampled_from(TYPES)).map(lambda m: (*m[0], m[1]))
    return document(text, draw(st.lists(entity, max_size=6, unique=True)))


def spans_of(made: Annotated) -> set[tuple[int, int, str]]:
    return {(e.start, e.end, e.type) for e in made.entities}


def written(write: Write, made: Sequence[Annotated], writing: Writing | None = None) -> bytes:
    out = io.BytesIO()
    write(made, out, writing or Writing())
    return out.getvalue()

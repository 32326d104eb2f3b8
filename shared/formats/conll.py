"""CoNLL: a token and its tag a line (IOB2), a blank line after each sentence, ``-DOCSTART- (id)`` before each document.

Of nested entities the outermost is written, of crossing ones the first; the rest is counted. The format holds no white
space, confidence or offsets. Sentences are the segments that the text is tagged in; none ends within an entity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from shared.formats.common import Annotated, Writing, flat, one_line
from shared.formats.tokens import tokens
from shared.messages import Entity
from shared.text.segmentation import segment


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents in one file, UTF-8."""
    for document in documents:
        kept = flat(document.entities, "CoNLL", writing)
        out.write(f"-DOCSTART- ({one_line(document.id, 'id', writing)})\tO\n\n".encode())
        for sentence in _sentences(document, kept):
            if sentence:
                out.write("".join(f"{token}\t{tag}\n" for token, tag in sentence).encode() + b"\n")
        writing.changed["text whose white space CoNLL cannot hold"] += any(map(str.isspace, document.known_text()))
        if document.entities:
            writing.lost["confidence, which CoNLL cannot hold"] += len(document.entities)


def _sentences(document: Annotated, entities: Sequence[Entity]) -> Iterator[list[tuple[str, str]]]:
    """Token and tag, by sentence."""
    text = document.known_text()
    segments = segment(text, document.extraction.lang)
    ends = deque(end for _, end in segments if not any(e.start < end < e.end for e in entities))
    around = deque(entities)
    found: list[tuple[str, str]] = []
    begun = False  # whether the entity at hand has a token
    for token in tokens(text, entities):
        while around and around[0].end <= token.start:
            around.popleft()
            begun = False
        while ends and ends[0] <= token.start:
            ends.popleft()
            yield found
            found = []
        if token.space:
            continue
        tag = "O"
        if around and around[0].start <= token.start:
            tag = f"{'I' if begun else 'B'}-{around[0].type}"
            begun = True
        found.append((text[token.start : token.end], tag))
    yield found

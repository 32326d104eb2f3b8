"""spaCy's ``DocBin``: a ``Doc`` for each document, all entities in ``doc.spans["biobracket"]``, nested ones too.

``doc.ents``, which cannot overlap, has the outermost. Confidences are in the group's ``attrs``, in the order of its
spans; the document's id in ``doc.user_data["document_id"]``. Tokens are cut at the ends of entities, so offsets in
code points stay exact. Format: https://spacy.io/api/docbin
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

from shared.formats.common import Annotated, Writing, flat, library
from shared.formats.tokens import tokens

GROUP = "biobracket"


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents, which are held in memory: a DocBin is one compressed block."""
    spacy = library("spacy", "spacy", "docbin")
    spans = library("spacy.tokens", "spacy", "docbin")
    vocab = spacy.blank("xx").vocab
    found = spans.DocBin(store_user_data=True)
    for document in documents:
        found.add(_doc(spans, vocab, document, writing))
    out.write(found.to_bytes())


def _doc(spans: Any, vocab: Any, document: Annotated, writing: Writing) -> Any:
    text = document.known_text()
    words: list[str] = []
    spaces: list[bool] = []
    for token in tokens(text, document.entities):
        word = text[token.start : token.end]
        if word == " " and words and not spaces[-1] and not _begins(document, token.start):
            spaces[-1] = True
        else:
            words.append(word)
            spaces.append(False)
    doc = spans.Doc(vocab, words=words, spaces=spaces)
    doc.user_data["document_id"] = document.id
    entities = document.entities
    group = spans.SpanGroup(doc, name=GROUP, spans=[doc.char_span(e.start, e.end, label=e.type) for e in entities])
    group.attrs["confidence"] = [e.confidence for e in entities]
    doc.spans[GROUP] = group
    outermost = flat(entities, "doc.ents", Writing())
    # spaCy refuses entities of white space alone there.
    doc.ents = [doc.char_span(e.start, e.end, label=e.type) for e in outermost if e.text.strip() == e.text]
    return doc


def _begins(document: Annotated, at: int) -> bool:
    return any(at in (entity.start, entity.end - 1) for entity in document.entities)

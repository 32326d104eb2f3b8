"""How results are named and written in the store: see :mod:`shared.backends.result_store` for the keys."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from shared.backends.mention_index import hash_of, keys_of
from shared.backends.vault import PLAIN, SealError, Vault
from shared.messages import TEXT_NOT_STORED, Entity, Erasure, Evidence, Extraction, SourcePosition


class StoredResults:
    """The form of one deployment's results. ``with_text``: whether mentions keep their text, and results metadata."""

    def __init__(self, vault: Vault = PLAIN, *, with_text: bool = True) -> None:
        self._vault = vault
        self._with_text = with_text

    def write(self, extraction: Extraction, key: str) -> bytes:
        """A result as it is stored under a document's key."""
        kept = extraction if self._with_text else without_text(extraction, self._vault)
        return self._vault.seal(kept.model_dump_json().encode(), result_place(key))

    def read(self, raw: bytes, key: str) -> Extraction | None:
        """The inverse; None where another version of biobracket wrote it. :class:`SealError`."""
        try:
            return Extraction.model_validate_json(self._vault.open(raw, result_place(key)))
        except ValidationError:
            return None

    def newest(self, document_id: str, key: str, told: bytes | Sequence[bytes] | None) -> Extraction | Erasure | None:
        """What a script tells of the newest version: a result, or the position of an erasure."""
        if told is None or isinstance(told, bytes):
            return None if told is None else self.read(told, key)
        return Erasure(document_id=document_id, source=position(told))

    def index_keys(self, extraction: Extraction) -> set[str]:
        """The keys under which the document of an extraction is found."""
        return keys_of(extraction, self._vault)

    def index_keys_in(self, raw: bytes, key: str) -> set[str] | None:
        """The same of what is stored; None where that cannot be read. All of them are noted beside the document, too.

        So what was damaged, or is of another version of biobracket, is in nobody's way.
        """
        try:
            extraction = self.read(raw, key)
        except SealError:
            return None
        return None if extraction is None else self.index_keys(extraction)

    def version(self, what: Extraction | Erasure) -> str:
        """A digest of position and extraction key."""
        if isinstance(what, Erasure):  # without the id of the topic, which not everybody who erases is told
            topic, _, *numbers = parts(what.source)
            return self._vault.name("version", "\x1f".join(map(str, ("erased", topic, *numbers))))
        place = "" if what.source is None else "\x1f".join(map(str, parts(what.source)))
        return self._vault.name("version", f"{place}\x1e{what.key}")


def document_key(document_id: str, vault: Vault = PLAIN) -> str:
    """The key of a document's result."""
    return _key(vault.name("document", document_id))


def member_key(member: str, vault: Vault = PLAIN) -> str:
    """The same of the document that a member of the mention index stands for."""
    return _key(vault.named("document", member))


def counter_key(key: str) -> str:
    """The key of the counters beside a document."""
    return key.partition("}")[0] + "}:n"


def beside(key: str, kind: str) -> str:
    """A key of the same document, in the same slot."""
    return key.replace("}:d:", f"}}:{kind}:")


def segment_key(key: str, vault: Vault = PLAIN) -> str:
    """The key of a cached segment, by that of the pipeline."""
    return f"bb:s:{{{vault.name('segment', key)}}}"


def parts(source: SourcePosition | None) -> tuple[str, str, int, int, int]:
    """A position as scripts take it."""
    if source is None:
        return "", "", 0, 0, 0
    return source.topic, source.topic_id, source.partition, source.offset, source.timestamp_ms


def position(told: Sequence[bytes]) -> SourcePosition:
    """A position as scripts tell it."""
    topic, topic_id, partition, offset, time_ms = told
    return SourcePosition(
        topic=topic.decode(),
        topic_id=topic_id.decode(),
        partition=int(partition),
        offset=int(offset),
        timestamp_ms=int(time_ms),
    )


def without_text(extraction: Extraction, vault: Vault) -> Extraction:
    """An extraction with offsets, types and hashes, but without anything that came from a text or its metadata."""
    entities = []
    for entity in extraction.entities:
        known = {name: getattr(entity, name) for name in Entity.model_fields}
        evidence = tuple(
            Evidence(text=None, type=each.type, accepted=each.accepted, similarity=each.similarity)
            for each in entity.evidence
        )
        known |= {"text": "", "evidence": evidence, "text_hash": hash_of(entity, vault)}
        entities.append(Entity(**known))
    known = {name: getattr(extraction, name) for name in Extraction.model_fields}
    warnings = tuple(sorted({*extraction.warnings, TEXT_NOT_STORED}))
    return Extraction(**known | {"entities": tuple(entities), "metadata": {}, "warnings": warnings})


def _key(digest: str) -> str:
    return f"bb:{{{digest[:2]}}}:d:{digest}"


def result_place(key: str) -> str:
    """The place of a document's result, for its vault."""
    return f"{key}\x1fjson"

"""What selection decided about a segment, cached for the next document with the same text."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from pydantic import ValidationError

from shared.messages import Entity, Message, Parsed, Segment, check_offsets, entity_id


class SegmentDecision(Message):
    """The kept entities of a segment, with offsets within it, and the counts they came with."""

    entities: tuple[Entity, ...]
    candidates: int
    repairs: int

    @classmethod
    def read(cls, value: bytes, text: str) -> SegmentDecision:
        """The inverse of :meth:`write`. ValueError where the bytes are no decision on this text."""
        try:
            decision = cls.model_validate_json(value)
        except ValidationError:
            raise ValueError("is no decision of this version") from None
        if not all(check_offsets(text, entity) for entity in decision.entities):
            raise ValueError("entities: do not lie in the text")
        return decision

    def write(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True).encode()

    def entities_at(self, start: int) -> list[Entity]:
        """The entities of a segment that starts at ``start`` in its document."""
        return [_moved(entity, start) for entity in self.entities]


def decisions_of(segments: Sequence[Segment], parsed: Parsed, entities: Sequence[Entity]) -> dict[str, SegmentDecision]:
    """The decision on the text of each segment; the segments are in document order.

    Empty where an entity does not fit its segment: a bug must not be cached.
    """
    starts = [segment.start for segment in segments]
    within: list[list[Entity]] = [[] for _ in segments]
    for entity in entities:
        place = bisect_right(starts, entity.start) - 1
        moved = _moved(entity, -starts[place])
        if not check_offsets(segments[place].text, moved):
            return {}
        within[place].append(moved)
    candidates = Counter(candidate.segment.index for candidate in parsed.candidates)
    return {
        segment.text: SegmentDecision(
            entities=tuple(kept), candidates=candidates[segment.index], repairs=parsed.repaired.get(segment.index, 0)
        )
        for segment, kept in zip(segments, within, strict=True)
    }


def _moved(entity: Entity, by: int) -> Entity:
    start, end = entity.start + by, entity.end + by
    return entity.model_copy(update={"id": entity_id(entity.type, start, end), "start": start, "end": end})

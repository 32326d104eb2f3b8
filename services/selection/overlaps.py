"""Resolve overlaps: which of the candidates above their threshold are kept together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shared.messages import Candidate, Entity, Evidence, entity_id
from shared.selection.calibration import logit

# Two spans that share a boundary are usually one mention whose other end is in doubt. Unless the generator itself
# nested them, both are kept only if each is at least this probable, so that nesting is the best explanation.
NESTING_BAR = 0.8

# Log-odds of the rival assumed for a span that overlaps no other: a hopeless one.
_NO_RIVAL = -8.0


class Scored(NamedTuple):
    """A candidate and the calibrated probability that it is right."""

    candidate: Candidate
    probability: float
    evidence: tuple[Evidence, ...] = ()

    @property
    def rank(self) -> tuple[float, bool, float, int, int]:
        """Sort key, best first: more probable, greedy, more confident, longer, earlier."""
        c = self.candidate
        return (-self.probability, not c.greedy, -c.generator_confidence, c.start - c.end, c.start)


def margins(candidates: Sequence[Candidate]) -> list[float]:
    """The log-odds of each candidate's confidence minus those of its strongest rival.

    A rival is another span of the same type and segment that overlaps; a duplicate of the same span is not one.
    """
    groups: dict[tuple[str, int, str], list[int]] = {}
    for i, c in enumerate(candidates):
        groups.setdefault((c.segment.document_id, c.segment.start, c.type), []).append(i)
    confidences = [logit(c.generator_confidence) for c in candidates]
    found = [confidence - _NO_RIVAL for confidence in confidences]
    for group in groups.values():
        group.sort(key=lambda i: candidates[i].start)
        for position, i in enumerate(group):
            for j in group[position + 1 :]:
                a, b = candidates[i], candidates[j]
                if b.start >= a.end:
                    break
                if (a.start, a.end) != (b.start, b.end):
                    found[i] = min(found[i], confidences[i] - confidences[j])
                    found[j] = min(found[j], confidences[j] - confidences[i])
    return found


def keep(scored: Iterable[Scored]) -> tuple[Entity, ...]:
    """The entities to keep, in text order.

    Of two crossing spans of one type the more probable is kept. Nested spans of one type are both kept, subject to
    ``NESTING_BAR``. Spans of different types do not affect each other.
    """
    best: dict[tuple[str, int, int], Scored] = {}
    for one in scored:
        span = (one.candidate.type, one.candidate.start, one.candidate.end)
        if span not in best or one.rank < best[span].rank:
            best[span] = one
    kept = [one for cluster in _clusters(best.values()) for one in _resolve(cluster)]
    kept.sort(key=lambda one: (one.candidate.start, -one.candidate.end, one.candidate.type))
    return tuple(_entity(one) for one in kept)


def _clusters(scored: Iterable[Scored]) -> Iterator[list[Scored]]:
    """Groups of spans of one type that overlap, directly or through others."""
    cluster: list[Scored] = []
    end = 0
    for one in sorted(scored, key=lambda s: (s.candidate.type, s.candidate.start, s.candidate.end)):
        if cluster and (one.candidate.type != cluster[0].candidate.type or one.candidate.start >= end):
            yield cluster
            cluster, end = [], 0
        cluster.append(one)
        end = max(end, one.candidate.end)
    if cluster:
        yield cluster


def _resolve(cluster: list[Scored]) -> list[Scored]:
    """The spans of a cluster to keep, chosen greedily, best first."""
    kept: list[Scored] = []
    for scored in sorted(cluster, key=lambda s: s.rank):
        if all(_compatible(scored, other) for other in kept):
            kept.append(scored)
    return kept


def _compatible(scored: Scored, better: Scored) -> bool:
    """Whether a span can be kept beside a better one of its type."""
    a, b = scored.candidate, better.candidate
    if a.start < b.start < a.end < b.end or b.start < a.start < b.end < a.end:
        return False
    if (a.start == b.start or a.end == b.end) and not (a.greedy and b.greedy):
        return scored.probability >= NESTING_BAR
    return True


def _entity(scored: Scored) -> Entity:
    candidate = scored.candidate
    return Entity(
        id=entity_id(candidate.type, candidate.start, candidate.end),
        start=candidate.start,
        end=candidate.end,
        text=candidate.text,
        type=candidate.type,
        confidence=scored.probability,
        generator_confidence=candidate.generator_confidence,
        evidence=scored.evidence,
    )

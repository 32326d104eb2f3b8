"""Training items of scheme ``labelled.v1`` (:mod:`shared.text.grammar`), varied from one epoch to the next.

An item is drawn afresh each time its text comes up. Types are shuffled and dropped, since a service may request any of
them in any order. Types that the corpus does not annotate are requested too; then only annotated mentions contribute to
the loss, since an unmarked word may be a mention of such a type. Type names are sometimes in the other language.
Mentions may be replaced by others of their types. Some are corrupted on purpose (moved boundaries, wrong types, random
spans, omissions): the line continues from the mistake with the right decisions as targets, and a head on the states
around the brackets learns to tell them apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shared import entity_types
from shared.messages import Lang
from shared.text.grammar import (
    ABSENT,
    CLOSE,
    COPY,
    END,
    LABEL,
    MORE,
    OPEN,
    Action,
    CopyTokens,
    Labels,
    LineState,
    PieceTokens,
    Script,
    Typed,
    actions_of,
    lines_of,
)
from shared.text.pieces import split, to_piece_spans
from shared.text.segmentation import segment
from training.data.corpora import Example, GoldMention
from training.data.replacement import Replacements


@dataclass(frozen=True, slots=True)
class Variation:
    """How often items are varied, as probabilities."""

    shuffled: float = 0.5
    dropped: float = 0.3  # some of the types are not requested
    extra: float = 0.2  # types of other corpora are requested
    other_names: float = 0.1  # type names in the other language
    wrong: float = 0.5  # mentions are corrupted
    long: float = 0.35  # segments are twice as long
    replaced: float = 0.0  # mentions make way for others of the corpus


PLAIN = Variation(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Marked:
    """A mention in a line. ``at``: indices of the token before its opening bracket, the bracket, the token before its
    bar and the bar; ``type``: key; ``right``: whether it is a gold mention.
    """

    at: tuple[int, int, int, int]
    type: str
    right: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its line. ``decisions``: for each, the index of the token before it, the admissible tokens, and
    which of them is right.
    """

    ids: tuple[int, ...]
    decisions: tuple[tuple[int, tuple[int, ...], int], ...]
    marked: tuple[Marked, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class LabelledSegment:
    """A segment of a text: its pieces as tokens, and its gold mentions as piece ranges and as ranges of characters."""

    tokens: PieceTokens
    gold: frozenset[Typed]
    text: str
    mentions: tuple[GoldMention, ...]


@dataclass(frozen=True, slots=True)
class SourceText:
    """A text of a corpus, in segments of the usual length and of twice that; items are drawn from it."""

    types: tuple[str, ...]
    lang: Lang
    usual: tuple[LabelledSegment, ...]
    long: tuple[LabelledSegment, ...]

    def __len__(self) -> int:
        """Roughly how many tokens its items have."""
        return sum(2 * len(part.tokens.text) + 8 * len(part.gold) + 20 for part in self.usual)


Source = TypeVar("Source")


class ItemSource(Protocol[Source]):
    """What items are drawn from, by texts of any kind with a length in tokens."""

    def sources(self, examples: Iterable[Example]) -> list[Source]:
        """A source text for each example."""
        ...

    def items(self, source: Source, draw: random.Random, vary: Variation) -> list[Item]:
        """The items of a source text, one or more per segment."""
        ...


class Texts:
    """Turns examples into source texts, and these into items."""

    def __init__(
        self,
        tokens: CopyTokens,
        max_units: int,
        others: Sequence[str],
        replacements: Replacements | None = None,
    ) -> None:
        """``others``: types that other corpora annotate; ``replacements``: mentions to replace others by."""
        self._tokens, self._max_units, self._others = tokens, max_units, others
        self._replacements = replacements
        self._labels: dict[tuple[tuple[str, ...], Lang], Labels] = {}

    def sources(self, examples: Iterable[Example]) -> list[SourceText]:
        """A source text for each example."""
        return [
            SourceText(e.types, e.lang, self._parts(e, self._max_units), self._parts(e, 2 * self._max_units))
            for e in examples
        ]

    def _parts(self, example: Example, max_units: int) -> tuple[LabelledSegment, ...]:
        found = []
        for start, end in segment(example.text, example.lang, max_units):
            inside = [
                GoldMention(m.start - start, m.end - start, m.type)
                for m in example.mentions
                if start <= m.start and m.end <= end
            ]
            found.append(self._part(example.text[start:end], inside, example.types))
        return tuple(found)

    def _part(self, text: str, mentions: Sequence[GoldMention], types: Sequence[str]) -> LabelledSegment:
        pieces = split(text)
        gold = {
            (*span, key)
            for key in types
            for span in to_piece_spans(pieces, [(m.start, m.end) for m in mentions if m.type == key])
        }
        return LabelledSegment(PieceTokens(self._tokens, pieces), frozenset(gold), text, tuple(mentions))

    def items(self, source: SourceText, draw: random.Random, vary: Variation) -> list[Item]:
        """The items of a source text, one per segment."""
        parts = source.long if draw.random() < vary.long else source.usual
        return [self._item(part, source, draw, vary) for part in parts]

    def _item(self, part: LabelledSegment, source: SourceText, draw: random.Random, vary: Variation) -> Item:
        if self._replacements is not None and part.mentions and draw.random() < vary.replaced:
            new = self._replacements.replaced(part.text, part.mentions, (source.types, source.lang), draw)
            part = self._part(*new, source.types)
        types = list(source.types)
        if len(types) > 1 and draw.random() < vary.dropped:
            types = draw.sample(types, draw.randint(1, len(types) - 1))
            types.sort(key=source.types.index)
        extra: list[str] = []
        if draw.random() < vary.extra:
            default = entity_types.DEFAULTS[source.lang]
            if draw.random() < 0.5 and set(types) <= set(default):  # the default for a document that requests no types
                extra = [key for key in default if key not in source.types]
            else:
                others = [key for key in self._others if key not in source.types]
                extra = draw.sample(others, min(len(others), draw.randint(1, 4)))
        own = frozenset(types)
        types += extra
        if extra or draw.random() < vary.shuffled:
            draw.shuffle(types)
        lang: Lang = source.lang
        if draw.random() < vary.other_names:
            lang = "en" if lang == "zh" else "zh"
        gold = frozenset(span for span in part.gold if span[2] in own)
        marked = gold
        if draw.random() < vary.wrong and len(lines_of(gold)) < 2:
            marked = _wrong(gold, len(part.tokens), sorted(own), draw)
        script = Script(self._tokens, part.tokens, self._labels_of(tuple(types), lang))
        return item(script, gold, marked, annotated=not extra)

    def _labels_of(self, types: tuple[str, ...], lang: Lang) -> Labels:
        labels = self._labels.get((types, lang))
        if labels is None:
            if len(self._labels) > 50_000:
                self._labels.clear()
            labels = self._labels[types, lang] = Labels(self._tokens, types, lang)
        return labels


def item(script: Script, gold: frozenset[Typed], marked: frozenset[Typed], *, annotated: bool = True) -> Item:
    """The line that marks the spans ``marked``, with the right option at each of its decisions.

    ``annotated``: whether the text is annotated with all requested types. If not, the absence of a mention is unknown
    and not a target.
    """
    labels = script.labels
    ids = list(script.prompt())
    decisions: list[tuple[int, tuple[int, ...], int]] = []
    found: list[Marked] = []
    state = script.begin()
    oracle = _Oracle(gold, labels)
    opened: list[tuple[int, int]] = []  # indices of the open brackets and of the tokens before them
    bars: tuple[int, int] = (0, 0)  # indices of the last bar and of the token before it
    for action in actions_of(len(script.pieces), marked, labels):
        options, first = script.options(state)
        if len(options) > 1:
            right = oracle.right(state, action, annotated=annotated)
            if right in options:
                decisions.append((len(ids) - 1, first, options.index(right)))
        if action == OPEN:
            opened.append((len(ids) - 1, len(ids)))
        elif action == CLOSE:
            bars = (len(ids) - 1, len(ids) + len(script.tokens.bar) - 1)
        elif action == MORE:
            oracle.next_line()
        ids += script.ids(state, action)
        if (closed := state.apply(action)) is not None:
            start, end, type_ = closed
            key = labels.types[type_]
            found.append(Marked((*opened.pop(), *bars), key, (start, end, key) in gold))
    last = max([at for at, _, _ in decisions] + [at for one in found for at in one.at], default=len(ids) - 1)
    return Item(tuple(ids[: last + 1]), tuple(decisions), tuple(found))


class _Oracle:
    """The right next action after any previous ones, given the mentions of ``gold`` that can still be marked."""

    def __init__(self, gold: frozenset[Typed], labels: Labels) -> None:
        self._index = {key: i for i, key in enumerate(labels.types)}
        self._lines = lines_of(gold) or [[]]
        self._line = -1
        self.next_line()

    def next_line(self) -> None:
        """Moves on to the mentions of the next line."""
        self._line += 1
        self._gold = frozenset(self._lines[self._line]) if self._line < len(self._lines) else frozenset()
        self._starts: dict[int, list[int]] = {}  # ends of the mentions that begin at each piece
        for start, end, _ in self._gold:
            self._starts.setdefault(start, []).append(end)

    def right(self, state: LineState, taken: Action, *, annotated: bool) -> Action | None:
        """None if unknown. Of several right labels it is the one taken, if that is among them."""
        if state.node is not None:
            right = self._types(state)
            fitting = [LABEL + k for k, branch in enumerate(state.node) if not branch.types.isdisjoint(right)]
            return taken if taken in fitting else fitting[0] if fitting else None
        i = state.copied
        if not state.started and not self._gold:
            return ABSENT if annotated else None
        if i == state.pieces and not state.open:
            return MORE if self._line + 1 < len(self._lines) else END
        if state.open and (top := state.open[-1]) < i:
            if self._types(state):
                return CLOSE
            ahead = sum(end > i for end in self._starts.get(top, ()))
            if ahead < state.open.count(top):
                return None  # no gold mention can close here: it should not be open
        starting = self._starts.get(i, ())
        if len(starting) > state.open.count(i):
            # A mention that crosses an open one could not be closed.
            if not state.open or state.open[-1] == i or any(end <= self._ends(state) for end in starting):
                return OPEN
            return None
        # An opening bracket is followed by the first word, whichever types are requested.
        return COPY if annotated or state.after_open else None

    def _types(self, state: LineState) -> set[int]:
        """The right types of the innermost open mention if it closes here."""
        start, end = state.open[-1], state.copied
        found = {self._index[key] for s, e, key in self._gold if (s, e) == (start, end)}
        return {type_ for type_ in found if (start, type_) not in state.here}

    def _ends(self, state: LineState) -> int:
        """The latest end of the innermost open mention."""
        return max(self._starts.get(state.open[-1], ()), default=state.pieces)


def _wrong(gold: frozenset[Typed], pieces: int, types: Sequence[str], draw: random.Random) -> frozenset[Typed]:
    """The mentions, some of them moved, retyped, left out or invented."""
    out: set[Typed] = set()
    for start, end, key in sorted(gold):
        if draw.random() < 0.7:
            out.add((start, end, key))
            continue
        kind = draw.random()
        if kind < 0.25:
            continue
        if kind < 0.45 and len(types) > 1:
            key = draw.choice([other for other in types if other != key])
        else:
            if draw.random() < 0.5:
                start += draw.choice((-3, -2, -1, -1, 1, 1, 2, 3))
            if draw.random() < 0.6:
                end += draw.choice((-3, -2, -1, -1, 1, 1, 2, 3))
        if not 0 <= start < end <= pieces:
            continue
        out.add((start, end, key))
        if draw.random() < 0.15 and end - start > 1:  # a part of it
            inner = draw.randrange(start, end)
            out.add((inner, draw.randint(inner + 1, end), draw.choice(types)))
    while types and draw.random() < (0.35 if gold else 0.2):
        start = draw.randrange(pieces)
        out.add((start, min(pieces, start + draw.choice((1, 1, 1, 2, 2, 3, 4, 6))), draw.choice(types)))
    return frozenset((lines_of(out) or [[]])[0])

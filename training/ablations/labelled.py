"""Labelled brackets, what the per-type lines are compared with: all types in one line, ``[[CD28 | Protein] … | DNA]``.

The text is copied once, whatever the number of types, and a mention says its type where it closes. The grammar is a
walk over tokens (:class:`Walk`): at each place the tokens that may come next. Training and decoding share it. A line
that has no mention is `` -``, as in the per-type scheme; the types that are asked for stand before the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared import entity_types
from shared.messages import Lang
from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces, split, to_piece_spans
from shared.text.segmentation import segment
from shared.text.tagging import escape
from training.data.corpora import Example
from training.data.lines import Item, Line

MAX_DEPTH = 6  # mentions of all types together

Typed = tuple[int, int, str]
"""Piece range and type of a mention."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What can be said next: its tokens, and what it does (``close`` names the type)."""

    tokens: tuple[int, ...]
    does: str
    type: str = ""


class Walk:
    """A line of ``pieces`` under way, by token. ``spans`` has the mentions closed so far; ``done`` when the line is."""

    def __init__(self, tokens: CopyTokens, pieces: Pieces, types: Sequence[str], lang: Lang) -> None:
        bar = tokens.ids(" |")
        if bar[0] == tokens.ids(" ")[0]:
            raise ValueError("base_model: its tokenizer does not tell ` |` and a space apart by their first token")
        self._tokens, self.pieces = tokens, pieces
        self._closings = [
            _Said((*bar, *tokens.ids(f" {entity_types.get(key).name(lang)}"), *tokens.close), "close", key)
            for key in types
        ]
        self._copied = 0
        self._open: list[int] = []
        self._after_open = False
        self._started = False
        self.done = False
        self.spans: list[Typed] = []
        self._said = self._sayable()
        self._at = 0  # tokens of what is being said that are behind

    def options(self) -> list[int]:
        """The tokens that may come next, each once; empty when the line is done."""
        return list(dict.fromkeys(said.tokens[self._at] for said in self._said))

    def feed(self, token: int) -> None:
        """Go on by a token, one of the options."""
        self._said = [said for said in self._said if said.tokens[self._at] == token]
        self._at += 1
        whole = next((said for said in self._said if len(said.tokens) == self._at), None)
        if whole is not None:
            self._apply(whole)
            self._said, self._at = self._sayable(), 0

    def tokens_of(self, does: str, type_: str = "") -> tuple[int, ...]:
        """The tokens of what is admissible next, by name."""
        return next(said.tokens for said in self._said if (said.does, said.type) == (does, type_))

    def _sayable(self) -> list[_Said]:
        if self.done:
            return []
        said = []
        if self._copied < len(self.pieces):
            said.append(_Said(self._copy(), "copy"))
            if len(self._open) < MAX_DEPTH:
                spaced = self.pieces.spaced(self._copied) and not self._after_open
                said.append(_Said(self._tokens.spaced_open if spaced else self._tokens.open, "open"))
        if self._open and self._open[-1] < self._copied:
            said += self._closings
        if not self._started:
            said.append(_Said(self._tokens.absent, "absent"))
        if self._copied == len(self.pieces) and not self._open:
            said.append(_Said(self._tokens.newline, "end"))
        return said

    def _copy(self) -> tuple[int, ...]:
        core = escape(self.pieces.core(self._copied)).replace("|", "\\|")
        return self._tokens.ids(f" {core}" if self.pieces.spaced(self._copied) and not self._after_open else core)

    def _apply(self, said: _Said) -> None:
        self._started = True
        self._after_open = said.does == "open"
        if said.does == "copy":
            self._copied += 1
        elif said.does == "open":
            self._open.append(self._copied)
        elif said.does == "close":
            self.spans.append((self._open.pop(), self._copied, said.type))
        else:
            self.done = True


def header(tokens: CopyTokens, types: Sequence[str], lang: Lang) -> tuple[int, ...]:
    """The types that are asked for, by name: ``Protein, DNA:``"""
    names = [entity_types.get(key).name(lang) for key in types]
    return tokens.ids(("、" if lang == "zh" else ", ").join(names) + ":")


def line(walk: Walk, spans: Iterable[Typed]) -> tuple[list[int], list[tuple[int, tuple[int, ...], int]]]:
    """Tokens of the line of spans that nest, and its decisions: tokens before, admissible ids, which is right.

    Spans that cannot be said (that cross, or nest too deep) are left out. Tokens after the last decision are too:
    nothing depends on them.
    """
    kept = _nested(spans)
    ids: list[int] = []
    decisions: list[tuple[int, tuple[int, ...], int]] = []

    def say(does: str, type_: str = "") -> None:
        for token in walk.tokens_of(does, type_):
            options = walk.options()
            if len(options) > 1:
                decisions.append((len(ids), tuple(options), options.index(token)))
            ids.append(token)
            walk.feed(token)

    if not kept:
        say("absent")
    else:
        stack: list[Typed] = []
        for i in range(len(walk.pieces) + 1):
            while stack and stack[-1][1] == i:
                say("close", stack.pop()[2])
            for span in kept:
                if span[0] == i:
                    say("open")
                    stack.append(span)
            if i < len(walk.pieces):
                say("copy")
    del ids[decisions[-1][0] if decisions else 0 :]
    return ids, decisions


def _nested(spans: Iterable[Typed]) -> list[Typed]:
    """As :func:`shared.text.grammar.nested_only`, for mentions of several types, which may share a span."""
    kept: list[Typed] = []
    for start, end, type_ in sorted(set(spans), key=lambda s: (s[0], -s[1], s[2])):
        around = [k for k in kept if k[0] <= start and end <= k[1]]
        if len(around) < MAX_DEPTH and not any(k[0] < start < k[1] < end for k in kept):
            kept.append((start, end, type_))
    return kept


def items(examples: Iterable[Example], tokens: CopyTokens, max_units: int) -> list[Item]:
    """One item of one line a segment, as :func:`training.data.lines.items` makes one of a line for each type."""
    out = []
    for example in examples:
        for start, end in segment(example.text, example.lang, max_units):
            pieces = split(example.text[start:end])
            spans = [
                (*span, key)
                for key in example.types
                for span in to_piece_spans(
                    pieces,
                    [
                        (m.start - start, m.end - start)
                        for m in example.mentions
                        if m.type == key and start <= m.start and m.end <= end
                    ],
                )
            ]
            asked = header(tokens, example.types, example.lang)
            ids, decisions = line(Walk(tokens, pieces, example.types, example.lang), spans)
            decided = tuple((len(asked) + at - 1, options, right) for at, options, right in decisions)
            out.append(Item(tuple(tokens.prefix(pieces)), (Line((*asked, *ids), decided, absent=not spans),)))
    return out

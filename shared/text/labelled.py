"""Scheme ``labelled.v1``: a segment's mentions of all types in one line, as a grammar over pieces.

What the model reads is the types that are asked for, the text, and the line under way::

    Protein, DNA:
    CD28 surface receptor
    [[CD28 | Protein] surface receptor | Protein]

A mention says its type where it closes. A line without a mention is `` -``. A bracket, bar or backslash of the text is
escaped with a backslash. Mentions that cross one of a line go to a further line. The types stand first, so that their
keys and values are computed once for all segments that ask for the same.

A line is a sequence of actions, each a fixed run of tokens. Only where more than one token is admissible is there
anything to decide; everything else is given. Training and decoding share this module, so that they cannot differ.
Labels inside the line: "Decoding the structure of NER prompts" (arXiv 2601.17898) compares formats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from shared import entity_types
from shared.messages import Lang
from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces

SCHEME = "labelled.v1"
MAX_DEPTH = 6  # mentions that hold one another, of all types together
MAX_LINES = 3  # no segment of the corpora here needs more for its crossing mentions

Typed = tuple[int, int, str]
"""Half-open piece range and type of a mention."""

_SPECIAL = re.compile(r"[\[\]\\|]")


def escape(text: str) -> str:
    """The text with a backslash before each bracket, bar and backslash."""
    return _SPECIAL.sub(r"\\\g<0>", text)


class Does(IntEnum):
    """What an action does."""

    COPY = 0
    OPEN = 1
    CLOSE = 2
    ABSENT = 3
    END = 4
    MORE = 5


class Action(NamedTuple):
    """What can be said next. ``type``: index in the types asked for, of a closing."""

    does: Does
    type: int = -1


COPY, OPEN, ABSENT, END, MORE = map(Action, (Does.COPY, Does.OPEN, Does.ABSENT, Does.END, Does.MORE))


class LineState:
    """Where a line stands: pieces copied, and mentions open by the piece each began at."""

    __slots__ = ("after_open", "copied", "done", "here", "lines", "open", "pieces", "started")

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.copied = 0
        self.open: list[int] = []
        self.here: set[tuple[int, int]] = set()  # start and type of mentions that closed at this place
        self.lines = 1
        self.started = False
        self.after_open = False
        self.done = False

    def copy(self) -> LineState:
        """One that goes its own way."""
        other = LineState.__new__(LineState)
        other.pieces, other.copied, other.open, other.here = (
            self.pieces,
            self.copied,
            self.open.copy(),
            self.here.copy(),
        )
        other.lines, other.started, other.after_open, other.done = self.lines, self.started, self.after_open, self.done
        return other

    def admissible(self, types: int) -> tuple[Does, ...]:
        """What may be done next, in the order of :class:`Does`, with so many types; empty when all is said."""
        if self.done:
            return ()
        found: list[Does] = []
        if self.copied < self.pieces:
            found.append(Does.COPY)
            if len(self.open) < MAX_DEPTH:
                found.append(Does.OPEN)
        if self.open and self.open[-1] < self.copied and len(self.closable(types)):
            found.append(Does.CLOSE)
        if not self.started:
            found.append(Does.ABSENT)
        if self.copied == self.pieces and not self.open:
            found.append(Does.END)
            if self.lines < MAX_LINES:
                found.append(Does.MORE)
        return tuple(found)

    def closable(self, types: int) -> list[int]:
        """The types that the innermost mention may close with: not one that this very span has already."""
        start = self.open[-1]
        return [i for i in range(types) if (start, i) not in self.here]

    def apply(self, action: Action) -> tuple[int, int, int] | None:
        """Take an action; the piece range and the type's index of the mention that it closes, if it closes one."""
        self.started = True
        self.after_open = action.does is Does.OPEN
        match action.does:
            case Does.COPY:
                self.copied += 1
                self.here.clear()
            case Does.OPEN:
                self.open.append(self.copied)
            case Does.CLOSE:
                start = self.open.pop()
                self.here.add((start, action.type))
                return start, self.copied, action.type
            case Does.MORE:
                self.copied, self.lines = 0, self.lines + 1
                self.here.clear()
            case _:
                self.done = True
        return None


class Asked:
    """The types that are asked for, as tokens. ``types``: canonical keys; ``names``: as the header says them."""

    def __init__(
        self, tokens: CopyTokens, types: Sequence[str], lang: Lang, names: Sequence[str] | None = None
    ) -> None:
        """``names``: those of the language where absent. ValueError where two cannot be told apart."""
        self.types = tuple(types)
        self.names = tuple(names) if names is not None else tuple(entity_types.get(key).name(lang) for key in types)
        self.bar = tokens.ids(" |")
        if self.bar[0] == tokens.ids(" ")[0]:
            raise ValueError("base_model: its tokenizer does not tell ` |` and a space apart by their first token")
        self.said = tuple((*tokens.ids(f" {name}"), *tokens.close) for name in self.names)
        if len(set(self.said)) < len(self.said):
            raise ValueError("types: two of them have the same name; ask for one of them")
        self.header = (
            *tokens.bos,
            *tokens.ids(("、" if lang == "zh" else ", ").join(self.names) + ":"),
            *tokens.newline,
        )

    def branches(self, closable: Sequence[int], said: int, taken: int) -> tuple[list[int], int]:
        """The tokens that may follow the first ``said`` ones of type ``taken``, and the place of its own among them."""
        begun, own = self.said[taken][:said], self.said[taken][said]
        found: list[int] = []
        for i in closable:
            one = self.said[i]
            if one[:said] == begun and one[said] not in found:
                found.append(one[said])
        return found, found.index(own)


class PieceTokens:
    """The pieces of a segment as tokens: ``text`` as the prompt has them, with a line break behind; ``copies[i]`` as a
    line has piece i; ``bare[i]`` the same where an opening bracket before it has taken its space.
    """

    __slots__ = ("bare", "copies", "openings", "text")

    def __init__(self, tokens: CopyTokens, pieces: Pieces) -> None:
        ids: list[int] = []
        for start, end in zip(pieces.starts, pieces.ends, strict=True):
            ids += tokens.ids(pieces.text[start:end])
        self.text = (*ids, *tokens.newline)
        spaced = [pieces.spaced(i) for i in range(len(pieces))]
        cores = [escape(pieces.core(i)) for i in range(len(pieces))]
        self.bare = tuple(tokens.ids(core) for core in cores)
        self.copies = tuple(
            tokens.ids(f" {core}") if space else bare
            for core, space, bare in zip(cores, spaced, self.bare, strict=True)
        )
        self.openings = tuple(tokens.spaced_open if space else tokens.open for space in spaced)

    def __len__(self) -> int:
        return len(self.copies)


def lines_of(spans: Iterable[Typed]) -> list[list[Typed]]:
    """The lines that say spans: each in the first where it crosses no other and nests no deeper than may be.

    In the order in which they open: by start, the longer first, then by type. Those for which there is no line are left
    out.
    """
    lines: list[list[Typed]] = []
    for span in sorted(set(spans), key=lambda s: (s[0], -s[1], s[2])):
        start, end, _ = span
        for line in [*lines, []][:MAX_LINES]:
            if any(a < start < b < end for a, b, _ in line) or sum(start < b for _, b, _ in line) >= MAX_DEPTH:
                continue
            if not line:
                lines.append(line)
            line.append(span)
            break
    return lines


def actions_of(pieces: int, spans: Iterable[Typed], types: Sequence[str]) -> list[Action]:
    """What says the spans; the inverse of :func:`spans_of` where there is a line for each."""
    index = {key: i for i, key in enumerate(types)}
    actions: list[Action] = []
    for line in lines_of(spans):
        if actions:
            actions.append(MORE)
        stack: list[Typed] = []
        at = 0
        for i in range(pieces + 1):
            while stack and stack[-1][1] == i:
                actions.append(Action(Does.CLOSE, index[stack.pop()[2]]))
            while at < len(line) and line[at][0] == i:
                actions.append(OPEN)
                stack.append(line[at])
                at += 1
            if i < pieces:
                actions.append(COPY)
    return [*actions, END] if actions else [ABSENT]


def spans_of(pieces: int, actions: Iterable[Action], types: Sequence[str]) -> list[Typed]:
    """The mentions that actions say, in the order in which they close."""
    state = LineState(pieces)
    closed = [found for action in actions if (found := state.apply(action)) is not None]
    return [(start, end, types[i]) for start, end, i in closed]

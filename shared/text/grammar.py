"""Scheme ``labelled.v1``: a segment's mentions of all types in one line, as a grammar over pieces and tokens.

What the model reads is the types that are asked for, the text, and the line so far::

    Protein, DNA:
    CD28 surface receptor
    [[CD28 | Protein] surface receptor | Protein]

A mention says its type where it closes. A line without a mention is `` -``. A bracket, bar or backslash of the text is
escaped with a backslash. Mentions that cross go to a further line. The types stand first, so that their keys and values
are computed once for all segments that ask for the same ones.

A line is a sequence of actions, each a fixed run of tokens that its first token tells from the others admissible at
that place. Only where more than one is admissible is there anything to decide; everything else is given. A label is
said by a walk down a radix tree of the type names' tokens. Training and decoding share this module, so that they cannot
differ. Formats of labels are compared in arXiv 2601.17898; copying with brackets is arXiv 2510.08902.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal, Protocol, TypeAlias

from shared import entity_types
from shared.messages import Lang
from shared.text.pieces import Pieces
from shared.text.tagging import escape

SCHEME: Literal["labelled.v1"] = "labelled.v1"
MAX_DEPTH = 6  # mentions around one place, of all types together; no corpus here has more than four
MAX_LINES = 3  # of one segment

Action: TypeAlias = int
"""One of the constants below, or ``LABEL + k``: the k-th branch of the tree of labels."""

COPY, OPEN, CLOSE, ABSENT, END, MORE, LABEL = range(7)

Typed: TypeAlias = tuple[int, int, str]
"""Half-open range of pieces, and type, of a mention."""


class Tokenizer(Protocol):
    """The part of a ``transformers`` tokenizer that is used."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class CopyTokens:
    """Tokens of short texts for one tokenizer, remembered. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()  # a tokenizer is for one thread at a time
        self._ids: dict[str, tuple[int, ...]] = {}
        self.bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self.open = self.ids("[")
        self.spaced_open = self.ids(" [")
        self.close = self.ids("]")
        self.bar = self.ids(" |")
        self.absent = self.ids(" -")
        self.newline = self.ids("\n")
        self.end = self.newline if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        marks = (self.open, self.spaced_open, self.bar, self.absent, self.ids(" "))
        if len({ids[0] for ids in marks}) < len(marks):
            raise ValueError(
                "base_model: its tokenizer does not tell `[`, ` [`, ` |`, ` -` and a space apart by their first token; "
                "set BIOBRACKET_BASE_MODEL to another base"
            )

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a short text."""
        ids = self._ids.get(text)
        if ids is None:
            with self._lock:
                if len(self._ids) > 200_000:  # a few tens of MB; a stream of ever new words must not grow without end
                    self._ids.clear()
                ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
                self._ids[text] = ids
        return ids


@dataclass(frozen=True, slots=True)
class LabelBranch:
    """A branch of the tree of labels. ``types``: indices of those below it; ``node``: what follows, none at a leaf."""

    tokens: tuple[int, ...]
    types: frozenset[int]
    node: tuple[LabelBranch, ...] | None


Node: TypeAlias = tuple[LabelBranch, ...]


class Labels:
    """The types asked for, as tokens.

    ``types``: canonical keys; ``names``: as header and labels say them; ``header``: tokens that begin the prompt;
    ``root``: of the radix tree of what follows a bar, closing bracket included.
    """

    def __init__(
        self, tokens: CopyTokens, types: Sequence[str], lang: Lang, names: Sequence[str] | None = None
    ) -> None:
        """``names``: those in the language of the text where absent. ValueError where two are the same."""
        self.types = tuple(types)
        self.names = tuple(names) if names is not None else tuple(entity_types.get(key).name(lang) for key in types)
        listed = ("、" if lang == "zh" else ", ").join(self.names)
        self.header = (*tokens.bos, *tokens.ids(f"{listed}:"), *tokens.newline)
        said = [(*tokens.ids(f" {name}"), *tokens.close) for name in self.names]
        if len(set(said)) < len(said):
            raise ValueError("types: two of them have the same name; ask for one of the two")
        self.root = _tree([(ids, i) for i, ids in enumerate(said)])

    def path(self, type_: int) -> list[Action]:
        """The actions that say the label of a type, by its index."""
        actions: list[Action] = []
        node: Node | None = self.root
        while node is not None:
            k = next(k for k, branch in enumerate(node) if type_ in branch.types)
            actions.append(LABEL + k)
            node = node[k].node
        return actions


def _tree(said: list[tuple[tuple[int, ...], int]]) -> Node:
    groups: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for ids, i in said:
        groups.setdefault(ids[0], []).append((ids, i))
    node = []
    for group in groups.values():
        types = frozenset(i for _, i in group)
        if len(group) == 1:
            node.append(LabelBranch(group[0][0], types, None))
            continue
        shared = 1
        while len({ids[: shared + 1] for ids, _ in group}) == 1:
            shared += 1
        node.append(LabelBranch(group[0][0][:shared], types, _tree([(ids[shared:], i) for ids, i in group])))
    return tuple(node)


class LineState:
    """Where a line stands: pieces copied, mentions open by the piece each began at, and the label under way."""

    __slots__ = ("after_open", "copied", "done", "here", "lines", "node", "open", "pieces", "root", "started", "types")

    def __init__(self, pieces: int, root: Node) -> None:
        self.pieces, self.root = pieces, root
        self.types = sum(len(branch.types) for branch in root)
        self.copied = 0
        self.open: list[int] = []
        self.here: set[tuple[int, int]] = set()  # start and type of the mentions closed at this place
        self.node: Node | None = None  # of the tree of labels, between a bar and the end of its label
        self.lines = 1
        self.started = self.after_open = self.done = False

    def copy(self) -> LineState:
        """One that goes its own way from here."""
        other = LineState(self.pieces, self.root)
        other.copied, other.open, other.here, other.node = self.copied, self.open.copy(), self.here.copy(), self.node
        other.lines, other.started, other.after_open, other.done = self.lines, self.started, self.after_open, self.done
        return other

    def admissible(self) -> tuple[Action, ...]:
        """The actions that may come next; empty when all is said."""
        if self.done:
            return ()
        if self.node is not None:
            return tuple(LABEL + k for k, branch in enumerate(self.node) if self._closable(branch))
        found: list[Action] = []
        if self.copied < self.pieces:
            found.append(COPY)
            # A span has a type once: more brackets at one place could not all be closed.
            if len(self.open) < MAX_DEPTH and self.open.count(self.copied) < self.types:
                found.append(OPEN)
        if self.open and self.open[-1] < self.copied and any(map(self._closable, self.root)):
            found.append(CLOSE)
        if not self.started:
            found.append(ABSENT)
        if self.copied == self.pieces and not self.open:
            found.append(END)
            if self.lines < MAX_LINES:
                found.append(MORE)
        return tuple(found)

    def _closable(self, branch: LabelBranch) -> bool:
        """Whether a mention may be labelled by it: a span has a type once."""
        return not self.here or any((self.open[-1], type_) not in self.here for type_ in branch.types)

    def apply(self, action: Action) -> tuple[int, int, int] | None:
        """Take an action; range of pieces and index of the type of the mention whose label it ends, if it does."""
        self.started = True
        self.after_open = action == OPEN
        if action == COPY:
            self.copied += 1
            self.here.clear()
        elif action == OPEN:
            self.open.append(self.copied)
        elif action == CLOSE:
            self.node = self.root
        elif action >= LABEL:
            if self.node is None:
                raise ValueError("a label outside of a closing bracket")
            branch = self.node[action - LABEL]
            self.node = branch.node
            if branch.node is None:
                (type_,) = branch.types
                start = self.open.pop()
                self.here.add((start, type_))
                return start, self.copied, type_
        elif action == MORE:
            self.copied, self.lines = 0, self.lines + 1
            self.here.clear()
        else:
            self.done = True
        return None


class PieceTokens:
    """A segment's pieces as tokens.

    ``text``: as the prompt has them, with a line break behind; ``copies[i]``: piece i as a line has it; ``bare[i]``:
    the same where an opening bracket before it has taken its space; ``openings[i]``: an opening bracket before it.
    """

    __slots__ = ("bare", "copies", "openings", "text")

    def __init__(self, tokens: CopyTokens, pieces: Pieces) -> None:
        ids: list[int] = []
        for start, end in zip(pieces.starts, pieces.ends, strict=True):
            ids += tokens.ids(pieces.text[start:end])
        self.text = (*ids, *tokens.newline)
        cores = [escape(pieces.core(i)) for i in range(len(pieces))]
        self.bare = tuple(map(tokens.ids, cores))
        spaced = [pieces.spaced(i) for i in range(len(pieces))]
        self.copies = tuple(
            tokens.ids(f" {core}") if space else bare
            for core, space, bare in zip(cores, spaced, self.bare, strict=True)
        )
        self.openings = tuple(tokens.spaced_open if space else tokens.open for space in spaced)

    def __len__(self) -> int:
        return len(self.copies)


class Script:
    """The lines that a segment may have: its pieces and the labels, as tokens."""

    __slots__ = ("labels", "pieces", "tokens")

    def __init__(self, tokens: CopyTokens, pieces: PieceTokens, labels: Labels) -> None:
        self.tokens, self.pieces, self.labels = tokens, pieces, labels

    def begin(self) -> LineState:
        """The state before a line."""
        return LineState(len(self.pieces), self.labels.root)

    def prompt(self) -> tuple[int, ...]:
        """What stands before the line."""
        return (*self.labels.header, *self.pieces.text)

    def ids(self, state: LineState, action: Action) -> tuple[int, ...]:
        """The tokens of an admissible action."""
        tokens = self.tokens
        if action == COPY:
            return (self.pieces.bare if state.after_open else self.pieces.copies)[state.copied]
        if action == OPEN:
            return tokens.open if state.after_open else self.pieces.openings[state.copied]
        if action >= LABEL:
            if state.node is None:
                raise ValueError("a label outside of a closing bracket")
            return state.node[action - LABEL].tokens
        return (tokens.bar, tokens.absent, tokens.end, tokens.newline)[action - CLOSE]

    def options(self, state: LineState) -> tuple[tuple[Action, ...], tuple[int, ...]]:
        """The admissible actions, and the first token of each.

        Of two with the same first token (a text that begins with `` -``) the first in order stays: a copy.
        """
        first: dict[int, Action] = {}
        for action in state.admissible():
            first.setdefault(self.ids(state, action)[0], action)
        return tuple(first.values()), tuple(first)

    def said(self, actions: Iterable[Action]) -> Iterator[int]:
        """The tokens of a whole line."""
        state = self.begin()
        for action in actions:
            yield from self.ids(state, action)
            state.apply(action)


def lines_of(spans: Iterable[Typed]) -> list[list[Typed]]:
    """The lines that say spans: each in the first where it crosses none and does not nest too deep.

    In the order in which they open: by start, the longer first, then by type. Spans for which there is no line are left
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


def actions_of(pieces: int, spans: Iterable[Typed], labels: Labels) -> list[Action]:
    """What says spans of the types asked for; the inverse of :func:`spans_of` where there is a line for each."""
    index = {key: i for i, key in enumerate(labels.types)}
    actions: list[Action] = []
    for line in lines_of(spans):
        if actions:
            actions.append(MORE)
        stack: list[Typed] = []
        at = 0
        for i in range(pieces + 1):
            while stack and stack[-1][1] == i:
                actions.append(CLOSE)
                actions += labels.path(index[stack.pop()[2]])
            while at < len(line) and line[at][0] == i:
                actions.append(OPEN)
                stack.append(line[at])
                at += 1
            if i < pieces:
                actions.append(COPY)
    return [*actions, END] if actions else [ABSENT]


def spans_of(pieces: int, actions: Iterable[Action], labels: Labels) -> list[Typed]:
    """The mentions that actions say, in the order in which they close."""
    state = LineState(pieces, labels.root)
    closed = [found for action in actions if (found := state.apply(action)) is not None]
    return [(start, end, labels.types[i]) for start, end, i in closed]


def tagged_text(pieces: Pieces, actions: Iterable[Action], labels: Labels) -> str:
    """Lines as text, as :func:`shared.text.tagging.decode` reads them, one a row; empty where there is no mention."""
    out: list[str] = []
    state = LineState(len(pieces), labels.root)
    for action in actions:
        if action == COPY:
            space = " " if pieces.spaced(state.copied) and not state.after_open else ""
            out.append(space + escape(pieces.core(state.copied)))
        elif action == OPEN:
            out.append(" [" if pieces.spaced(state.copied) and not state.after_open else "[")
        elif action == MORE:
            out.append("\n")
        if (closed := state.apply(action)) is not None:
            out.append(f" | {labels.names[closed[2]]}]")
    return "".join(out)

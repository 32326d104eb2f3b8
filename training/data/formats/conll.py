"""CoNLL: one token per line with its tag in a column, and a blank line after each sentence.

Tags are read by the rule of the CoNLL scorer, which covers IOB1, IOB2 (BIO), BIOES, BMES and BILOU: a mention begins at
``B`` or ``S``, at a new label, or where none is open, and ends after ``E`` or ``S``. The scheme is identified only to
report how many tags violate it. Tags may be bare letters if there is only one kind of mention.
Scorer: https://www.clips.uantwerpen.be/conll2000/chunking/conlleval.txt
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shared.text.segmentation import CJK
from training.data.corpora import CorpusError
from training.data.formats.common import AnnotatedText, Annotation, Reading, lines, single_file

UNNAMED = "entity"  # label of mentions whose tags are bare letters

_TAG = re.compile(r"([BIESMLUW])(?:-(\S.*))?|O")
_PLAIN = {"M": "I", "L": "E", "U": "S", "W": "S"}
# CoNLL-U's `# text = …`; other comments are recognised by their number of columns.
_COMMENT = re.compile(r"#\s*[\w.:-]+\s*=\s")
_DOCUMENT = ("-DOCSTART-", "###MEDLINE:")  # CoNLL 2003 and JNLPBA
_WIDE = re.compile(f"[{CJK}\u3000-\u303f\uff00-\uffef]")
# Share of single-character tokens from which a file counts as split into characters: it is 0.25 in English text, 0.5 in
# Chinese split into words, and 0.9 in Chinese split into characters with Latin words and numbers kept whole.
_BY_CHARACTER = 0.75


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    letter: str  # B, I, E, S or O
    label: str


@dataclass(slots=True)
class _Sentence:
    place: str
    tokens: list[_Token] = field(default_factory=list)
    broken: bool = False  # one of its lines could not be read


@dataclass(slots=True)
class _Scheme:
    """Counts that identify the tagging scheme of a file."""

    letters: set[str] = field(default_factory=set)
    mentions: int = 0
    without_b: int = 0  # mentions that begin with neither B nor S
    needless_b: int = 0  # B where IOB1 has I: no mention of its label ends just before
    unended: int = 0  # mentions with B and without E

    def name_and_violations(self) -> tuple[str, int]:
        """The scheme's name, and how many mentions violate it."""
        if self.letters & set("ESLUW"):
            name = "BMES" if "M" in self.letters else "BILOU" if self.letters & set("LU") else "BIOES"
            return name, self.without_b + self.unended
        if self.needless_b < self.without_b:
            return "IOB1", self.needless_b
        return "IOB2", self.without_b


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The sentences of a file, or its documents with one sentence per line."""
    scheme = _Scheme()
    documents = list(_documents(single_file(source), reading, scheme))
    tokens = Counter(len(t.text) == 1 for sentences in documents for s in sentences for t in s.tokens)
    by_character = tokens[True] >= _BY_CHARACTER * tokens.total()
    if reading.documents == "docstart":
        texts = [sentences for sentences in documents if sentences]
    else:
        texts = [[sentence] for sentences in documents for sentence in sentences]
    for number, sentences in enumerate(texts, 1):
        yield _text(f"{source.stem}-{number}", sentences, by_character, scheme)
    name, broken = scheme.name_and_violations()
    reading.notes[f"mention tagged in {name}"] = scheme.mentions
    reading.notes[f"mention whose tags break {name}, read as the CoNLL scorer does"] = broken


def _documents(file: Path, reading: Reading, scheme: _Scheme) -> Iterator[list[_Sentence]]:
    """Sentences by document; a single document if the file has no document marks."""
    sentences: list[_Sentence] = []
    marked = within = False
    usual = _layout(file)
    for place, line in lines(file, reading):
        if line.startswith(_DOCUMENT):
            yield _whole(sentences)
            sentences, marked, within = [], True, False
        elif not line.strip(" \t\r"):
            within = False
        elif not _is_comment(line, usual):
            if not within:
                sentences.append(_Sentence(place))
                within = True
            if (token := _token(line, place, reading, scheme)) is None:
                sentences[-1].broken = True
            else:
                sentences[-1].tokens.append(token)
    if reading.documents == "docstart" and not marked:
        raise CorpusError(f"{file.name}: no -DOCSTART- line; omit --documents docstart to read its sentences")
    yield _whole(sentences)


def _whole(sentences: list[_Sentence]) -> list[_Sentence]:
    """The sentences of which every line could be read: one without one of its words would be a different sentence."""
    return [sentence for sentence in sentences if not sentence.broken]


def _layout(file: Path) -> tuple[str, int] | None:
    """Separator and number of columns of the first line that is not a comment, else of a ``#`` line that has a tag."""
    found = None
    for _, line in lines(file, Reading()):
        if line.strip(" \t\r") and not line.startswith(_DOCUMENT):
            separator, columns = _columns(line)
            if not line.startswith("#"):
                return separator, len(columns)
            if found is None and len(columns) > 1 and _TAG.fullmatch(columns[-1]):
                found = separator, len(columns)
    return found


def _columns(line: str) -> tuple[str, list[str]]:
    # Not `split()`: files of Chinese characters have ideographic and even plain spaces as tokens.
    line = line.rstrip(" \t")
    return ("\t", line.split("\t")) if "\t" in line else (" ", re.split(" +", line))


def _is_comment(line: str, usual: tuple[str, int] | None) -> bool:
    """Whether a line is a comment: ``#`` and a number of columns other than the file's, or ``# key =``."""
    if not line.startswith("#"):
        return False
    separator, columns = _columns(line)
    return (separator, len(columns)) != usual or (separator == " " and _COMMENT.match(line) is not None)


def _token(line: str, place: str, reading: Reading, scheme: _Scheme) -> _Token | None:
    _, columns = _columns(line)
    column = len(columns) if reading.column is None else reading.column
    found = _TAG.fullmatch(columns[column - 1]) if 2 <= column <= len(columns) else None
    if found is None:
        remedy = "it must be O, or a letter of BIO, BIOES, BMES or BILOU with a label, such as B-Disease; see --column"
        reading.bad(f"{place}: column {column} of {len(columns)}", "sentence with a line that has no tag", remedy)
        return None
    letter, label = found[1] or "O", found[2] or UNNAMED
    scheme.letters.add(letter)
    return _Token(columns[0] or " ", _PLAIN.get(letter, letter), label)


def _text(name: str, sentences: Sequence[_Sentence], by_character: bool, scheme: _Scheme) -> AnnotatedText:
    parts: list[str] = []
    annotations: list[Annotation] = []
    length = 0
    for sentence in sentences:
        if parts:
            parts.append("\n")
            length += 1
        offsets: list[tuple[int, int]] = []
        surfaces: list[str] = []
        for i, token in enumerate(sentence.tokens):
            gap = _gap(sentence.tokens[i - 1].text, token.text, by_character) if i else ""
            length += len(gap)
            offsets.append((length, length + len(token.text)))
            surfaces += [gap, token.text]
            length += len(token.text)
        parts += surfaces
        for first, last, label in _mentions(sentence.tokens, scheme):
            surface = "".join(surfaces[2 * first + 1 : 2 * last + 2])
            span = (offsets[first][0], offsets[last][1])
            annotations.append(Annotation((span,), label, surface, sentence.place))
    return AnnotatedText(name, "".join(parts), tuple(annotations), sentences[0].place)


def _gap(before: str, after: str, by_character: bool) -> str:
    if _WIDE.match(before[-1]) or _WIDE.match(after[0]):
        return ""
    # In a file split into characters, only whole words were separated by spaces in the text.
    return "" if by_character and (len(before) == 1 or len(after) == 1) else " "


def _mentions(tokens: Sequence[_Token], scheme: _Scheme) -> Iterator[tuple[int, int, str]]:
    """First token, last token and label of each mention."""
    begin = 0
    before = _Token("", "O", "")
    for i, token in enumerate([*tokens, _Token("", "O", "")]):
        is_open = before.letter in ("B", "I")
        goes_on = is_open and token.letter in ("I", "E") and token.label == before.label
        if is_open and not goes_on:
            yield begin, i - 1, before.label
            scheme.unended += tokens[begin].letter == "B"
        if token.letter != "O" and not goes_on:
            begin = i
            scheme.mentions += 1
            scheme.without_b += token.letter in ("I", "E")
            scheme.needless_b += token.letter == "B" and (before.letter == "O" or before.label != token.label)
        if token.letter in ("E", "S"):
            yield begin, i, token.label
        before = token

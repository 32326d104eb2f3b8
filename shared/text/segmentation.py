"""Segmentation: a document's text to the stretches that are tagged at once, as offsets, nothing lost or moved.

A blank line ends a paragraph. Lines of a paragraph that start a headed section (``主诉：``, ``ALLERGIES:``), a list
item or a table row start a block; other lines are wrapped prose. Blocks hold sentences. A segment takes whole
sentences of one paragraph while they fit; a block that does not fit beside what came before starts a segment of its
own. A sentence longer than a segment is cut where it hurts least: line break, clause, space, between tokens, anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from shared.messages import Lang

Span = tuple[int, int]

CJK = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_BREAKS = "\n\r\v\f\x85\u2028\u2029"
_IS_CJK = re.compile(f"[{CJK}]")
MIN_UNITS = 4  # the most that one character costs

# Letters in fours, any other visible character alone, line breaks alone, tabs and further spaces sixteen at a time: a
# tokeniser folds one space into the word that follows and has tokens for runs of them.
_UNIT = re.compile(rf"[{LATIN}]{{1,4}}|[^\s{LATIN}]|[{_BREAKS}]|[^\S{_BREAKS}]{{2,16}}|\t")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")  # four bytes, each a token where the vocabulary lacks the character


def units(text: str) -> int:
    """An upper estimate of the tokens a model needs for a text."""
    count = len(_UNIT.findall(text))
    return count if text.isascii() else count + 3 * len(_ASTRAL.findall(text))


def segment(text: str, lang: Lang, max_units: int = 160) -> list[Span]:
    """Increasing, disjoint offsets ``(start, end)`` of a text's segments.

    Every character other than white space is in exactly one of them, and none costs more than ``max_units``. Raises
    ValueError if ``max_units`` is below what a single character may cost. Runs in linear time.
    """
    if max_units < MIN_UNITS:
        raise ValueError(f"max_units: must be at least {MIN_UNITS}, the cost of one character")
    segments: list[Span] = []
    for start, end in _paragraphs(text):
        segments += _pack(text, start, end, lang, max_units)
    return segments


def _pack(text: str, start: int, end: int, lang: Lang, max_units: int) -> Iterator[Span]:
    """The segments of one paragraph."""
    opened, closed, used = start, start, 0  # the segment so far is text[opened:closed]
    for block in _blocks(text, start, end):
        pieces = [piece for sentence in _sentences(text, *block, lang) for piece in _cut(text, *sentence, max_units)]
        whole = sum(cost for _, _, cost in pieces)
        for place, (s, e, cost) in enumerate(pieces):
            gap = units(text[closed:s]) if used else 0
            # A block that fits nowhere whole still starts a segment of its own, so that a heading keeps its section.
            need = whole if place == 0 else cost
            if used and used + gap + need > max_units:
                yield opened, closed
                used = 0
            if not used:
                opened, gap = s, 0
            closed, used = e, used + gap + cost
    if used:
        yield opened, closed


# Paragraphs and blocks

_BLANK = re.compile(r"\s{2,}")
_BREAK = re.compile(rf"\r\n|[{_BREAKS}]")


def _paragraphs(text: str) -> Iterator[Span]:
    start = 0
    for blank in _BLANK.finditer(text):
        if len(_BREAK.findall(blank[0])) > 1:
            yield start, blank.start()
            start = blank.end()
    yield start, len(text)


_ITEM = re.compile(
    r"[ \t\u3000]*(?:[-*+•·●○■□◆◇▪►–—※][ \t\u3000]*(?![-*+\d])|\d{1,3}[、)）]|\d{1,3}[.．](?!\d)|[(（]\d{1,3}[)）]"
    r"|[①-⑳⒈-⒛]|[一二三四五六七八九十]{1,3}[、.．]|[(（][一二三四五六七八九十]{1,3}[)）]|[A-Za-z][)）])"
)
_LABEL = re.compile(
    rf"[ \t\u3000]*(?:[【〔\[][^】〕\]\n]{{1,30}}[】〕\]]"  # 【现病史】
    rf"|[{CJK}A-Za-z0-9()（）/、\- ]{{0,15}}[{CJK})）][ ]?[:：]"  # 主诉：
    r"|[A-Z][A-Za-z0-9()/&,'-]*(?: [A-Za-z0-9()/&,'-]+){0,5} ?[:：](?!\S)"  # Past medical history:
    r"|#{1,6} )"
)
_CAPITALS = re.compile(r"[A-Z][A-Z0-9 /&()',-]{2,60}")  # FINAL DIAGNOSIS
_COLUMNS = re.compile(r"\S[ ]*\t\s*\S|\|[^|]*\||\S \| \S|[^\s.!?:;,。：；，]\s{3,}\S.*?\S\s{2,}\S")
_MAYBE_COLUMNS = re.compile(r"[\t|]|\s{3}")  # without one of these there are none, which is told sooner
_ENDED = re.compile(r"[.!?:;。！？：；…][\"'”’」』）)\]】]*$")
_WRAPPED = 55  # columns, a Chinese character taking two; a shorter line was ended by its writer, not by a margin


def _blocks(text: str, start: int, end: int) -> Iterator[Span]:
    """The sections, list items, table rows and prose of a paragraph, each a run of whole lines."""
    opened = start
    before = ""  # the line before
    heading = False  # the block so far is a heading alone
    row = False
    for s, e in _lines(text, start, end):
        line = text[s:e]
        wrapped = not row and _is_wrapped(before) and not _ENDED.search(before[-8:])
        is_row = _MAYBE_COLUMNS.search(line) is not None and _COLUMNS.search(line, 0, 1000) is not None
        capitals = _CAPITALS.fullmatch(line.strip()) is not None
        structured = capitals or _ITEM.match(line) is not None or _LABEL.match(line) is not None
        starts = row or is_row or (structured and not wrapped)
        if starts and s > opened and not heading:
            yield opened, s
            opened = s
        heading = (capitals or line.rstrip().endswith((":", "：", "】"))) and (s == opened or heading)
        before, row = line.rstrip(), is_row
    yield opened, end


def _is_wrapped(line: str) -> bool:
    tail = line[-_WRAPPED:]
    return len(tail) + len(_IS_CJK.findall(tail)) >= _WRAPPED


def _lines(text: str, start: int, end: int) -> Iterator[Span]:
    for found in _BREAK.finditer(text, start, end):
        yield start, found.start()
        start = found.end()
    yield start, end


# Sentences

_CLOSERS = "\"'”’」』】）》〉)\\]］｝}"
_END = re.compile(rf"[.!?;。！？；｡．…]+[{_CLOSERS}]*(?:\[[\d,\s–-]{{1,20}}\])?")
_WIDE = frozenset("。！？；｡")
_WORD = re.compile(r"[^\s(\[{（【“\"'/]*$")
_STARTER = re.compile(  # words that begin a sentence rather than follow an initial or a type: `vitamin D. The ...`
    r"(?:The|This|These|Those|That|There|A|An|It|Its|We|Our|He|His|She|Her|They|Their|In|On|At|By|For|From|To|With|As"
    r"|If|When|While|Although|However|Moreover|Furthermore|Thus|Therefore|Here|Both|All|No|Patients?|Results?|After"
    r"|Since|But|And)\b"
)
_ABBREVIATIONS = frozenset((
    "e.g", "i.e", "eg", "ie", "cf", "vs", "viz", "al", "dr", "drs", "mr", "mrs", "ms", "prof", "st", "messrs", "fig",
    "figs", "tab", "eq", "eqs", "ref", "refs", "sect", "chap", "vol", "pp", "eds", "approx", "ca", "resp", "sp",
    "spp", "ssp", "subsp", "var", "cv", "nov", "u.s", "u.k", "dept", "univ", "inc", "ltd", "co", "corp", "suppl",
    "incl", "excl", "jan", "feb", "apr", "aug", "sept", "oct",
))  # fmt: skip
_NUMBERED = frozenset(("no", "nos", "nr"))  # abbreviations before a number only


def _sentences(text: str, start: int, end: int, lang: Lang) -> Iterator[Span]:
    opened = start
    for mark in _END.finditer(text, start, end):
        if _ends(text, opened, mark, end, lang):
            yield opened, mark.end()
            opened = mark.end()
    if opened < end:
        yield opened, end


def _ends(text: str, opened: int, mark: re.Match[str], end: int, lang: Lang) -> bool:
    """Whether a punctuation mark ends the sentence that begins at ``opened``."""
    at, after = mark.span()
    if after == end:
        return True
    marks = mark[0]
    if not _WIDE.isdisjoint(marks):
        return True
    before, following = text[at - 1 : at], text[after]
    if marks[0] == ";":
        return lang == "zh" and _IS_CJK.match(before) is not None
    if not following.isspace():
        # `好转.出院`: a half-width mark in Chinese; `3.5`, `E.coli`, `示例……等`: none.
        both = _IS_CJK.match(before) is not None and _IS_CJK.match(following) is not None
        return both and marks[0] in ".!?．"
    rest = text[after : after + 64].lstrip()
    first = rest[:1]
    if first.islower() and not re.match(r"[a-z]{1,3}(?:\d|[A-Z])", rest):  # `p53 ...`, `mRNA ...` do start sentences
        return False
    if marks[0] != "." or marks.startswith(".."):
        return True
    word = _WORD.search(text[max(opened, at - 24) : at])
    return not _abbreviates(word[0] if word else "", rest, text[opened:at] if at - opened < 12 else "")


def _abbreviates(word: str, rest: str, sentence: str) -> bool:
    """Whether the full stop after a word belongs to it. ``sentence``: everything before the stop, if that is short."""
    lower = word.lower()
    if lower in _ABBREVIATIONS:
        return True
    if lower in _NUMBERED:
        return rest[:1].isdigit()
    if sentence.strip() == word and re.fullmatch(r"\d{1,3}|[A-Za-z]|[IVX]{1,4}", word):
        return True  # `2. Aspirin`: the number of an item
    if re.fullmatch(r"(?:[A-Za-z]\.)*-?[A-Za-z]", word):  # `J. Smith`, `E. coli`, `b.i.d.`
        return not _STARTER.match(rest) if len(word) == 1 else not rest[:1].isupper()
    return False


# Sentences that are too long

_CLAUSE = frozenset("，、；：。！？,;:.!?")
_WIDE_CLAUSE = frozenset("，、；：。！？")
_BEST = 5
_JOINERS = frozenset("\u200d\u2060")
_VISIBLE = re.compile(r"\S")


def _cut(text: str, start: int, end: int, max_units: int) -> Iterator[tuple[int, int, int]]:
    """A sentence without surrounding white space, in pieces of at most ``max_units``: start, end and cost of each."""
    while True:
        start, end = _trim(text, start, end)
        if start >= end:
            return
        # Most fit, and to count is several times as fast as to look at each unit. What is longer than this never fits:
        # a unit takes at most sixteen characters and a space that costs nothing.
        if end - start <= 17 * max_units and (cost := units(text[start:end])) <= max_units:
            yield start, end, cost
            return
        ends, costs, used = [], [], 0
        for unit in _UNIT.finditer(text, start, end):
            used += 4 if ord(unit[0][0]) > 0xFFFF else 1
            if used > max_units:
                break
            ends.append(unit.end())
            costs.append(used)
        # A cut in the first quarter would leave crumbs, and make the time quadratic.
        cut, best = ends[-1], -1
        for at, cost in zip(reversed(ends), reversed(costs), strict=True):
            if 4 * cost < max_units or best == _BEST:
                break
            if (quality := _quality(text, at)) > best:
                cut, best = at, quality
        s, e = _trim(text, start, cut)
        yield s, e, units(text[s:e])
        start = cut


def _trim(text: str, start: int, end: int) -> Span:
    found = _VISIBLE.search(text, start, end)
    if found is None:
        return end, end
    while text[end - 1].isspace():
        end -= 1
    return found.start(), end


def _quality(text: str, at: int) -> int:
    """How good it is to cut before ``text[at]``: from 0, inside what is seen as one character, to _BEST."""
    left, right = text[at - 1], text[at]
    if right in _BREAKS or left in _BREAKS:
        line = _BREAK.split(text[max(0, at - _WRAPPED - 2) : at].rstrip())[-1]
        return 3 if _is_wrapped(line) else _BEST
    if left in _CLAUSE and (left in _WIDE_CLAUSE or right.isspace() or _IS_CJK.match(right)):
        return 4
    if left.isspace() or right.isspace():
        return 3
    if left in _JOINERS or right in _JOINERS or unicodedata.category(right)[0] == "M" or "🏻" <= right <= "🏿":
        return 0
    if _IS_CJK.match(left) or _IS_CJK.match(right):
        return 2
    letters = left.isalpha() and right.isalpha()
    number = (left.isdigit() or left in ".,") and (right.isdigit() or right in ".,")
    return 1 if letters or number or left == "-" or right == "-" else 2

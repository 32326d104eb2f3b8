"""Segmentation: a document's text to the stretches that are tagged at once, as offsets, nothing lost or moved.

A blank line ends a paragraph, except in double-spaced prose. Lines of a paragraph that start a headed section
(``主诉：``, ``ALLERGIES:``), a list item or a table row start a block; other lines are wrapped prose. Blocks hold
sentences. A segment takes whole sentences of one paragraph while they fit; a block that does not fit beside what came
before starts a segment of its own. A sentence longer than a segment is cut where a mention is least likely to be cut:
at the end of a line or of a sentence without a space (``.``, ``<br>``, ``|``, an escaped line end), a clause or list
item, beside a word that stands in no mention, at a space, between tokens, anywhere.
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
    blanks = [(blank, lines) for blank in _BLANK.finditer(text) if (lines := len(_BREAK.findall(blank[0]))) > 1]
    # Double-spaced prose has an empty line behind each line, and goes on behind many in the middle of a sentence.
    inside = sum(text[blank.end() : blank.end() + 1].islower() for blank, lines in blanks if lines == 2)
    spacing = 2 if 4 * inside > len(blanks) else 1
    for blank, lines in blanks:
        if lines > spacing:
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
    return _columns(line[-_WRAPPED:]) >= _WRAPPED


def _columns(line: str) -> int:
    return len(line) + len(_IS_CJK.findall(line))


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

# How good a place for a cut is, from inside what is seen as one character to where a line was ended by its writer.
_NEVER, _WORD_INSIDE, _SYMBOL, _SPACE, _MARGIN, _APART, _LIST, _CLAUSE, _SENTENCE, _BEST = range(10)

_CLAUSE_MARKS = frozenset("，、；：。！？,;:.!?")
_WIDE_CLAUSE = frozenset("，；：。！？")
_SEPARATORS = frozenset("/~#=_—–-*+|¦‖•●○■□◆◇▪►※·…")
_COLUMN = frozenset("\t\u3000")
_NUMBER = re.compile(r"[(（]\d{1,2}[)）]|[①-⑳⒈-⒛]")
_BULLETS = frozenset("•●○■□◆◇▪►※")
_MARKUP = re.compile(  # also as text: `\\n` where a line end was escaped twice
    r"</?(?:br|p|div|li|ul|ol|tr|td|th|table|hr|h[1-6])\b[^<>]{0,60}>|&lt;/?(?:br|p|div|li)\b|\\(?:r\\n|[nrt])",
    re.IGNORECASE,
)
_WRITTEN = re.compile(rf"(?:[{LATIN}]{{3,}}|\d|[)\]%\"'”’]|[{CJK}])$")  # what a word before an end of sentence ends in
_LAST_WORD = re.compile(rf"[{LATIN}]+$")
_FIRST_WORD = re.compile(rf"[{LATIN}]+(?![{LATIN}\d-])")
# Words that hardly ever stand within a mention: counted over GENIA, BC5CDR, BioNLP13CG, CMeEE-V2 and CCKS 2017.
_OUTSIDE = frozenset((
    "that", "which", "who", "whom", "whose", "it", "we", "he", "him", "she", "they", "is", "are", "was", "were",
    "be", "been", "being", "am", "has", "have", "had", "having", "do", "does", "did", "can", "could", "may",
    "might", "will", "would", "shall", "should", "must", "but", "because", "although", "though", "however",
    "therefore", "thus", "also", "then", "than", "when", "while", "where", "if", "since", "until", "during",
    "after", "before", "between", "within", "without", "into", "through", "not", "no", "such", "only", "using",
    "showed", "shows", "shown", "found", "denies", "denied", "reports", "reported", "complains", "complained",
    "presents", "presented", "revealed", "received", "underwent", "developed", "admitted", "remained", "continued",
    "started", "stopped", "confirmed", "confirms",
))  # fmt: skip
_DETERMINERS = frozenset(
    ["a", "an", "the", "this", "these", "those", "its", "our", "his", "her", "their", "my", "both"]
)
_PREPOSITIONS = frozenset(["of", "in", "on", "to", "with", "for", "from", "by", "at", "and", "or"])
_OUTSIDE_ZH = re.compile(
    "患者|患儿|病人|医师|医院|本品|查体|未见|未触|未闻|未及|给予|予以|由于|因此|所致|包括|使用|服用|用于|入院|就诊|咨询|此|这|请"
)
_FIRST = re.compile(rf"[{CJK}]|[^\s{CJK}]+")
_LINE = 200  # characters that are looked at of a line
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
    """How good it is to cut before ``text[at]``: from _NEVER to _BEST."""
    left, right = text[at - 1], text[at]
    if left in _JOINERS or right in _JOINERS or unicodedata.category(right)[0] == "M" or "🏻" <= right <= "🏿":
        return _NEVER
    if right in _BREAKS or left in _BREAKS:
        return _between_lines(text, at)
    if _beside_markup(text, at, left, right):
        return _SENTENCE
    if left in _CLAUSE_MARKS or left in _SEPARATORS:
        quality = _after_mark(text, at, left, right)
        if quality > _SPACE:
            return quality
    if right in _BULLETS or ((right in "(（" or "①" <= right <= "⒛") and _NUMBER.match(text, at)):
        return _LIST
    if left.isspace() or right.isspace():
        columns = not _COLUMN.isdisjoint(left + right) or text[max(0, at - 2) : at].isspace()
        return _LIST if columns else _between_words(text, at)
    if _IS_CJK.match(left) or _IS_CJK.match(right):
        return _APART if _OUTSIDE_ZH.match(text, at) or _OUTSIDE_ZH.match(text, at - 2, at) else _SYMBOL
    letters = left.isalpha() and right.isalpha()
    number = (left.isdigit() or left in ".,") and (right.isdigit() or right in ".,")
    return _WORD_INSIDE if letters or number or left == "-" or right == "-" else _SYMBOL


def _between_lines(text: str, at: int) -> int:
    """At a line break: _BEST where the writer ended the line, else what a margin may have parted."""
    above, line = _last_lines(text[max(0, at - _LINE) : at].rstrip())
    after = text[at : at + _LINE].lstrip()
    after = after[: min((end for mark in _BREAKS if (end := after.find(mark)) >= 0), default=None)]
    word = _FIRST.match(after)
    # The margin is no reason for a break where the next word would have stood within it.
    fits = _columns(line) + 1 + _columns(word[0] if word else "") <= max(_columns(after), _columns(above))
    if fits:
        return _BEST
    return _CLAUSE if line[-1:] in _CLAUSE_MARKS else max(_MARGIN, _between_words(text, at))


def _last_lines(text: str) -> tuple[str, str]:
    """The last line but one, empty where there is none, and the last one."""
    begin = max(map(text.rfind, _BREAKS)) + 1
    before = text[:begin].rstrip(_BREAKS)
    return before[max(map(before.rfind, _BREAKS)) + 1 :], text[begin:]


def _beside_markup(text: str, at: int, left: str, right: str) -> bool:
    if right in "<&\\" and _MARKUP.match(text, at):
        return True
    if left not in ">;":
        return False
    opened = max(text.rfind("<", max(0, at - 70), at), text.rfind("&", max(0, at - 10), at))
    found = _MARKUP.match(text, opened) if opened >= 0 else None
    return found is not None and found.end() in (at, at - 4)  # `&gt;` behind an escaped one


def _after_mark(text: str, at: int, left: str, right: str) -> int:
    """Behind a mark of a clause or what lists are joined with."""
    if left in _WIDE_CLAUSE:
        return _CLAUSE
    if left == "、" or left in _BULLETS:
        return _LIST
    if left in "|¦‖…":
        return _SENTENCE
    marks = at - 1
    while marks > max(0, at - 8) and text[marks - 1] == left:
        marks -= 1
    if left in _CLAUSE_MARKS:
        if at - marks > 1:
            return _SENTENCE
        if right.isspace() or _IS_CJK.match(right):
            return _CLAUSE
        if left == ";" and not re.search(r"&#?\w{1,8};$", text[max(0, at - 10) : at]):
            return _CLAUSE
    elif at - marks > 1 or (right.isspace() and text[at - 2 : at - 1].isspace()):
        return _LIST  # `--`, `//`, ` - `
    # `for a week.Acute pancreatitis`, and not `E.coli` or `3.5`.
    before = text[max(0, marks - 24) : marks]
    if _WRITTEN.search(before) is None or not (right.isalpha() or right in "(\"'“‘["):
        return _SYMBOL
    word = _LAST_WORD.search(before)
    if left == "." and word is not None and word[0].lower() in _ABBREVIATIONS:
        return _SYMBOL
    if left in ".!?":
        return _LIST if right.islower() else _SENTENCE
    if left in ",:":
        return _LIST if word is not None else _SYMBOL
    if left in "-+":
        return _SYMBOL
    return _LIST if _IS_CJK.match(right) or (right.isupper() and word is not None and word[0].islower()) else _SYMBOL


def _between_words(text: str, at: int) -> int:
    before, after = text[max(0, at - 24) : at].rstrip(), text[at : at + 24].lstrip()
    first, last = _FIRST_WORD.match(after), _LAST_WORD.search(before)
    right = first[0].lower() if first is not None else ""
    left = last[0].lower() if last is not None and before[: last.start()][-1:].isspace() else ""
    # `fracture of the femur`: an article begins a mention's last part only behind a preposition.
    if right in _OUTSIDE or left in _OUTSIDE or (right in _DETERMINERS and left not in _PREPOSITIONS):
        return _APART
    return _SPACE

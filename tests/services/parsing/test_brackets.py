"""Any string in, exact offsets and a count of repairs out."""

import math
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.parsing.brackets import parse, parse_lines
from shared.entity_types import get
from shared.messages import LANGS, Alternative, Segment, TaggedLine
from shared.text import tagging

START = 100
NOTE = "Activation of the CD28 surface receptor provides a signal."
MARKED = "Activation of the [[CD28] surface receptor] provides a signal."
LABELLED = "Activation of the [[CD28 | Protein] surface receptor | DNA] provides a signal."
TYPES = ("protein", "dna", "cell_line")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# What trips a parser up, far more often than chance would have it.
awkward = st.text(st.sampled_from("[]|\\ \n\r\t-:：abAB１１1βßé右肺腺癌ＣＴ😀\u0301\u200b"), max_size=60)


def tagged_line(text, tagged, *, types=("protein",), presence=0.9, brackets=None, alternatives=(), index=0):
    segment = Segment(
        document_id="d",
        index=index,
        start=START,
        end=START + len(text),
        text=text,
        lang="en" if text.isascii() else "zh",
    )
    return TaggedLine(
        segment=segment, types=types, tagged=tagged, presence=presence, brackets=brackets, alternatives=alternatives
    )


def found(text, tagged, **more):
    """The texts of the candidates, and the repairs."""
    parsed = parse(tagged_line(text, tagged, **more))
    assert faults(text, parsed) == []
    return [candidate.text for candidate in parsed.candidates], parsed.repairs


def faults(text, parsed):
    """What no result of the parser may have, whatever came in."""
    spans = [(candidate.start, candidate.end, candidate.type) for candidate in parsed.candidates]
    wrong = {
        "offsets": any(c.text != text[c.start - START : c.end - START] for c in parsed.candidates),
        "white space": any(c.text.strip() != c.text or not c.text for c in parsed.candidates),
        "repeated": len(set(spans)) < len(spans),
        "empty repairs": any(count <= 0 for count in parsed.repairs.values()),
    }
    return [name for name, is_so in wrong.items() if is_so]


@st.composite
def annotated(draw):
    """A text, mentions in it that neither begin nor end in white space, and the row or rows that say them."""
    text = draw(st.one_of(texts, awkward))
    offsets = st.integers(0, len(text))
    drawn = draw(st.lists(st.tuples(offsets, offsets, st.sampled_from(TYPES)), max_size=8))
    mentions = sorted({(a, b, key) for a, b, key in drawn if a < b and text[a:b] == text[a:b].strip()})
    lang = draw(st.sampled_from(LANGS))
    return text, mentions, tagging.encode(text, [(a, b, get(key).name(lang)) for a, b, key in mentions])


@st.composite
def distorted(draw):
    """A text and what a free-running model could make of its line: a few edits anywhere."""
    text, _, rows = draw(annotated())
    said = list(draw(st.sampled_from(["", " ", "Protein: ", "Protein, DNA:\n", "Foo：", "- "])) + "\n".join(rows))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(said)))
        match draw(st.sampled_from(["drop", "add", "label", "case", "width", "cut"])):
            case "drop":
                del said[at : at + draw(st.integers(1, 5))]
            case "add":
                said[at:at] = draw(awkward)
            case "label":
                said[at:at] = draw(st.sampled_from([" | Protein]", "| dna ]", " | Disease]", " | x]", " |]", "[", "]"]))
            case "case":
                said[at : at + 1] = [char.swapcase() for char in said[at : at + 1]]
            case "width":
                said[at : at + 1] = [unicodedata.normalize("NFKC", char) for char in said[at : at + 1]]
            case "cut":
                del said[at:]
    return text, "".join(said)


@given(st.one_of(texts, awkward), st.one_of(texts, awkward), st.sampled_from([(), ("protein",), TYPES, ("molecule",)]))
@example("", "[]", ("protein",))
@example("-", "[-]", ("protein",))
@example("a", "\u200b[]", ("protein",))
@example("ﬁn", "[fi]n", ("protein",))
@example("[1]", "[[1]]", ("protein",))
@example("[1]", "[1 | DNA]", TYPES)
def test_any_string_gives_exact_offsets(text, tagged, types):
    assert faults(text, parse(tagged_line(text, tagged, types=types))) == []


@given(distorted(), st.sampled_from([("protein",), TYPES]))
def test_a_distorted_line_gives_exact_offsets(pair, types):
    text, tagged = pair
    assert faults(text, parse(tagged_line(text, tagged, types=types))) == []


def mentions_of(parsed):
    return sorted((c.start - START, c.end - START, c.type) for c in parsed.candidates)


@given(annotated())
def test_what_the_codec_wrote_comes_back(case):
    text, mentions, rows = case
    parsed = parse(tagged_line(text, "\n".join(rows), types=TYPES))
    assert faults(text, parsed) == []
    assert mentions_of(parsed) == mentions
    assert parsed.repairs == {}


@given(annotated())
def test_rows_of_their_own_say_the_same(case):
    text, mentions, rows = case
    parsed = parse_lines([tagged_line(text, row, types=TYPES) for row in rows])
    assert mentions_of(parsed) == mentions
    assert parsed.repairs == {}


@given(annotated())
def test_one_type_needs_no_label(case):
    text, mentions, _ = case
    rows = [
        re.sub(r" \| Protein\]", "]", row) for row in tagging.encode(text, [(a, b, "Protein") for a, b, _ in mentions])
    ]
    parsed = parse(tagged_line(text, "\n".join(rows)))
    assert mentions_of(parsed) == sorted({(a, b, "protein") for a, b, _ in mentions})
    assert parsed.repairs == {}


def test_confidence_is_presence_times_both_brackets():
    parsed = parse(tagged_line(NOTE, MARKED, brackets=(-0.1, -0.2, -0.3, -0.4)))
    outer, inner = parsed.candidates
    assert (outer.text, inner.text) == ("CD28 surface receptor", "CD28")
    assert outer.generator_confidence == pytest.approx(0.9 * math.exp(-0.1 - 0.4))
    assert inner.generator_confidence == pytest.approx(0.9 * math.exp(-0.2 - 0.3))
    assert outer.greedy
    assert inner.greedy
    assert parsed.repairs == {}


@pytest.mark.parametrize(("brackets", "repairs"), [(None, {}), ((-1.0,), {"logprobs-mismatch": 1})])
def test_presence_alone_where_log_probabilities_are_unknown(brackets, repairs):
    parsed = parse(tagged_line(NOTE, MARKED, brackets=brackets))
    assert {c.generator_confidence for c in parsed.candidates} == {0.9}
    assert parsed.repairs == repairs


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 700.0])
def test_odd_log_probabilities_stay_probabilities(odd):
    parsed = parse(tagged_line(NOTE, MARKED, brackets=(odd,) * 4))
    assert all(0.0 <= c.generator_confidence <= 1.0 for c in parsed.candidates)


def test_alternatives_are_candidates_without_presence():
    alternatives = (
        Alternative(start=18, end=22, type="protein", logprob=-0.5),  # CD28, which the line has
        Alternative(start=17, end=39, type="protein", logprob=-1.0),  # with the space before it
        Alternative(start=23, end=39, type="protein", logprob=-2.0),
        Alternative(start=50, end=90, type="protein", logprob=-0.1),
        Alternative(start=17, end=18, type="protein", logprob=-0.1),
    )
    parsed = parse(tagged_line(NOTE, NOTE.replace("CD28", "[CD28]"), alternatives=alternatives, presence=0.5))
    assert faults(NOTE, parsed) == []
    assert [(c.text, c.greedy, c.generator_confidence) for c in parsed.candidates] == [
        ("CD28 surface receptor", False, pytest.approx(math.exp(-1.0))),
        ("CD28", True, 0.5),
        ("surface receptor", False, pytest.approx(math.exp(-2.0))),
    ]
    assert parsed.repairs == {
        "alternative-out-of-range": 1,
        "duplicate": 1,
        "empty-brackets": 1,
        "whitespace-trimmed": 1,
    }


def test_of_duplicates_the_more_confident_stays():
    parsed = parse(tagged_line("CD28 up", "[[CD28]] up", presence=1.0, brackets=(-2.0, -0.1, -0.1, -2.0)))
    assert [c.generator_confidence for c in parsed.candidates] == [pytest.approx(math.exp(-0.2))]
    assert parsed.repairs == {"duplicate": 1}


def test_repairs_are_told_by_segment():
    good, bad = tagged_line("CD28 up", "[CD28] up"), tagged_line("CD28 up", "[[CD28]] [up")
    segments = [line.segment.model_copy(update={"index": index}) for index, line in enumerate((bad, good, bad))]
    lines = [line.model_copy(update={"segment": s}) for line, s in zip((bad, good, bad), segments, strict=True)]
    parsed = parse_lines([*lines, lines[0].model_copy(update={"types": ("dna",)})])
    assert parsed.repaired == {0: 4, 2: 2}
    assert sum(parsed.repairs.values()) == 6


@pytest.mark.parametrize(
    ("text", "tagged", "spans", "repairs"),
    [
        # Brackets
        (NOTE, "", [], {}),
        (NOTE, NOTE, [], {}),
        (NOTE, NOTE.replace("CD28", "[CD28"), [], {"unbalanced-open": 1}),
        (NOTE, NOTE.replace("CD28", "CD28]"), [], {"unbalanced-close": 1}),
        (NOTE, NOTE.replace("CD28", "[[CD28]"), ["CD28"], {"unbalanced-open": 1}),
        (NOTE, NOTE.replace("CD28", "[]CD28"), [], {"empty-brackets": 1}),
        (NOTE, NOTE.replace(" CD28 ", "[ CD28 ]"), ["CD28"], {"whitespace-trimmed": 1}),
        (NOTE, NOTE.replace(" CD28 ", "[ ]CD28 "), [], {"empty-brackets": 1}),
        # Text the same but for its form
        (NOTE, "  " + MARKED.replace(" ", "  "), ["CD28 surface receptor", "CD28"], {"whitespace-changed": 1}),
        (NOTE, MARKED.upper(), ["CD28 surface receptor", "CD28"], {"characters-normalised": 1}),
        ("ＣＴ示右肺腺癌", "[CT]示[[右肺]腺癌]", ["ＣＴ", "右肺腺癌", "右肺"], {"characters-normalised": 1}),
        ("line one\r\nCD28 up\r\n", "line one\n[CD28] up\n", ["CD28"], {"whitespace-changed": 1}),
        # Text changed
        (NOTE, "Activation of [CD28] provides a signal.", ["CD28"], {"text-changed": 1}),
        (NOTE, "The " + MARKED, ["CD28 surface receptor", "CD28"], {"text-changed": 1}),
        (NOTE, "[CD28]; [surface receptor]", ["CD28", "surface receptor"], {"text-changed": 1}),
        (NOTE, NOTE.replace("CD28", "[IL-2]"), [], {"text-changed": 1, "unaligned": 1}),
        ("β-catenin receptors bind", "[beta-catenin receptor] bind", ["β-catenin receptors"], {"text-changed": 1}),
        ("acute myeloid leukemia seen", "[AML] seen", [], {"text-changed": 1, "unaligned": 1}),
        (NOTE, "Activation of the [CD28] surf", ["CD28"], {"truncated": 1}),
        (NOTE, "Activation of the [[CD28] surface", ["CD28"], {"truncated": 1, "unbalanced-open": 1}),
        ("leukaemia of a boy", "[leukemia] of a boy", ["leukaemia"], {"text-changed": 1}),
        # Headers, absence, further lines
        (NOTE, " -", [], {"absent-mark": 1}),
        (NOTE, "-\n" + MARKED, ["CD28 surface receptor", "CD28"], {"absent-mark": 1, "extra-lines": 1}),
        (NOTE, "Protein: " + MARKED, ["CD28 surface receptor", "CD28"], {"header": 1}),
        (NOTE, "蛋白质：" + MARKED, ["CD28 surface receptor", "CD28"], {"header": 1}),
        (NOTE, "Disease: " + MARKED, [], {"header": 1, "other-type": 2}),
        (NOTE, "Molecule: " + MARKED, [], {"header": 1, "unknown-type": 2}),
        ("Dose: aspirin 100 mg", "Dose: [aspirin] 100 mg", ["aspirin"], {}),
        ("Dose: aspirin 100 mg", "dose: [aspirin] 100 mg", ["aspirin"], {"characters-normalised": 1}),
        (
            NOTE,
            f"Protein: {MARKED}\nDisease: {NOTE.replace('signal', '[signal]')}",
            ["CD28 surface receptor", "CD28"],
            {"header": 2, "other-type": 1, "extra-lines": 1},
        ),
        # Literal brackets
        ("see [1] and CD28", r"see \[1\] and [CD28]", ["CD28"], {}),
        ("see [1] and CD28", r"see \[1\] or [CD28]", ["CD28"], {"text-changed": 1}),
        ("see [1] and CD28", "see [1] and [CD28]", ["CD28"], {"unescaped-bracket": 2}),
        ("see [1] and [CD28]", "see [1] and [[CD28]]", ["CD28"], {"unescaped-bracket": 4}),
        (r"C:\CD28 [sic]", r"C:\\[CD28] \[sic\]", ["CD28"], {}),
        ("see [1] and [CD28]", "see [1] and [[CD28 | Protein]]", ["CD28"], {"unescaped-bracket": 4}),
        ("x in [0, 1) [CD28]", "[x in [0, 1) | Protein] [CD28]", ["x in [0, 1)"], {"unescaped-bracket": 3}),
        ("see [1] and CD28", "see [1 | Protein] and CD28", ["1"], {"text-changed": 1}),
        # Literal bars
        ("CD28 | up | x", r"[CD28 | Protein] \| up \| x", ["CD28"], {}),
        ("CD28 | up | x", "[CD28 | Protein] | up | x", ["CD28"], {"unescaped-bar": 2}),
        ("CD28 | CD80 up", "[CD28 | CD80 | Protein] up", ["CD28 | CD80"], {"unescaped-bar": 1}),
        ("CD28 | CD80 up", "[CD28 | CD80] up", ["CD28 | CD80"], {"unescaped-bar": 1}),
        ("Symptom | Fever", "[Symptom | Fever]", ["Symptom | Fever"], {"unescaped-bar": 1}),
        ("Fever | Symptom", "[Fever | Symptom]", ["Fever | Symptom"], {"unescaped-bar": 1}),
        ("CD28 up", "[CD28] | up", ["CD28"], {"unescaped-bar": 1, "text-changed": 1}),
    ],
)  # fmt: skip
def test_repairs(text, tagged, spans, repairs):
    assert found(text, tagged) == (spans, repairs)


@pytest.mark.parametrize(
    ("tagged", "mentions", "repairs"),
    [
        (LABELLED, [("CD28 surface receptor", "dna"), ("CD28", "protein")], {}),
        (LABELLED.replace("DNA", "脱氧核糖核酸"), [("CD28 surface receptor", "dna"), ("CD28", "protein")], {}),
        (LABELLED.replace(" | DNA", "|ｄｎａ "), [("CD28 surface receptor", "dna"), ("CD28", "protein")], {}),
        (LABELLED.replace("DNA", "cell-line"), [("CD28 surface receptor", "cell_line"), ("CD28", "protein")], {}),
        (LABELLED.replace("DNA", "Disease"), [("CD28", "protein")], {"other-type": 1}),
        (LABELLED.replace("DNA", "Molecule"), [("CD28", "protein")], {"unknown-type": 1}),
        (LABELLED.replace(" | DNA", ""), [("CD28", "protein")], {"no-type": 1}),
        (LABELLED.replace("DNA", ""), [("CD28", "protein")], {"no-type": 1}),
        (LABELLED.replace("| DNA]", "DNA"), [("CD28", "protein")], {"text-changed": 1, "unbalanced-open": 1}),
        (NOTE.replace("CD28", "[[CD28 | DNA] | Protein]"), [("CD28", "dna"), ("CD28", "protein")], {}),
        (NOTE.replace("CD28", "[[CD28 | DNA] | dna]"), [("CD28", "dna")], {"duplicate": 1}),
        (MARKED, [], {"no-type": 2}),
        ("Protein: " + MARKED, [("CD28 surface receptor", "protein"), ("CD28", "protein")], {"header": 1}),
        ("Protein: " + LABELLED, [("CD28 surface receptor", "dna"), ("CD28", "protein")], {"header": 1}),
        ("Protein, DNA, Cell line:\n" + LABELLED, [("CD28 surface receptor", "dna"), ("CD28", "protein")],
         {"header": 1, "extra-lines": 1}),
        (LABELLED.upper(), [("CD28 surface receptor", "dna"), ("CD28", "protein")], {"characters-normalised": 1}),
        (LABELLED.replace(" | ", "  |"), [("CD28 surface receptor", "dna"), ("CD28", "protein")],
         {"whitespace-changed": 1}),
    ],
)  # fmt: skip
def test_labels(tagged, mentions, repairs):
    parsed = parse(tagged_line(NOTE, tagged, types=TYPES))
    assert faults(NOTE, parsed) == []
    assert [(c.text, c.type) for c in parsed.candidates] == mentions
    assert parsed.repairs == repairs


def test_crossing_mentions_have_probabilities_of_their_own():
    text = "右肺腺癌"
    line = tagged_line(text, "[右肺腺 | Protein]癌\n右[肺腺癌 | DNA]", types=TYPES, brackets=(-1.0, -2.0, -3.0, -4.0))
    parsed = parse(line)
    assert {c.text: c.generator_confidence for c in parsed.candidates} == {
        "右肺腺": pytest.approx(0.9 * math.exp(-3.0)),
        "肺腺癌": pytest.approx(0.9 * math.exp(-7.0)),
    }
    assert parsed.repairs == {}


def test_an_unknown_type_yields_nothing():
    alternatives = (Alternative(start=23, end=39, type="molecule", logprob=-2.0),)
    assert found(NOTE, MARKED, types=("molecule",), alternatives=alternatives) == ([], {"unknown-type": 3})


def test_an_alternative_of_a_type_that_was_not_asked_for_is_left_out():
    alternatives = (Alternative(start=23, end=39, type="dna", logprob=-2.0),)
    assert found(NOTE, NOTE, alternatives=alternatives) == ([], {"other-type": 1})


def test_a_repeated_mention_is_placed_where_it_was_said():
    text = "CD28 rose, then CD28 fell."
    parsed = parse(tagged_line(text, "CD28 rose then [CD28] fell."))
    assert [c.start - START for c in parsed.candidates] == [16]


def test_lines_of_several_segments_and_types():
    lines = [
        tagged_line(NOTE, MARKED, index=0),
        tagged_line(NOTE, MARKED, index=1),
        tagged_line(NOTE, NOTE.replace("signal", "[signal | Disease]"), types=("disease", "protein")),
        tagged_line(NOTE, NOTE.replace("CD28 s", "CD28] [s").replace("CD28]", "[CD28]").replace("ptor", "ptor]")),
    ]
    parsed = parse_lines(lines)
    assert [(c.segment.index, c.type, c.text) for c in parsed.candidates] == [
        (0, "protein", "CD28 surface receptor"),
        (0, "protein", "CD28"),
        (0, "protein", "surface receptor"),
        (0, "disease", "signal"),
        (1, "protein", "CD28 surface receptor"),
        (1, "protein", "CD28"),
    ]
    assert parsed.repairs == {"duplicate": 1}


@pytest.mark.parametrize(
    "tagged",
    [
        "[" * 50_000,
        "]" * 50_000,
        "[" * 20_000 + "a" + "]" * 20_000,
        "[ab] " * 20_000,
        "\\" * 50_000,
        " " * 50_000 + ":",
        "\n" * 50_000 + "[a]",
        "ab" * 10_000 + "[ba]" * 1_000,
        "|" * 50_000,
        "[a | " * 20_000,
        " | Protein]" * 10_000,
        "[ab | DNA] " * 20_000,
        "".join(f"[a | {i}]" for i in range(20_000)),
        ("ab" * 5_000 + "x\n") * 50,
        "[[a | " * 20_000,
    ],
)
@pytest.mark.parametrize("text", ["a", "ab" * 5_000, " " * 10_000, "\n" * 10_000, "[|]" * 3_000])
def test_long_strings_end(text, tagged):
    spans, _ = found(text, tagged)
    assert all(spans)


def test_overlong_lines_are_cut_and_counted():
    spans, repairs = found("CD28", "[CD28]" + " and more" * 1_000)
    assert spans == ["CD28"]
    assert repairs["overlong"] == 1

"""Any string in, exact offsets and a repair report out."""

import math
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.parsing.brackets import parse, parse_lines
from shared.messages import Alternative, Segment, TaggedLine
from shared.text import tagging

START = 100
NOTE = "Activation of the CD28 surface receptor provides a signal."
MARKED = "Activation of the [[CD28] surface receptor] provides a signal."

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# What trips a parser up, far more often than chance would have it.
awkward = st.text(st.sampled_from("[]\\ \n\r\t-:：abAB１１1βßé右肺腺癌ＣＴ😀\u0301\u200b"), max_size=60)


def tagged_line(text, tagged, *, type_="protein", presence=0.9, brackets=None, alternatives=(), index=0):
    segment = Segment(
        document_id="d",
        index=index,
        start=START,
        end=START + len(text),
        text=text,
        lang="en" if text.isascii() else "zh",
    )
    return TaggedLine(
        segment=segment, type=type_, tagged=tagged, presence=presence, brackets=brackets, alternatives=alternatives
    )


def found(text, tagged, **more):
    """The texts of the candidates, and the repairs."""
    parsed = parse(tagged_line(text, tagged, **more))
    assert faults(text, parsed) == []
    return [candidate.text for candidate in parsed.candidates], parsed.repairs


def faults(text, parsed):
    """What no result of the parser may have, whatever came in."""
    spans = [(candidate.start, candidate.end) for candidate in parsed.candidates]
    wrong = {
        "offsets": any(c.text != text[c.start - START : c.end - START] for c in parsed.candidates),
        "white space": any(c.text.strip() != c.text or not c.text for c in parsed.candidates),
        "repeated": len(set(spans)) < len(spans),
        "empty repairs": any(count <= 0 for count in parsed.repairs.values()),
    }
    return [name for name, is_so in wrong.items() if is_so]


@st.composite
def annotated(draw):
    """A text and spans of it that neither begin nor end in white space."""
    text = draw(st.one_of(texts, awkward))
    spans = draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, len(text))), max_size=8))
    return text, sorted({(a, b) for a, b in spans if a < b and text[a:b] == text[a:b].strip()})


@st.composite
def distorted(draw):
    """A text and what a free-running model could make of its line: a few edits anywhere."""
    text, spans = draw(annotated())
    lines = tagging.encode(text, spans) or [""]
    said = list(draw(st.sampled_from(["", " ", "Protein: ", "Foo：", "- "])) + "\n".join(lines))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(said)))
        match draw(st.sampled_from(["drop", "add", "case", "width", "cut"])):
            case "drop":
                del said[at : at + draw(st.integers(1, 5))]
            case "add":
                said[at:at] = draw(awkward)
            case "case":
                said[at : at + 1] = [char.swapcase() for char in said[at : at + 1]]
            case "width":
                said[at : at + 1] = [unicodedata.normalize("NFKC", char) for char in said[at : at + 1]]
            case "cut":
                del said[at:]
    return text, "".join(said)


@given(st.one_of(texts, awkward), st.one_of(texts, awkward))
@example("", "[]")
@example("-", "[-]")
@example("a", "\u200b[]")
@example("ﬁn", "[fi]n")
@example("[1]", "[[1]]")
def test_any_string_gives_exact_offsets(text, tagged):
    assert faults(text, parse(tagged_line(text, tagged))) == []


@given(distorted())
def test_a_distorted_line_gives_exact_offsets(pair):
    text, tagged = pair
    assert faults(text, parse(tagged_line(text, tagged))) == []


@given(annotated())
def test_what_the_codec_wrote_comes_back(pair):
    text, spans = pair
    parsed = parse_lines([tagged_line(text, line) for line in tagging.encode(text, spans)])
    assert faults(text, parsed) == []
    assert sorted((c.start - START, c.end - START) for c in parsed.candidates) == spans
    assert parsed.repairs == {}


@given(annotated())
def test_lines_joined_are_read_as_copies(pair):
    text, spans = pair
    lines = tagging.encode(text, spans)
    if len(lines) > 1 and text == text.strip():
        parsed = parse(tagged_line(text, "\n".join(lines)))
        assert sorted((c.start - START, c.end - START) for c in parsed.candidates) == spans
        assert parsed.repairs == {"extra-lines": len(lines) - 1}


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
        Alternative(start=18, end=22, logprob=-0.5),  # CD28, which the line has
        Alternative(start=17, end=39, logprob=-1.0),  # with the space before it
        Alternative(start=23, end=39, logprob=-2.0),
        Alternative(start=50, end=90, logprob=-0.1),
        Alternative(start=17, end=18, logprob=-0.1),
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
    parsed = parse_lines([*lines, lines[0].model_copy(update={"type": "dna"})])
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
        # Labels, absence, further lines
        (NOTE, " -", [], {"absent-mark": 1}),
        (NOTE, "-\n" + MARKED, ["CD28 surface receptor", "CD28"], {"absent-mark": 1, "extra-lines": 1}),
        (NOTE, "Protein: " + MARKED, ["CD28 surface receptor", "CD28"], {"label": 1}),
        (NOTE, "蛋白质：" + MARKED, ["CD28 surface receptor", "CD28"], {"label": 1}),
        (NOTE, "Disease: " + MARKED, [], {"other-type": 1}),
        (NOTE, "Molecule: " + MARKED, [], {"unknown-type": 2}),
        ("Dose: aspirin 100 mg", "Dose: [aspirin] 100 mg", ["aspirin"], {}),
        ("Dose: aspirin 100 mg", "dose: [aspirin] 100 mg", ["aspirin"], {"characters-normalised": 1}),
        (
            NOTE,
            f"Protein: {MARKED}\nDisease: {NOTE.replace('signal', '[signal]')}",
            ["CD28 surface receptor", "CD28"],
            {"label": 1, "other-type": 1, "extra-lines": 1},
        ),
        # Literal brackets
        ("see [1] and CD28", r"see \[1\] and [CD28]", ["CD28"], {}),
        ("see [1] and CD28", r"see \[1\] or [CD28]", ["CD28"], {"text-changed": 1}),
        ("see [1] and CD28", "see [1] and [CD28]", ["CD28"], {"unescaped-bracket": 2}),
        ("see [1] and [CD28]", "see [1] and [[CD28]]", ["CD28"], {"unescaped-bracket": 4}),
        (r"C:\CD28 [sic]", r"C:\\[CD28] \[sic\]", ["CD28"], {}),
    ],
)  # fmt: skip
def test_repairs(text, tagged, spans, repairs):
    assert found(text, tagged) == (spans, repairs)


def test_an_unknown_type_yields_nothing():
    alternatives = (Alternative(start=23, end=39, logprob=-2.0),)
    assert found(NOTE, MARKED, type_="molecule", alternatives=alternatives) == ([], {"unknown-type": 3})


def test_a_repeated_mention_is_placed_where_it_was_said():
    text = "CD28 rose, then CD28 fell."
    parsed = parse(tagged_line(text, "CD28 rose then [CD28] fell."))
    assert [c.start - START for c in parsed.candidates] == [16]


def test_lines_of_several_segments_and_types():
    lines = [
        tagged_line(NOTE, MARKED, index=0),
        tagged_line(NOTE, MARKED, index=1),
        tagged_line(NOTE, NOTE.replace("signal", "[signal]"), type_="disease"),
        tagged_line(NOTE, NOTE.replace("CD28 s", "CD28] [s").replace("CD28]", "[CD28]").replace("ptor", "ptor]")),
    ]
    parsed = parse_lines(lines)
    assert [(c.segment.index, c.type, c.text) for c in parsed.candidates] == [
        (0, "protein", "CD28 surface receptor"),
        (0, "protein", "CD28"),
        (0, "protein", "surface receptor"),
        (1, "protein", "CD28 surface receptor"),
        (1, "protein", "CD28"),
        (0, "disease", "signal"),
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
    ],
)
@pytest.mark.parametrize("text", ["a", "ab" * 5_000, " " * 10_000, "\n" * 10_000])
def test_long_strings_end(text, tagged):
    spans, _ = found(text, tagged)
    assert all(spans)


def test_overlong_lines_are_cut_and_counted():
    spans, repairs = found("CD28", "[CD28]" + " and more" * 1_000)
    assert spans == ["CD28"]
    assert repairs["overlong"] == 1

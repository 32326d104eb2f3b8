from __future__ import annotations

import itertools
import re
import textwrap
import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from shared.text.segmentation import MIN_UNITS, segment, units

# Any Unicode text, and text dense in what the rules look at.
TEXTS = st.text(max_size=400) | st.lists(
    st.sampled_from(
        [
            *"aZé9肺癌。；，！.?!;:,()[]|\t\n\r-•\u3000\u2028 \u200d\u0301😀🏽",
            "\r\n",
            "\n\n",
            "    ",
            "e.g. ",
            "E. coli ",
            "1. ",
            "主诉：",
            "【查体】",
            "PLAN:",
            "FINDINGS\n",
            "| a | b |\n",
            "a\tb\n",
            "IL-2 ",
            "3.5",
            "receptor ",
            "患者",
            "”",
            "……",
        ]
    ),
    max_size=150,
).map("".join)


def texts(text: str, lang: str = "en", max_units: int = 160) -> list[str]:
    return [text[start:end] for start, end in segment(text, lang, max_units)]


@settings(max_examples=300)
@given(TEXTS, st.sampled_from(["en", "zh"]), st.integers(MIN_UNITS, 60))
@example("", "en", MIN_UNITS)
@example(" \r\n\t\u3000", "zh", MIN_UNITS)
@example("a" + " " * 5000 + "b", "en", 10)
@example("e" + "\u0301" * 100, "en", 10)
def test_nothing_is_lost_or_moved(text: str, lang: str, max_units: int) -> None:
    last = 0
    for start, end in segment(text, lang, max_units):
        assert last <= start < end <= len(text)
        assert not text[last:start].strip()
        assert text[start:end] == text[start:end].strip()
        assert units(text[start:end]) <= max_units
        last = end
    assert not text[last:].strip()


@given(TEXTS, TEXTS)
def test_units_of_a_whole_are_at_most_those_of_its_visible_parts(left: str, right: str) -> None:
    left, right = left.strip(), right.strip()
    assert units(left + right) <= units(left) + units(right)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("cell", 1),
        ("cells", 2),
        ("IL-2", 3),
        ("3.5", 3),
        ("肺癌", 2),
        ("a b", 2),
        ("a\nb", 3),
        ("a\r\nb", 4),
        ("a\tb", 3),
        ("𠮷", 4),
        ("naïve", 2),
        (" " * 32, 2),
    ],
)
def test_units(text: str, expected: int) -> None:
    assert units(text) == expected


def test_max_units_below_one_character_is_refused() -> None:
    with pytest.raises(ValueError, match="max_units"):
        segment("text", "en", MIN_UNITS - 1)


# With a budget that holds any one sentence but no two of them, segments are sentences.
@pytest.mark.parametrize(
    "sentences",
    [
        ["Dr. Okafor et al. grew E. coli overnight in broth.", "The yield was 3.5 g, i.e. twice that of Fig. 2."],
        ["The patient was given vitamin D daily for weeks.", "She improved and was discharged by J. Brandt, M.D."],
        ["We studied p. falciparum vs. P. vivax in mice.", "p53 was not involved in either of these infections!"],
        ["Was the lesion visible on the first scan at all?", "(It was not, though the second scan showed it.)"],
        ["The wound closed slowly over five weeks [12, 13].", "Healing was complete by day 40 in all animals."],
        ["It was unclear... the margins may be involved here.", "Aspirin 81 mg p.o. b.i.d. was then continued."],
        ["Aspirin was taken p.o. for eleven months in all.", "Patients in the U.S. Army cohort were excluded."],
    ],
)
def test_english_sentences(sentences: list[str]) -> None:
    budget = max(map(units, sentences))
    assert texts(" ".join(sentences), "en", budget) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["患者咳嗽三天，伴有发热。", "予以头孢治疗后好转！", "是否复查胸片？"],
        ["他自述“夜间疼痛明显。”", "查体：右下腹压痛（反跳痛阳性）；", "肠鸣音正常存在……"],
        ["血压维持在128/76mmHg左右;", "心率为每分钟82.5次左右。"],
        ["术后恢复良好，无渗液渗血.", "次日拔除引流管，准予出院."],
    ],
)
def test_chinese_sentences(sentences: list[str]) -> None:
    budget = max(map(units, sentences))
    assert texts("".join(sentences), "zh", budget) == sentences


def test_sentences_are_packed_greedily() -> None:
    text = "One two. Three four. Five six. Seven."
    assert texts(text, "en", units("One two. Three four.")) == ["One two. Three four.", "Five six. Seven."]


def test_a_newline_in_wrapped_prose_does_not_end_a_sentence() -> None:
    first = "The biopsy of the left upper lobe was taken under general\nanaesthesia."
    second = "It showed granulomas without any necrosis whatsoever\nin all of the sections."
    assert texts(f"{first} {second}", "en", max(units(first), units(second))) == [first, second]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_blank_line_ends_a_segment(newline: str) -> None:
    assert texts(f"First.{newline}{newline}Second.{newline} {newline}Third.") == ["First.", "Second.", "Third."]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_sections_of_a_record_stay_whole(newline: str) -> None:
    sections = ["主诉：头晕两天。", f"现病史：两天前出现头晕。{newline}无呕吐。", "既往史：高血压史。规律服药。"]
    assert texts(newline.join(sections), "zh", max(map(units, sections))) == sections


def test_a_heading_goes_with_what_follows() -> None:
    history = "HISTORY OF PRESENT ILLNESS\nA cough of two weeks. It is worse at night."
    plan = "Plan of care:\n1. Chest film.\n2. Sputum culture."
    assert texts(f"{history}\n{plan}", "en", max(units(history), units(plan))) == [history, plan]


@pytest.mark.parametrize("mark", ["{}. ", "{}) ", "({}) ", "{}、", "- ", "• ", "* "])
def test_list_items_stay_whole(mark: str) -> None:
    items = [mark.format(i) + "Metoprolol is taken daily. It is tolerated" for i in range(1, 4)]
    assert texts("\n".join(items), "en", max(map(units, items)) + 8) == items


@pytest.mark.parametrize(
    "rows",
    [
        ["Test\tValue\tUnit", "Sodium\t139\tmmol/l", "Calcium\t2.3\tmmol/l", "Urea\t5.1\tmmol/l"],
        ["| Test | Value |", "| Sodium | 139 |", "| Calcium | 2.3 |", "| Urea | 5.1 |"],
        [
            "Test      Value    Unit",
            "Sodium    139      mmol/l",
            "Calcium   2.3      mmol/l",
            "Urea      5.1      mmol/l",
        ],
    ],
)
def test_tables_are_packed_row_by_row(rows: list[str]) -> None:
    pairs = ["\n".join(rows[:2]), "\n".join(rows[2:])]
    assert texts("\n".join(rows), "en", max(map(units, pairs))) == pairs


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("咳嗽咳痰发热三天余，伴头痛", ["咳嗽咳痰发热三天余，", "伴头痛"]),
        ("fever, chills; 12 34 and a cough", ["fever, chills;", "12 34 and a cough"]),
        ("aspirin\nheparin\nwarfarin\ndigoxin", ["aspirin\nheparin\nwarfarin", "digoxin"]),
        ("headache nausea dizziness vomiting diarrhoea", ["headache nausea dizziness vomiting", "diarrhoea"]),
        ("咳嗽咳痰发热头痛胸闷气短", ["咳嗽咳痰发热头痛胸闷", "气短"]),
        ("a" * 48, ["a" * 40, "a" * 8]),
    ],
)
def test_what_is_too_long_is_cut_at_the_least_bad_place(text: str, cuts: list[str]) -> None:
    assert texts(text, "zh", 10) == cuts


@given(
    st.lists(st.sampled_from(["e\u0301", "👩🏽\u200d🔬", "❤\ufe0f", "肺", "ab"]), min_size=20, max_size=80),
    st.integers(24, 40),
)
def test_no_cut_inside_what_is_seen_as_one_character(parts: list[str], max_units: int) -> None:
    text = "".join(parts)
    for start, _ in segment(text, "zh", max_units):
        assert unicodedata.category(text[start])[0] != "M"
        assert text[start] not in "\u200d🏽🔬"


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["患者", "a", " ", ".", "a\n", "a  ", "1. ", "| ", "[1", "e\u0301", "No pause here, e.g. "]
)
def test_long_text_of_any_kind_is_segmented(part: str) -> None:
    text = part * (300_000 // len(part))
    spans = segment(text, "zh")
    assert sum(len(text[s:e].split()) for s, e in spans) >= len(text.split())


# Mentions of several words in brackets, at the beginning, in the middle and at the end of sentences.
SENTENCES = {
    "en": """
⟦Acute on chronic kidney injury⟧ was found after three days of vomiting at home
The ward team started ⟦intravenous piperacillin and tazobactam⟧ for ⟦hospital acquired pneumonia⟧
Chest film shows ⟦right lower lobe consolidation⟧ and a small ⟦left sided pleural effusion⟧
No history of ⟦type 2 diabetes mellitus⟧ or of ⟦ischaemic heart disease⟧ in the family
Biopsy of the breast lump confirmed ⟦HER2/neu positive ductal carcinoma in situ⟧
⟦Non-small cell lung cancer⟧ was diagnosed in spring and treated with ⟦cisplatin plus pemetrexed⟧
The patient denies ⟦shortness of breath on exertion⟧ and ⟦paroxysmal nocturnal dyspnoea⟧
Colonoscopy found a ⟦sessile polyp of the sigmoid colon⟧ that was removed
Discharged home in good condition with a follow up in six weeks
Serum ⟦alanine aminotransferase⟧ was 3.5 times the upper limit on day 2
The gait is broad based and there is a ⟦resting tremor of the right hand⟧
⟦Atrial fibrillation with rapid ventricular response⟧ resolved after ⟦electrical cardioversion⟧
    """,
    "zh": """
患者三天前因⟦急性阑尾炎⟧入院
既往有⟦2型糖尿病⟧病史十余年，服用⟦二甲双胍缓释片⟧
胸部CT示⟦右肺上叶占位性病变⟧伴⟦左侧胸腔积液⟧
否认⟦冠状动脉粥样硬化性心脏病⟧家族史
⟦慢性阻塞性肺疾病⟧急性加重一次
给予⟦低分子肝素⟧抗凝，复查⟦D-二聚体⟧下降
家属对治疗方案表示理解
血培养提示⟦耐甲氧西林金黄色葡萄球菌⟧
⟦C反应蛋白⟧升高，考虑⟦社区获得性肺炎⟧
    """,
}
BOUNDARIES = [
    *(". ", ".", "..", "...", ".. ", "!", "?", "; ", ";", ", ", ",", ": ", ":", "…", "。", "；", "，", "、"),
    *("\n", "\r\n", " \n", "\n ", ".\n", "\u2028", "\x0b", "\n\n", "\n \n"),
    *("\\n", "\\r\\n", "\\n\\n", ".\\n", "<br>", "<br/>", "<BR />", "</p><p>", '<li class="x">', "&lt;br&gt;"),
    *("|", " | ", "||", "\t", "   ", "\u3000", " - ", " -- ", "--", "—", " – ", "/", " / ", "//", "~", "#", "=", "*"),
    *("•", " • ", "·", "(1)", "① ", "_"),
]


def joined(sentences: list[str], boundaries: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of marked sentences with a boundary behind each, and its mentions."""
    text, mentions = "", []
    for sentence, boundary in zip(sentences, boundaries, strict=True):
        for part in re.split("(⟦.*?⟧)", sentence):
            if part.startswith("⟦"):
                mentions.append((len(text), len(text) + len(part) - 2))
            text += part.strip("⟦⟧")
        text += boundary
    return text, mentions


def cut(text: str, mentions: list[tuple[int, int]], lang: str) -> list[str]:
    spans = segment(text, lang)
    return [text[s:e] for s, e in mentions if not any(start <= s and e <= end for start, end in spans)]


@settings(max_examples=300)
@given(st.sampled_from(["en", "zh"]), st.data())
def test_no_mention_is_cut_whatever_stands_between_sentences(lang: str, data: st.DataObject) -> None:
    marked = st.sampled_from(SENTENCES[lang].strip().splitlines())
    sentences = data.draw(st.lists(marked, min_size=8, max_size=30))
    boundary = st.sampled_from(BOUNDARIES)
    one = data.draw(st.none() | boundary)
    boundaries = [one or data.draw(boundary) for _ in sentences]
    assert cut(*joined(sentences, boundaries), lang) == []


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(SENTENCES["en"].strip().splitlines()), min_size=8, max_size=30),
    st.sampled_from([" ", ". ", ".", "..", "; ", ", ", "<br> ", " - "]),
    st.integers(40, 110),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_no_mention_is_cut_in_wrapped_or_double_spaced_prose(
    sentences: list[str], boundary: str, margin: int, end: str
) -> None:
    text, mentions = joined(sentences, [boundary] * len(sentences))
    lines = textwrap.wrap(text, margin, break_long_words=False, break_on_hyphens=False)
    assert " ".join(lines) == text.strip()
    if end == "\n\n":  # lines that go on tell double-spaced prose from paragraphs
        assume(3 * sum(line[0].islower() for line in lines[1:]) > len(lines))
    breaks = list(itertools.accumulate(len(line) + 1 for line in lines[:-1]))  # each in place of one space
    moved = [tuple(at + sum(b <= at for b in breaks) * (len(end) - 1) for at in mention) for mention in mentions]
    assert cut(end.join(lines), moved, "en") == []


@pytest.mark.parametrize(
    ("text", "budget", "cuts"),
    [
        # What looks like the end of a sentence and is none.
        ("growth of E.coli or of St.Louis virus was seen", 10, ["growth of E.coli or of", "St.Louis virus was seen"]),
        ("fever.Lung abscess due to aspiration pneumonia", 12, ["fever.", "Lung abscess due to aspiration pneumonia"]),
        # The writer ended a line that the next word would have fitted; a margin parts lines anywhere.
        ("rash\nrenal stone\nand two simple renal cysts", 9, ["rash\nrenal stone", "and two simple renal cysts"]),
        (
            "she was told of chronic kidney\ndisease that had begun in May",
            13,
            ["she was told of chronic kidney\ndisease that had", "begun in May"],
        ),
        # An article begins what comes, but behind a preposition it may stand within a mention.
        ("stone of the left kidney as the urologist said", 10, ["stone of the left kidney as", "the urologist said"]),
    ],
)
def test_a_cut_is_where_no_mention_is_likely(text: str, budget: int, cuts: list[str]) -> None:
    assert texts(text, "en", budget) == cuts

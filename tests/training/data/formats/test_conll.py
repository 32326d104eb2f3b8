import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.annotated import LABELS, Converted
from training.data.corpora import CorpusError

TOKENS = st.text("abZ9.β患肺癌，𝒜#-\u0301", min_size=1, max_size=4)


def tags(count, mentions, scheme):
    """Tags of tokens; a mention is its first token, its last one and its label."""
    begin, inside, end, single = {
        "IOB1": "IIII", "IOB2": "BIIB", "BIOES": "BIES", "BMES": "BMES", "BILOU": "BILU",
    }[scheme]  # fmt: skip
    found = ["O"] * count
    before = None
    for first, last, label in mentions:
        letters = [single] if first == last else [begin, *inside * (last - first - 1), end]
        if scheme == "IOB1" and before == (first - 1, label):
            letters[0] = "B"
        found[first : last + 1] = [f"{letter}-{label}" for letter in letters]
        before = (last, label)
    return found


@st.composite
def sentence(draw):
    """Tokens, and mentions that do not overlap."""
    tokens = draw(st.lists(TOKENS, min_size=1, max_size=10))
    ends = sorted(draw(st.sets(st.integers(0, len(tokens) - 1))))
    mentions = []
    for before, last in itertools.pairwise([-1, *ends]):
        if draw(st.booleans()):
            mentions.append((draw(st.integers(before + 1, last)), last, draw(st.sampled_from(LABELS))))
    return tokens, mentions


@given(
    st.lists(sentence(), min_size=1, max_size=4),
    st.sampled_from(["IOB1", "IOB2", "BIOES", "BMES", "BILOU"]),
    st.sampled_from(["\t", " "]),
    st.sampled_from(["sentence", "docstart"]),
)
def test_round_trip(sentences, scheme, separator, documents):
    lines = ["-DOCSTART- X O", ""]
    for tokens, mentions in sentences:
        tagged = tags(len(tokens), mentions, scheme)
        lines += [f"{t}{separator}x{separator}{tag}" for t, tag in zip(tokens, tagged, strict=True)]
        lines.append("")
    found = Converted("conll", {"train.txt": "\n".join(lines)}, documents=documents)
    texts = found.texts() if documents == "sentence" else found.texts()[0].split("\n")
    assert [text.replace(" ", "") for text in texts] == ["".join(tokens) for tokens, _ in sentences]
    gold = [(mention, tokens) for tokens, mentions in sentences for mention in mentions]
    read = [(text, m) for i, text in enumerate(found.texts()) for m in sorted(found.mentions(i))]
    for ((first, last, label), tokens), (text, (start, end, read_label)) in zip(gold, read, strict=True):
        line = text[text.rfind("\n", 0, start) + 1 : start]
        assert len(line.replace(" ", "")) == sum(map(len, tokens[:first]))
        assert text[start:end].replace(" ", "") == "".join(tokens[first : last + 1])
        assert not text[start].isspace()
        assert read_label == label
    assert not any(number for note, number in found.reading.notes.items() if "break" in note)


def notes(tags):
    found = Converted("conll", {"a.txt": "".join(f"word{i} {tag}\n" for i, tag in enumerate(tags.split()))})
    return [(note.split(",")[0], n) for note, n in (+found.reading.notes).items()], found.surfaces()


@pytest.mark.parametrize(
    ("given_tags", "noted", "surfaces"),
    [
        ("I-x B-x O", [("mention tagged in IOB1", 2)], ["word0", "word1"]),
        ("B-x I-x B-y", [("mention tagged in IOB2", 2)], ["word0 word1", "word2"]),
        ("B-x M-x E-x S-x", [("mention tagged in BMES", 2)], ["word0 word1 word2", "word3"]),
        ("B-x L-x U-x", [("mention tagged in BILOU", 2)], ["word0 word1", "word2"]),
        ("B-x O I-x I-y O B-y", [("mention tagged in IOB2", 4), ("mention whose tags break IOB2", 2)],
         ["word0", "word2", "word3", "word5"]),
        ("B-x I-x O E-x S-x I-x", [("mention tagged in BIOES", 4), ("mention whose tags break BIOES", 3)],
         ["word0 word1", "word3", "word4", "word5"]),
    ],
)  # fmt: skip
def test_the_scheme_is_told_and_what_breaks_it_counted(given_tags, noted, surfaces):
    assert notes(given_tags) == (noted, [(surface, s) for surface, s in notes(given_tags)[1]])
    assert [surface for surface, _ in notes(given_tags)[1]] == surfaces


def test_bare_letters_are_mentions_of_one_kind():
    assert notes("B I O B")[1] == [("word0 word1", "entity"), ("word3", "entity")]


def test_a_label_may_hold_hyphens():
    assert notes("B-cell-line I-cell-line")[1] == [("word0 word1", "cell-line")]


def column(text, separator="\n"):
    return {"a.txt": separator.join(f"{token}\tO" for token in text.split("|"))}


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("Lung|cancer|.", "Lung cancer ."),
        ("患|者|C|T|示|肺|癌|，|3|.|5|c|m", "患者CT示肺癌，3.5cm"),  # split into characters
        ("患|者|服|用|EGFR|TKI|后|好|转|2|周|余|，|无|发|热", "患者服用EGFR TKI后好转2周余，无发热"),
        ("患者|服用|EGFR|TKI|治疗", "患者服用EGFR TKI治疗"),  # words
        ("患|\u3000|者| |咳|嗽", "患\u3000者 咳嗽"),
    ],
)
def test_spaces_between_words_and_none_between_chinese_characters(tokens, text):
    assert Converted("conll", column(tokens)).texts() == [text]


def test_a_space_as_token_among_columns_of_spaces():
    assert Converted("conll", {"a.txt": "患 O\n者 O\n  O\n咳 B-x\n"}).texts() == ["患者 咳"]


def test_columns_comments_and_blank_lines():
    content = "# id 1 domain=x\nIL-2 B-dna O \n# I-dna O\n \t\nbinds O O\r\n"
    found = Converted("conll", {"a.txt": content}, column=2)
    assert found.texts() == ["IL-2 #", "binds"]
    assert found.surfaces() == [("IL-2 #", "dna")]
    assert Converted("conll", {"a.txt": content}).surfaces() == []


def test_documents():
    content = "###MEDLINE:1\n\na O\n\nb B-x\n\n-DOCSTART- O\n\nc B-x\n"
    found = Converted("conll", {"a.txt": content}, documents="docstart")
    assert found.texts() == ["a\nb", "c"]
    assert found.surfaces(0) == [("b", "x")]
    assert [row["id"] for row in found.rows] == ["a-1", "a-2"]
    with pytest.raises(CorpusError, match="no -DOCSTART-"):
        Converted("conll", {"a.txt": "a O\n"}, documents="docstart")


@pytest.mark.parametrize("line", ["secret", "secret words", "secret\tB-", "secret X-x", "secret B-x"])
def test_a_line_without_a_tag_is_named(line):
    options = {"column": 3} if line.endswith("B-x") else {}
    with pytest.raises(CorpusError, match=r"a\.txt, line 2: column .* has no tag.*--column") as error:
        Converted("conll", {"a.txt": f"a x O\n{line}\n"}, **options)
    assert "secret" not in str(error.value)


def test_a_sentence_with_a_broken_line_is_left_out():
    files = {"a.txt": "one B-x\n\ntwo B-x\nbroken\nmore O\n\nthree B-x\n"}
    found = Converted("conll", files, skip_bad=True)
    assert found.surfaces(0) + found.surfaces(1) == [("one", "x"), ("three", "x")]
    assert found.texts() == ["one", "three"]
    assert found.reading.left_out == {"sentence with a line that has no tag": 1}
    assert found.summary.mentions == {"x": 2}


@pytest.mark.parametrize(
    "comment",
    [
        "# text = The patient took O",
        "# text = vitamin B",
        "# newdoc id = a O",
        "#text = B",
        "# id 1 domain=x",
        "# B-x B-x O O",
    ],
)
@pytest.mark.parametrize("separator", ["\t", " "])
def test_comments_are_no_tokens(comment, separator):
    tokens = [token.replace(" ", separator) for token in ("one x B-dna", "# x I-dna")]
    lines = [comment, tokens[0], comment, tokens[1], "", comment]
    found = Converted("conll", {"a.txt": "\n".join(lines)})
    assert found.texts() == ["one #"]
    assert found.surfaces() == [("one #", "dna")]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text.pieces import split, to_piece_spans


@given(st.text())
def test_pieces_concatenate_to_the_text(text):
    pieces = split(text)
    assert "".join(text[s:e] for s, e in zip(pieces.starts, pieces.ends, strict=True)) == text
    assert all(s <= c < e for s, c, e in zip(pieces.starts, pieces.cores, pieces.ends, strict=True))
    assert all(pieces.core(i) for i in range(len(pieces)))


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("the CD28 gene", ["the", "CD", "28", "gene"]),
        ("右肺腺癌", ["右", "肺", "腺", "癌"]),
        ("IL-2", ["IL", "-", "2"]),
        ("ＣＴ检查", ["Ｃ", "Ｔ", "检", "查"]),
        ("a  b", ["a", " ", "b"]),
        ("a_b", ["a", "_", "b"]),
        ("x\r\n y", ["x", "\r", "\n", "y"]),
        ("TGFβ1", ["TGFβ", "1"]),
    ],
)
def test_boundaries(text, cores):
    pieces = split(text)
    assert [pieces.core(i) for i in range(len(pieces))] == cores


def test_spans_at_piece_boundaries():
    pieces = split("the CD28 gene")
    assert to_piece_spans(pieces, [(4, 8), (4, 6), (0, 13)]) == [(1, 3), (1, 2), (0, 4)]


def test_spans_inside_a_piece_are_left_out():
    assert to_piece_spans(split("the CD28 gene"), [(5, 8), (3, 8), (4, 7)]) == []

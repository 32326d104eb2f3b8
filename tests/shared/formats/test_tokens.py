from __future__ import annotations

from hypothesis import given

from shared.formats.tokens import tokens
from tests.support.formats import documents


@given(documents())
def test_tokens_are_the_text_and_entities_end_with_them(made):
    found = tokens(made.text, made.entities)
    assert "".join(made.text[token.start : token.end] for token in found) == made.text
    assert all(made.text[token.start : token.end].isspace() == token.space for token in found)
    assert {e.start for e in made.entities} <= {token.start for token in found}
    assert {e.end for e in made.entities} <= {token.end for token in found}


def test_words_stay_whole():
    text = "NF-kappa B (p<0.05), 右肺e\u0301."
    found = [text[token.start : token.end] for token in tokens(text, []) if not token.space]
    assert found == ["NF-kappa", "B", "(", "p<0.05", ")", ",", "右", "肺", "e\u0301", "."]

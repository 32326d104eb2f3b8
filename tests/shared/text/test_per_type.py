import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.text import tagging
from shared.text.per_type import (
    MAX_DEPTH,
    Action,
    PerTypeTokens,
    State,
    _escape,
    actions_of,
    nested_only,
    spans_of,
)
from shared.text.pieces import split

pieces_and_spans = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda s: s[0] < s[1]), max_size=8),
    )
)


@given(pieces_and_spans)
def test_spans_are_the_inverse_of_actions(drawn):
    n, spans = drawn
    kept = nested_only(spans)
    actions = actions_of(n, kept)
    assert sorted(spans_of(n, actions)) == sorted(kept)
    state = State(n)
    for action in actions:
        assert action in state.admissible()
        state.apply(action)
    assert state.admissible() == ()


@given(pieces_and_spans)
def test_nested_only_neither_crosses_nor_repeats(drawn):
    _, spans = drawn
    kept = nested_only(spans)
    assert set(kept) <= set(spans)
    assert len(set(kept)) == len(kept)
    assert not any(a[0] < b[0] < a[1] < b[1] for a in kept for b in kept)
    assert all(sum(k[0] <= s[0] and s[1] <= k[1] for k in kept) <= MAX_DEPTH for s in kept)


def read(tagged):
    """The text of a line and its mentions: the scheme before labels, where a bar means nothing."""
    text, found, opened, escaped = "", [], [], False
    for character in tagged:
        if escaped or character not in "[]\\":
            text, escaped = text + character, False
        elif character == "\\":
            escaped = True
        elif character == "[":
            opened.append(len(found))
            found.append((len(text), len(text)))
        else:
            at = opened.pop()
            found[at] = found[at][0], len(text)
    assert not opened
    assert not escaped
    return text, found


@given(st.text("a |[]\\", max_size=12))
def test_a_bar_is_left_alone(text):
    """What adapters of this scheme were trained on: only what came later escapes it."""
    assert _escape(text) == tagging.escape(text).replace("\\|", "|")
    assert _escape("a | b [c] \\") == "a | b \\[c\\] \\\\"


@given(st.text(min_size=1, max_size=30) | st.text("ab |1-[]\\ 中😀", min_size=1, max_size=16), st.data())
def test_a_line_has_the_tokens_of_its_text_and_mentions(per_type_tokens, tokenizer, text, data):
    pieces = split(text)
    n = len(pieces)
    spans = nested_only(
        data.draw(
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda s: s[0] < s[1]), max_size=5)
        )
    )
    ids = [i for _, action_ids in per_type_tokens.steps(pieces, actions_of(n, spans)) for i in action_ids]
    expected = sorted({(pieces.cores[s], pieces.ends[e - 1]) for s, e in spans}, key=lambda s: (s[0], -s[1]))
    if expected:
        assert read(tokenizer.decode(ids)) == (text, expected)
    else:
        assert tokenizer.decode(ids) == " -"
    assert tokenizer.decode(per_type_tokens.prefix(pieces)[1:]) == text + "\n"


def test_decisions_name_distinct_tokens_and_the_taken_action(per_type_tokens):
    pieces = split("the CD28 gene - [x]")
    ids, decisions = per_type_tokens.line(pieces, actions_of(len(pieces), [(1, 4), (1, 3)]))
    assert decisions[0].actions == (Action.COPY, Action.OPEN, Action.ABSENT)
    for decision in decisions:
        assert len(set(decision.ids)) == len(decision.ids) > 1
        assert decision.at <= len(ids)
    taken = [d.actions[d.taken] for d in decisions]
    assert taken.count(Action.OPEN) == 2
    assert taken.count(Action.CLOSE) == 2


def test_an_absent_type_is_one_decision_and_no_tokens(per_type_tokens):
    ids, decisions = per_type_tokens.line(split("nothing here"), [Action.ABSENT])
    assert ids == []
    assert [d.actions[d.taken] for d in decisions] == [Action.ABSENT]


def test_a_tokenizer_that_mixes_up_the_marks_is_refused():
    class OneToken:
        bos_token_id = eos_token_id = None

        def encode(self, text, *, add_special_tokens):
            return [7]

    with pytest.raises(ValueError, match="base_model"):
        PerTypeTokens(OneToken())

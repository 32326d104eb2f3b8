import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import SelectorError
from shared.messages import Candidate, Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.model.masks import both_ways
from shared.selection.selector_folder import SelectorFile
from shared.selection.span_encoder import HEAD_FILE, SpanEncoder, SpanHead, piece_range
from shared.text.grammar import CopyTokens
from shared.text.pieces import split
from tests.support.tiny import make_tiny_model


def make(folder, window=512):
    base = make_tiny_model(folder, window=window)
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval())
    torch.manual_seed(1)
    head = SpanHead(model.config.hidden_size, ("dna", "protein"), 16, 8).eval()
    return SpanEncoder(Packed(model), head, CopyTokens(AutoTokenizer.from_pretrained(base)), 64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny"))


def candidate(text, start, end, type_="protein", at=0):
    segment = Segment(document_id="d", index=0, start=at, end=at + len(text), text=text, lang="en")
    return Candidate(
        segment=segment, type=type_, start=at + start, end=at + end, text=text[start:end], generator_confidence=0.5
    )


SOME = [
    candidate("The CD28 gene binds.", 4, 8),
    candidate("The CD28 gene binds.", 4, 13, "dna"),
    candidate("右肺腺癌", 0, 2, at=7),
    candidate("x", 0, 1),
    candidate("a text that is longer than what one pass of the encoder may have", 7, 11),
]


def test_a_candidate_does_not_depend_on_the_others(encoder):
    together = encoder.encode(SOME)
    assert together.known.all()
    np.testing.assert_allclose(np.linalg.norm(together.embeddings, axis=1), 1.0, rtol=1e-5)
    for i, one in enumerate(SOME):
        alone = encoder.encode([one])
        np.testing.assert_allclose(alone.embeddings[0], together.embeddings[i], atol=1e-5)
        np.testing.assert_allclose(alone.logits[0], together.logits[i], atol=1e-4)


def test_what_differs_is_told_apart(encoder):
    text = "The CD28 gene binds."
    asked = [candidate(text, 4, 8), candidate(text, 4, 8, "dna"), candidate(text, 4, 13), candidate(text, 0, 8)]
    asked.append(candidate("The CD28 gene fails.", 4, 8))  # what follows is in view
    found = encoder.encode(asked).embeddings
    for i in range(len(asked)):
        for j in range(i):
            assert np.abs(found[i] - found[j]).max() > 1e-5


def test_a_type_that_was_never_trained_is_not_known(encoder):
    found = encoder.encode([candidate("CD28", 0, 4, "disease"), candidate("CD28", 0, 4)])
    assert found.known.tolist() == [False, True]
    assert not found.embeddings[0].any()
    assert found.logits[0] == 0


def test_nothing_asked_costs_nothing(encoder):
    before = encoder.forwarded
    assert encoder.encode([]).embeddings.shape == (0, 8)
    assert encoder.forwarded == before


def test_a_window_that_bites_changes_what_is_seen(tmp_path):
    text = "a text that is longer than the window is"
    wide, narrow = make(tmp_path / "wide"), make(tmp_path / "narrow", window=8)
    asked = [candidate(text, 7, 11)]
    assert np.abs(wide.encode(asked).embeddings - narrow.encode(asked).embeddings).max() > 1e-5
    mask, window = both_ways(20, 8)
    assert mask.all()
    assert window.equal(window.T)
    assert window[0].sum() == 8


@settings(max_examples=200)
@given(st.text("ab1 -右\n", min_size=1, max_size=12), st.data())
def test_any_span_is_within_pieces(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    pieces = split(text)
    first, last = piece_range(pieces, start, end)
    assert 0 <= first < last <= len(pieces)
    assert pieces.starts[first] <= start
    assert pieces.ends[last - 1] >= end or text[pieces.ends[last - 1] : end].isspace()


def test_invalid_selector_files_name_the_remedy(tmp_path):
    with pytest.raises(SelectorError, match="BIOBRACKET_SELECTOR"):
        SelectorFile.load(tmp_path)
    (tmp_path / "selector.json").write_text('{"types": []}')
    with pytest.raises(SelectorError, match="types"):
        SelectorFile.load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"\xff" * 64, "less", "other sizes"]
)
def test_a_head_that_holds_no_such_weights_is_refused(tmp_path, content):
    made = SelectorFile(types=("disease", "drug"), size=4, hidden=8)
    (tmp_path / "selector.json").write_text(made.model_dump_json())
    weights = SpanHead(4, made.types, 8, 4).state_dict()
    if content == "less":
        weights.pop("outer.weight")
        weights.pop("types.weight")
    if content == "other sizes":
        weights["inner.weight"] = torch.zeros(2, 2)
    if isinstance(content, bytes):
        (tmp_path / HEAD_FILE).write_bytes(content)
    else:
        save_file(weights, tmp_path / HEAD_FILE)
    with pytest.raises(SelectorError, match=r"does not hold the weights that selector\.json describes"):
        SpanHead(4, ("disease", "drug"), 8, 4).read(tmp_path)


def test_a_selector_file_with_a_member_that_is_none_of_ours_does_not_quote_it(tmp_path):
    (tmp_path / "selector.json").write_text('{"患者 zq17": 1}', encoding="utf-8")
    with pytest.raises(SelectorError) as caught:
        SelectorFile.load(tmp_path)
    assert "zq17" not in str(caught.value)

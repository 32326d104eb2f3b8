from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.settings import Settings
from tests.support.generators import config, corpus
from training.config import ConfigError
from training.data.corpora import CorpusError, read
from training.data.mixing import Mixer, check, dev_groups, grouped, load, shares


def words(examples):
    """One item per text, of the same length."""
    return [example.text for example in examples]


@pytest.fixture
def settings(tmp_path):
    corpus(tmp_path / "toy")
    return Settings(corpora=tmp_path)


def test_what_is_wrong_is_told_before_anything_is_loaded(settings, tmp_path):
    check(config(), settings)
    with pytest.raises(CorpusError, match="no folder `none`"):
        check(config(corpora={"none": {}}), settings)
    with pytest.raises(CorpusError, match="types"):
        check(config(corpora={"toy": {"types": {"protein": "no such key"}}}), settings)
    (tmp_path / "toy" / "dev.jsonl").unlink()
    with pytest.raises(CorpusError, match="dev"):
        check(config(), settings)


def test_a_held_out_fold_is_not_trained_on(settings):
    whole = load(config(), settings, words)[2]["toy"]["segments"]
    parts = [load(config(folds=2, fold=fold), settings, words)[2]["toy"]["segments"] for fold in range(2)]
    assert sum(parts) == whole
    assert min(parts) > 0


def test_dev_texts_do_not_depend_on_the_seed_and_only_those_needed_are_read(settings):
    seen = []

    def counted(examples):
        seen.extend(examples)
        return words(examples)

    examples = read(settings.corpora / "toy", "dev")
    first = dev_groups("toy", examples, counted, config(seed=1))
    assert len(first) == 1
    assert len(seen) == len(first[0]) + 1  # the one that did not fit any more
    assert first == dev_groups("toy", examples, words, config(seed=2))
    everything = dev_groups("toy", examples, words, config(dev_batches=10**6))
    assert sum(map(len, everything)) == len(examples)  # each once, however many batches are asked for
    with pytest.raises(ConfigError, match="batch_tokens: no dev text of toy"):
        dev_groups("toy", examples, words, config().model_copy(update={"batch_tokens": 4}))


def test_items_can_be_augmented():
    mixer = Mixer({"a": ["x" * 9]}, {"a": 1.0}, 9, seed=1, vary=lambda item, draw: item[: draw.randint(1, 8)])
    groups = iter(mixer)
    assert len({len(text) for _ in range(20) for text in next(groups)}) > 1


def test_the_mixer_keeps_shares_and_size():
    item = "x" * 9
    mixer = Mixer({"a": [item], "b": [item]}, {"a": 3.0, "b": 1.0}, 4 * len(item) + 1, seed=1)
    groups = iter(mixer)
    for _ in range(50):
        assert sum(len(i) for i in next(groups)) <= 4 * len(item) + 1
    assert mixer.seen["a"] / mixer.seen["b"] == pytest.approx(3.0, rel=0.05)


def test_the_mixer_leaves_out_items_longer_than_a_batch():
    item = "x" * 9
    assert Mixer({"a": [item, "x"]}, {"a": 1.0}, len(item) - 1, seed=1).skipped == 1
    with pytest.raises(ValueError, match="batch_tokens"):
        Mixer({"a": [item]}, {"a": 1.0}, len(item) - 1, seed=1)


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.integers(1, 50), st.none() | st.floats(0.01, 0.2)), min_size=1
    ),
    st.floats(1.0, 10.0),
)
def test_shares_sum_to_one_and_keep_the_order_of_sizes(drawn, temperature):
    corpora = {name: ["x" * size] for name, (size, _) in drawn.items()}
    found = shares(corpora, {name: share for name, (_, share) in drawn.items()}, temperature)
    assert sum(found.values()) == pytest.approx(1.0)
    free = sorted((size, found[name]) for name, (size, share) in drawn.items() if share is None)
    assert [s for _, s in free] == pytest.approx(sorted(s for _, s in free))


def test_temperature_evens_out_the_shares():
    corpora = {"small": ["x" * 9], "large": ["x" * 99]}
    by_size = shares(corpora, {}, 1.0)
    assert by_size["large"] == pytest.approx(99 / 108)
    assert by_size["large"] > shares(corpora, {}, 3.0)["large"] > 0.5


@given(st.lists(st.integers(1, 9), max_size=20))
def test_groups_fit_and_hold_every_item_in_order(sizes):
    found = list(grouped(["x" * size for size in sizes], 10))
    assert [len(item) for group in found for item in group] == sizes
    assert all(0 < sum(map(len, group)) <= 10 for group in found)
    assert all(sum(map(len, group)) + len(after[0]) > 10 for group, after in pairwise(found))

from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import AutoModelForCausalLM

from shared.model.packing import Block, Cache, Packed, block_mask, causal, run, sliding, use_packed_attention
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), window=6)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    packed = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    return plain.get_decoder(), packed.get_decoder(), packed


def windowed(length, past=0):
    mask = causal(length, past)
    positions = torch.arange(past + length)
    return mask, sliding(mask, positions[past:], positions, 6)


@torch.inference_mode()
def test_sequences_in_one_stream_are_as_if_alone(models):
    plain, packed, _ = models
    torch.manual_seed(0)
    sequences = [torch.randint(3, 200, (n,)) for n in (5, 1, 13)]
    blocks, start = [], 0
    for sequence in sequences:
        mask, window = windowed(len(sequence))
        blocks.append(Block(start, start + len(sequence), mask, window))
        start += len(sequence)
    hidden = run(packed, torch.cat(sequences), torch.cat([torch.arange(len(s)) for s in sequences]), blocks)
    expected = torch.cat([plain(s[None]).last_hidden_state[0] for s in sequences])
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_kept_keys_and_values_stand_for_their_tokens(models):
    plain, packed, _ = models
    torch.manual_seed(1)
    ids = torch.randint(3, 200, (14,))
    cache = Cache(packed.config, torch.float32)
    slot = cache.take(14)
    for start, end in ((0, 4), (4, 9), (9, 14)):
        mask, window = windowed(end - start, start)
        block = Block(0, end - start, mask, window, start, slot)
        hidden = run(packed, ids[start:end], torch.arange(start, end), [block], cache)
    torch.testing.assert_close(hidden, plain(ids[None]).last_hidden_state[0, 9:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_copy_of_kept_tokens_goes_on_by_itself(models):
    plain, packed, _ = models
    torch.manual_seed(2)
    prefix, *rests = (torch.randint(3, 200, (n,)) for n in (5, 3, 4))
    cache = Cache(packed.config, torch.float32)
    first = cache.take(5)
    run(packed, prefix, torch.arange(5), [Block(0, 5, *windowed(5), slot=first)], cache)
    slots = [cache.take(5 + len(rest)) for rest in rests]  # the cache grows, and keeps what it holds
    for slot, rest in zip(slots, rests, strict=True):
        cache.copy(first, slot, 5)
        block = Block(0, len(rest), *windowed(len(rest), 5), past=5, slot=slot)
        hidden = run(packed, rest, torch.arange(5, 5 + len(rest)), [block], cache)
        expected = plain(torch.cat((prefix, rest))[None]).last_hidden_state[0, 5:]
        torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


class Slots(RuleBasedStateMachine):
    """What is taken at one time never overlaps, and holds what was put there whatever else is taken and given back."""

    @initialize()
    def begin(self):
        config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=1, head_dim=4)
        self.cache = Cache(config, torch.int8)
        self.taken = {}

    @rule(slots=st.integers(1, 200), mark=st.integers(-127, 127))
    def take(self, slots, mark):
        first = self.cache.take(slots)
        assert not set(range(first, first + slots)) & {
            slot for begin, (length, _) in self.taken.items() for slot in range(begin, begin + length)
        }
        self.cache.kept[:, :, :, first : first + slots] = mark
        self.cache.steps[:, :, :, first : first + slots] = float(mark)
        self.taken[first] = slots, mark

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data):
        first = data.draw(st.sampled_from(sorted(self.taken)))
        self.cache.give_back(first, self.taken.pop(first)[0])

    @precondition(lambda self: len(self.taken) > 1)
    @rule(data=st.data())
    def copy(self, data):
        source, to = data.draw(st.permutations(sorted(self.taken)))[:2]
        slots = min(self.taken[source][0], self.taken[to][0])
        self.cache.copy(source, to, slots)
        assert (self.cache.kept[:, :, :, to : to + slots] == self.taken[source][1]).all()
        self.cache.kept[:, :, :, to : to + slots] = self.taken[to][1]
        self.cache.steps[:, :, :, to : to + slots] = float(self.taken[to][1])

    @rule()
    def clear(self):
        self.cache.clear()
        self.taken.clear()

    @invariant()
    def kept(self):
        assert self.cache.used >= sum(slots for slots, _ in self.taken.values())
        assert self.taken or self.cache.used == 0
        for first, (slots, mark) in self.taken.items():
            assert (self.cache.kept[:, :, :, first : first + slots] == mark).all()
            assert (self.cache.steps[:, :, :, first : first + slots] == mark).all()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=30, stateful_step_count=20)


def test_memory_is_used_again():
    cache = Cache(SimpleNamespace(num_hidden_layers=1, num_key_value_heads=1, head_dim=4), torch.float32)
    for _ in range(10):
        first = [cache.take(n) for n in (3, 100, 70)]
        there = cache.kept.shape[3]
        for slot, n in zip(first, (3, 100, 70), strict=True):
            cache.give_back(slot, n)
    assert cache.kept.shape[3] == there
    cache.clear()
    assert cache.take(3) == 0


@torch.inference_mode()
def test_what_a_stream_is_padded_with_changes_nothing(models):
    plain, _, whole = models
    body = Packed(whole)
    ids, positions = [5, 6, 7], [0, 1, 2]
    hidden = body(ids, positions, [Block(0, 3, causal(3))], range(3), body.cache())
    assert hidden.shape[0] == 3
    torch.testing.assert_close(hidden, plain(torch.tensor([ids])).last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_plain_model(models):
    packed = models[1]
    ids = torch.randint(3, 200, (5,))
    gradients = []
    for model in models[:2]:
        model.zero_grad()
        hidden = run(model, ids, torch.arange(5), [Block(0, 5, causal(5))]) if model is packed else None
        (model(ids[None]).last_hidden_state[0] if hidden is None else hidden).pow(2).sum().backward()
        gradients.append(model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_no_window_where_it_does_not_bite():
    mask = causal(5)
    assert sliding(mask, torch.arange(5), torch.arange(5), 6) is None
    assert sliding(mask, torch.arange(5), torch.arange(5), None) is None


def test_the_mask_lets_lines_share_the_prefix_and_nothing_else():
    mask = block_mask(2, [2, 1])
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]

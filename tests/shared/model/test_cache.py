from types import SimpleNamespace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.model.cache import Cache


class Slots(RuleBasedStateMachine):
    """Ranges of slots taken at the same time never overlap, and keep their content whatever else is taken and freed."""

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
        self.cache.kv[:, :, :, first : first + slots] = mark
        self.cache.scales[:, :, :, first : first + slots] = float(mark)
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
        assert (self.cache.kv[:, :, :, to : to + slots] == self.taken[source][1]).all()
        self.cache.kv[:, :, :, to : to + slots] = self.taken[to][1]
        self.cache.scales[:, :, :, to : to + slots] = float(self.taken[to][1])

    @rule()
    def clear(self):
        self.cache.clear()
        self.taken.clear()

    @invariant()
    def kept(self):
        assert self.cache.used >= sum(slots for slots, _ in self.taken.values())
        assert self.taken or self.cache.used == 0
        for first, (slots, mark) in self.taken.items():
            assert (self.cache.kv[:, :, :, first : first + slots] == mark).all()
            assert (self.cache.scales[:, :, :, first : first + slots] == mark).all()


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=30, stateful_step_count=20)


def test_memory_is_used_again():
    cache = Cache(SimpleNamespace(num_hidden_layers=1, num_key_value_heads=1, head_dim=4), torch.float32)
    for _ in range(10):
        first = [cache.take(n) for n in (3, 100, 70)]
        there = cache.kv.shape[3]
        for slot, n in zip(first, (3, 100, 70), strict=True):
            cache.give_back(slot, n)
    assert cache.kv.shape[3] == there
    cache.clear()
    assert cache.take(3) == 0

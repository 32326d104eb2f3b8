"""Each compiled pass against the same in tensor operations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import int8_kernels as kernels

EPSILON = np.float32(1e-6)
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def products(seed, tokens, outputs):
    """Products in 32 bits with the steps of their tokens and the scales of their outputs; and what they stand for."""
    random = np.random.default_rng(seed)
    acc = random.integers(-(10**6), 10**6, (tokens, outputs)).astype(np.int32)
    step = random.uniform(1e-4, 1e-2, tokens).astype(np.float32)
    scale = random.uniform(1e-4, 1e-2, outputs).astype(np.float32)
    return acc, step, scale, torch.from_numpy(acc.astype(np.float32) * step[:, None] * scale)


def normed(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + float(EPSILON)) * torch.from_numpy(weight)


def check_rounded(numbers, step, expected):
    """8-bit numbers are the nearest to what they stand for, and the largest of a token uses them whole."""
    expected = expected.numpy()
    error = np.abs(numbers * step[:, None] - expected)
    assert (error <= 0.5001 * step[:, None] + 1e-4 * np.abs(expected)).all()
    assert (np.abs(numbers.astype(int)).max(axis=1) == 127).all()


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_enter(seed, tokens):
    hidden, weight = drawn(seed, tokens, 48, scale=30.0), drawn(seed + 1, 48)
    numbers, step = np.zeros((tokens + 3, 48), np.int8), np.zeros(tokens, np.float32)
    kernels.enter(hidden, weight, EPSILON, numbers, step)
    check_rounded(numbers[:tokens], step, normed(torch.from_numpy(hidden), weight))
    assert not numbers[tokens:].any()


@settings(max_examples=20)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), groups=st.sampled_from([1, 2]))
def test_project_and_attended(seed, lengths, groups):
    heads, size, tokens = 4, 16, sum(lengths)
    acc, step, scale, value = products(seed, tokens, (heads + 2 * groups) * size)
    norms, slots = drawn(seed, 2, size), np.random.default_rng(seed).permutation(50)[:tokens]
    angles = drawn(seed + 1, tokens, size // 2)
    rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    at = np.array(
        [(start, n, slots[start + i]) for start, n in zip(starts, lengths, strict=True) for i in range(n)], np.int64
    )
    queries = np.zeros((tokens * heads, size), np.uint16)
    keys, values = np.zeros((groups, 50, size), np.uint16), np.zeros((groups, 50, size), np.uint16)
    for first, last in ((0, tokens // 2), (tokens // 2, tokens)):  # as rows that go together are only some of a stream
        rows = slice(first, last)
        kernels.project(
            acc[rows],
            step[rows],
            scale,
            norms,
            EPSILON,
            rotation[rows],
            at[rows],
            first,
            heads,
            queries,
            keys,
            values,
        )
    by_head = value.view(tokens, heads + 2 * groups, size)
    cosine, sine = (torch.from_numpy(part.copy()).repeat(1, 2)[:, None] for part in np.split(rotation, 2, axis=1))

    def turned(x, weight):
        x = normed(x, weight)
        one, other = x.chunk(2, dim=-1)
        return x * cosine + torch.cat((-other, one), dim=-1) * sine

    q, k = turned(by_head[:, :heads], norms[0]), turned(by_head[:, heads : heads + groups], norms[1])
    ordered = torch.cat(
        [q[start : start + n].transpose(0, 1).reshape(-1, size) for start, n in zip(starts, lengths, strict=True)]
    )
    for got, expected in (
        (queries, ordered),
        (keys[:, slots], k.transpose(0, 1)),
        (values[:, slots], by_head[:, heads + groups :].transpose(0, 1)),
    ):
        got = torch.from_numpy(got.copy()).view(torch.bfloat16).float()
        torch.testing.assert_close(got, expected, rtol=8e-3, atol=1e-5)

    smooth = np.random.default_rng(seed).uniform(0.5, 2, heads * size).astype(np.float32)
    numbers, steps = np.zeros((tokens, heads * size), np.int8), np.zeros(tokens, np.float32)
    for first, last in ((0, tokens // 2), (tokens // 2, tokens)):
        rows = slice(first, last)
        kernels.attended(queries, at[rows], first, heads, smooth, numbers[rows], steps[rows])
    back = torch.from_numpy(queries.copy()).view(torch.bfloat16).float()
    expected = [
        back[start * heads : (start + n) * heads].view(heads, n, size).transpose(0, 1).reshape(n, -1)
        for start, n in zip(starts, lengths, strict=True)
    ]
    check_rounded(numbers, steps, torch.cat(expected) * torch.from_numpy(smooth))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_add(seed, tokens):
    acc, step, scale, value = products(seed, tokens, 48)
    hidden, after, before = drawn(seed, tokens, 48), drawn(seed + 1, 48), drawn(seed + 2, 48)
    expected = torch.from_numpy(hidden.copy()) + normed(value, after)
    numbers, steps = np.zeros((tokens, 48), np.int8), np.zeros(tokens, np.float32)
    kernels.add(acc, step, scale, after, hidden, before, EPSILON, numbers, steps)
    torch.testing.assert_close(torch.from_numpy(hidden), expected, rtol=1e-4, atol=1e-4)
    check_rounded(numbers, steps, normed(expected, before))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_activate(seed, tokens, size):
    acc, step, scale, value = products(seed, tokens, 96)
    scale *= np.float32(size)
    value *= np.float32(size)
    smooth = np.random.default_rng(seed).uniform(0.5, 2, 48).astype(np.float32)
    numbers, steps = np.zeros((tokens, 48), np.int8), np.zeros(tokens, np.float32)
    kernels.activate(acc, step, scale, smooth, numbers, steps)
    gate, up = value.chunk(2, dim=1)
    check_rounded(numbers, steps, F.gelu(gate, approximate="tanh") * up * torch.from_numpy(smooth))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.14159, 1e-30, 65504.0, 1.00390625, 1.01171875])
def test_bfloat16_is_that_of_torch(value):
    numbers = np.full(4, value, np.float32)
    got = np.zeros(4, np.uint16)
    kernels._to_bfloat16(numbers.view(np.uint32), got)
    assert torch.equal(torch.from_numpy(got).view(torch.bfloat16), torch.from_numpy(numbers).bfloat16())


def test_nothing_in_gives_nothing_out():
    numbers, step = np.ones((2, 48), np.int8), np.ones(2, np.float32)
    kernels.enter(np.zeros((2, 48), np.float32), np.ones(48, np.float32), EPSILON, numbers, step)
    assert not numbers.any()
    assert np.isfinite(step).all()

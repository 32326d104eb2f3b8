"""Each compiled pass against the same in tensor operations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model import int8
from shared.model import int8_kernels as kernels

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


def spread(x):
    """Rows (T, n) times the Hadamard matrix that numbers 32 and more apart are turned by."""
    matrix, rest = torch.ones(1, 1), x.shape[-1]
    while rest % 2 == 0 and rest >= 64:
        matrix, rest = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]])), rest // 2
    return x.float() @ torch.kron(matrix, torch.eye(rest))


@pytest.mark.parametrize("size", [1, 48, 64, 192, 256, 640, 2048])
def test_spread(size):
    row = drawn(size, size)
    expected = spread(torch.from_numpy(row.copy()))
    kernels._spread(row, np.empty_like(row))
    torch.testing.assert_close(torch.from_numpy(row), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [48, 64, 640, 1024, 2048])
def test_weights_that_are_spread_back_give_what_they_gave(size):
    x, weight = torch.from_numpy(drawn(1, 5, size)), torch.from_numpy(drawn(2, 7, size))
    torch.testing.assert_close(spread(x) @ int8._spread_back(weight).T, x @ weight.T, rtol=1e-4, atol=1e-3)


def test_a_large_number_becomes_many():
    row = np.zeros(640, np.float32)
    row[17] = 100.0
    kernels._spread(row, np.empty_like(row))
    assert sorted(set(np.abs(row))) == [0.0, 100.0]
    assert np.count_nonzero(row) == 16


def check_rounded(numbers, step, expected):
    """8-bit numbers are the nearest to what they stand for, and the largest of a token uses them whole."""
    expected = expected.numpy()
    error = np.abs(numbers * step[:, None] - expected)
    assert (error <= 0.5001 * step[:, None] + 1e-4 * np.abs(expected)).all()
    assert (np.abs(numbers.astype(int)).max(axis=1) == 127).all()


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_enter(seed, tokens):
    hidden, weight = drawn(seed, tokens, 192, scale=30.0), drawn(seed + 1, 192)
    numbers, step = np.zeros((tokens + 3, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.enter(hidden, weight, EPSILON, numbers, step)
    check_rounded(numbers[:tokens], step, spread(normed(torch.from_numpy(hidden), weight)))
    assert not numbers[tokens:].any()


def places(lengths, heads, groups, slots):
    """Where the tokens of blocks lie, with some rows between those of two key heads that belong to nobody."""
    at, row = [], 0
    for length in lengths:
        padded = heads // groups * length + 3
        at += [(row, length, padded, i, slots[len(at) + i]) for i in range(length)]
        row += groups * padded
    return np.array(at, np.int64), row


def row_of(at, head, together):
    return at[0] + head // together * at[2] + head % together * at[1] + at[3]


@settings(max_examples=20)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), groups=st.sampled_from([1, 2]))
def test_project(seed, lengths, groups):
    heads, size, tokens = 4, 16, sum(lengths)
    acc, step, scale, value = products(seed, tokens, (heads + 2 * groups) * size)
    norms, slots = drawn(seed, 2, size), np.random.default_rng(seed).permutation(50)[:tokens]
    angles = drawn(seed + 1, tokens, size // 2)
    rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    at, rows = places(lengths, heads, groups, slots)
    queries, query_step = np.zeros((rows, size), np.int8), np.zeros(rows, np.float32)
    kept, kept_step = np.zeros((2, groups, 50, size), np.int8), np.zeros((2, groups, 50), np.float32)
    for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)):  # only some of a stream go together
        given = (acc[part], step[part], scale, norms, EPSILON, rotation[part], at[part])
        kernels.project(*given, heads, queries, query_step, kept, kept_step)
    by_head = value.view(tokens, heads + 2 * groups, size)
    cosine, sine = (torch.from_numpy(part.copy()).repeat(1, 2)[:, None] for part in np.split(rotation, 2, axis=1))

    def turned(x, weight):
        x = normed(x, weight)
        one, other = x.chunk(2, dim=-1)
        return x * cosine + torch.cat((-other, one), dim=-1) * sine

    q, k = turned(by_head[:, :heads], norms[0]), turned(by_head[:, heads : heads + groups], norms[1])
    for head in range(heads):
        of_head = [row_of(place, head, heads // groups) for place in at]
        check_rounded(queries[of_head], query_step[of_head], q[:, head])
    for group in range(groups):
        check_rounded(kept[0, group, slots], kept_step[0, group, slots], k[:, group])
        check_rounded(kept[1, group, slots], kept_step[1, group, slots], by_head[:, heads + groups + group])


@settings(max_examples=20)
@given(
    seed=SEEDS, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.sampled_from([1e-3, 1.0, 50.0])
)
def test_weigh(seed, lengths, size):
    """Of the largest score, ``size``: even weights, or nearly all on one key."""
    random = np.random.default_rng(seed)
    slots, apart = 100, 48
    kept_step = random.uniform(1e-3, 1e-1, (2, 2, slots)).astype(np.float32)
    regions, masks, rows = [], [], 0
    for length in lengths:
        past = int(random.integers(0, 20))
        mask = random.random((length, past + length)) < 0.5
        mask[np.arange(length), past + np.arange(length)] = True
        slot, group = int(random.integers(0, slots - past - length)), int(random.integers(2))
        seen = sum(map(np.size, masks))
        regions.append((rows * apart, rows, 2 * length, length, past + length, apart, slot, group, seen))
        masks.append(mask)
        rows += 2 * length
    scores = random.integers(-(10**6), 10**6, (rows, apart)).astype(np.int32)
    query_step = random.uniform(0.5e-5, 1e-5, rows).astype(np.float32) * np.float32(size)
    weights, step = np.full((rows, apart), 99, np.int8), np.zeros(rows, np.float32)
    flat = np.concatenate([mask.ravel() for mask in masks])
    kernels.weigh(
        scores.ravel(), np.array(regions), flat, query_step, kept_step, np.float32(0.3), weights.ravel(), step
    )
    for (_, first, many, length, keys, _, slot, group, _), mask in zip(regions, masks, strict=True):
        mine = slice(first, first + many)
        of_keys, of_values = (torch.from_numpy(of[group, slot : slot + keys]) for of in kept_step)
        logits = torch.from_numpy(scores[mine, :keys] * query_step[mine, None]) * of_keys * 0.3
        hidden = torch.from_numpy(~mask).repeat(many // length, 1)
        expected = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=1) * of_values
        check_rounded(weights[mine, :keys], step[mine], expected)
        assert not weights[mine, keys:].any()


def test_where_arrays_lie_changes_no_bit():
    """Of memory that the kernel takes for itself, too: it gets what was given back beside the masks."""
    random, (length, keys) = np.random.default_rng(0), (100, 110)
    rows, apart = 4 * length, 112
    scores = random.integers(-(10**5), 10**5, rows * apart).astype(np.int32)
    mask = np.tri(length, keys, keys - length, dtype=np.bool_).ravel()
    steps = random.uniform(1e-3, 1e-2, rows).astype(np.float32), random.uniform(1e-3, 1e-2, (2, 1, keys))
    query_step, kept_step = steps[0], steps[1].astype(np.float32)
    regions = np.array([(0, 0, rows, length, keys, apart, 0, 0, 0)])
    found, kept = set(), []
    for gap in range(0, 40_000, 200):
        masks, between = mask.copy(), np.empty(gap, np.int8)
        given_back = [np.empty(size, np.int8) for size in range(448, 832, 16)]
        kept += [masks, between, np.empty(64, np.int8)]
        del given_back
        weights, step = np.zeros(rows * apart, np.int8), np.zeros(rows, np.float32)
        kernels.weigh(scores, regions, masks, query_step, kept_step, np.float32(0.3), weights, step)
        found.add((weights.tobytes(), step.tobytes()))
    assert len(found) == 1


@settings(max_examples=20)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), groups=st.sampled_from([1, 2]))
def test_attended(seed, lengths, groups):
    heads, size, tokens = 4, 16, sum(lengths)
    at, rows = places(lengths, heads, groups, range(tokens))
    acc, step, _, _ = products(seed, rows, size)
    smooth = np.random.default_rng(seed).uniform(0.5, 2, heads * size).astype(np.float32)
    numbers, steps = np.zeros((tokens, heads * size), np.int8), np.zeros(tokens, np.float32)
    for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)):
        kernels.attended(acc, step, at[part], heads, groups, smooth, numbers[part], steps[part])
    mine = np.array([[row_of(place, head, heads // groups) for head in range(heads)] for place in at])
    expected = (acc[mine].astype(np.float32) * step[mine][..., None]).reshape(tokens, -1) * smooth
    check_rounded(numbers, steps, spread(torch.from_numpy(expected)))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_add(seed, tokens):
    acc, step, scale, value = products(seed, tokens, 192)
    hidden, after, before = drawn(seed, tokens, 192), drawn(seed + 1, 192), drawn(seed + 2, 192)
    expected = torch.from_numpy(hidden.copy()) + normed(value, after)
    numbers, steps = np.zeros((tokens, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.add(acc, step, scale, after, hidden, before, EPSILON, numbers, steps)
    torch.testing.assert_close(torch.from_numpy(hidden), expected, rtol=1e-4, atol=1e-4)
    check_rounded(numbers, steps, spread(normed(expected, before)))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_activate(seed, tokens, size):
    acc, step, scale, value = products(seed, tokens, 384)
    scale *= np.float32(size)
    value *= np.float32(size)
    smooth = np.random.default_rng(seed).uniform(0.5, 2, 192).astype(np.float32)
    numbers, steps = np.zeros((tokens, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.activate(acc, step, scale, smooth, numbers, steps)
    gate, up = value.chunk(2, dim=1)
    check_rounded(numbers, steps, spread(F.gelu(gate, approximate="tanh") * up * torch.from_numpy(smooth)))


def test_nothing_in_gives_nothing_out():
    numbers, step = np.ones((2, 48), np.int8), np.ones(2, np.float32)
    kernels.enter(np.zeros((2, 48), np.float32), np.ones(48, np.float32), EPSILON, numbers, step)
    assert not numbers.any()
    assert np.isfinite(step).all()

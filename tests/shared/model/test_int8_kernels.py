"""Each compiled kernel against the same in tensor operations."""

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


def drawn(seed, *shape, size=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def products(seed, tokens, outputs):
    """An int32 product, the scales of its tokens and output channels, and the numbers it stands for."""
    random = np.random.default_rng(seed)
    acc = random.integers(-(10**6), 10**6, (tokens, outputs)).astype(np.int32)
    scale = random.uniform(1e-4, 1e-2, tokens).astype(np.float32)
    weight_scale = random.uniform(1e-4, 1e-2, outputs).astype(np.float32)
    return acc, scale, weight_scale, torch.from_numpy(acc.astype(np.float32) * scale[:, None] * weight_scale)


def normed(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + float(EPSILON)) * torch.from_numpy(weight)


def rotated(x):
    """Rows (T, n) times the Hadamard matrix whose butterflies span 32 numbers and more."""
    matrix, rest = torch.ones(1, 1), x.shape[-1]
    while rest % 2 == 0 and rest >= 64:
        matrix, rest = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]])), rest // 2
    return x.float() @ torch.kron(matrix, torch.eye(rest))


@pytest.mark.parametrize("size", [1, 48, 64, 192, 256, 640, 2048])
def test_hadamard(size):
    row = drawn(size, size)
    expected = rotated(torch.from_numpy(row.copy()))
    kernels._hadamard(row, np.empty_like(row))
    torch.testing.assert_close(torch.from_numpy(row), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [48, 64, 640, 1024, 2048])
def test_rotated_inputs_and_weights_give_the_same_product(size):
    x, weight = torch.from_numpy(drawn(1, 5, size)), torch.from_numpy(drawn(2, 7, size))
    torch.testing.assert_close(rotated(x) @ int8._rotated(weight).T, x @ weight.T, rtol=1e-4, atol=1e-3)


def test_rotation_spreads_an_outlier():
    row = np.zeros(640, np.float32)
    row[17] = 100.0
    kernels._hadamard(row, np.empty_like(row))
    assert sorted(set(np.abs(row))) == [0.0, 100.0]
    assert np.count_nonzero(row) == 16


def check_rounded(numbers, scale, expected):
    """Each int8 number is the nearest to its value, and the largest of a token is 127."""
    expected = expected.numpy()
    error = np.abs(numbers * scale[:, None] - expected)
    assert (error <= 0.5001 * scale[:, None] + 1e-4 * np.abs(expected)).all()
    assert (np.abs(numbers.astype(int)).max(axis=1) == 127).all()


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_rms_norm_quantise(seed, tokens):
    hidden, weight = drawn(seed, tokens, 192, size=30.0), drawn(seed + 1, 192)
    numbers, scale = np.zeros((tokens + 3, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.rms_norm_quantise(hidden, weight, EPSILON, numbers, scale)
    check_rounded(numbers[:tokens], scale, rotated(normed(torch.from_numpy(hidden), weight)))
    assert not numbers[tokens:].any()


def places(lengths, heads, groups, slots):
    """Where the tokens of blocks lie, with some unused rows between those of two key heads."""
    at, row = [], 0
    for length in lengths:
        padded = heads // groups * length + 3
        at += [(row, length, padded, i, slots[len(at) + i]) for i in range(length)]
        row += groups * padded
    return np.array(at, np.int64), row


def row_of(at, head, group_size):
    return at[0] + head // group_size * at[2] + head % group_size * at[1] + at[3]


@settings(max_examples=20)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), groups=st.sampled_from([1, 2]))
def test_qkv_norm_rope_quantise(seed, lengths, groups):
    heads, size, tokens = 4, 16, sum(lengths)
    acc, scale, weight_scale, value = products(seed, tokens, (heads + 2 * groups) * size)
    norms, slots = drawn(seed, 2, size), np.random.default_rng(seed).permutation(50)[:tokens]
    angles = drawn(seed + 1, tokens, size // 2)
    rotation = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    at, rows = places(lengths, heads, groups, slots)
    queries, query_scale = np.zeros((rows, size), np.int8), np.zeros(rows, np.float32)
    kv, kv_scale = np.zeros((2, groups, 50, size), np.int8), np.zeros((2, groups, 50), np.float32)
    for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)):  # a stream may be split
        given = (acc[part], scale[part], weight_scale, norms, EPSILON, rotation[part], at[part])
        kernels.qkv_norm_rope_quantise(*given, heads, queries, query_scale, kv, kv_scale)
    by_head = value.view(tokens, heads + 2 * groups, size)
    cosine, sine = (torch.from_numpy(part.copy()).repeat(1, 2)[:, None] for part in np.split(rotation, 2, axis=1))

    def turned(x, weight):
        x = normed(x, weight)
        one, other = x.chunk(2, dim=-1)
        return x * cosine + torch.cat((-other, one), dim=-1) * sine

    q, k = turned(by_head[:, :heads], norms[0]), turned(by_head[:, heads : heads + groups], norms[1])
    for head in range(heads):
        of_head = [row_of(place, head, heads // groups) for place in at]
        check_rounded(queries[of_head], query_scale[of_head], q[:, head])
    for group in range(groups):
        check_rounded(kv[0, group, slots], kv_scale[0, group, slots], k[:, group])
        check_rounded(kv[1, group, slots], kv_scale[1, group, slots], by_head[:, heads + groups + group])


@settings(max_examples=20)
@given(
    seed=SEEDS, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), size=st.sampled_from([1e-3, 1.0, 50.0])
)
def test_softmax_quantise(seed, lengths, size):
    """``size`` of the largest score: from nearly even weights to nearly all on one key."""
    random = np.random.default_rng(seed)
    slots, stride = 100, 48
    kv_scale = random.uniform(1e-3, 1e-1, (2, 2, slots)).astype(np.float32)
    regions, masks, rows = [], [], 0
    for length in lengths:
        past = int(random.integers(0, 20))
        mask = random.random((length, past + length)) < 0.5
        mask[np.arange(length), past + np.arange(length)] = True
        slot, group = int(random.integers(0, slots - past - length)), int(random.integers(2))
        seen = sum(map(np.size, masks))
        regions.append((rows * stride, rows, 2 * length, length, past + length, stride, slot, group, seen))
        masks.append(mask)
        rows += 2 * length
    scores = random.integers(-(10**6), 10**6, (rows, stride)).astype(np.int32)
    query_scale = random.uniform(0.5e-5, 1e-5, rows).astype(np.float32) * np.float32(size)
    weights, scale = np.full((rows, stride), 99, np.int8), np.zeros(rows, np.float32)
    flat = np.concatenate([mask.ravel() for mask in masks])
    kernels.softmax_quantise(
        scores.ravel(), np.array(regions), flat, query_scale, kv_scale, np.float32(0.3), weights.ravel(), scale
    )
    for (_, first, many, length, keys, _, slot, group, _), mask in zip(regions, masks, strict=True):
        mine = slice(first, first + many)
        key_scale, value_scale = (torch.from_numpy(part[group, slot : slot + keys]) for part in kv_scale)
        logits = torch.from_numpy(scores[mine, :keys] * query_scale[mine, None]) * key_scale * 0.3
        hidden = torch.from_numpy(~mask).repeat(many // length, 1)
        expected = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=1) * value_scale
        check_rounded(weights[mine, :keys], scale[mine], expected)
        assert not weights[mine, keys:].any()


def test_memory_layout_changes_no_bit():
    """That of the kernel's own buffers included: it gets memory freed beside the masks."""
    random, (length, keys) = np.random.default_rng(0), (100, 110)
    rows, stride = 4 * length, 112
    scores = random.integers(-(10**5), 10**5, rows * stride).astype(np.int32)
    mask = np.tri(length, keys, keys - length, dtype=np.bool_).ravel()
    scales = random.uniform(1e-3, 1e-2, rows).astype(np.float32), random.uniform(1e-3, 1e-2, (2, 1, keys))
    query_scale, kv_scale = scales[0], scales[1].astype(np.float32)
    regions = np.array([(0, 0, rows, length, keys, stride, 0, 0, 0)])
    found, kept = set(), []
    for gap in range(0, 40_000, 200):
        masks, between = mask.copy(), np.empty(gap, np.int8)
        given_back = [np.empty(size, np.int8) for size in range(448, 832, 16)]
        kept += [masks, between, np.empty(64, np.int8)]
        del given_back
        weights, scale = np.zeros(rows * stride, np.int8), np.zeros(rows, np.float32)
        kernels.softmax_quantise(scores, regions, masks, query_scale, kv_scale, np.float32(0.3), weights, scale)
        found.add((weights.tobytes(), scale.tobytes()))
    assert len(found) == 1


@settings(max_examples=20)
@given(seed=SEEDS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), groups=st.sampled_from([1, 2]))
def test_attention_quantise(seed, lengths, groups):
    heads, size, tokens = 4, 16, sum(lengths)
    at, rows = places(lengths, heads, groups, range(tokens))
    acc, scale, _, _ = products(seed, rows, size)
    smooth = np.random.default_rng(seed).uniform(0.5, 2, heads * size).astype(np.float32)
    numbers, out_scale = np.zeros((tokens, heads * size), np.int8), np.zeros(tokens, np.float32)
    for part in (slice(0, tokens // 2), slice(tokens // 2, tokens)):
        kernels.attention_quantise(acc, scale, at[part], heads, groups, smooth, numbers[part], out_scale[part])
    mine = np.array([[row_of(place, head, heads // groups) for head in range(heads)] for place in at])
    expected = (acc[mine].astype(np.float32) * scale[mine][..., None]).reshape(tokens, -1) * smooth
    check_rounded(numbers, out_scale, rotated(torch.from_numpy(expected)))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20))
def test_residual_norm_quantise(seed, tokens):
    acc, scale, weight_scale, value = products(seed, tokens, 192)
    hidden, after, before = drawn(seed, tokens, 192), drawn(seed + 1, 192), drawn(seed + 2, 192)
    expected = torch.from_numpy(hidden.copy()) + normed(value, after)
    numbers, out_scale = np.zeros((tokens, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.residual_norm_quantise(acc, scale, weight_scale, after, hidden, before, EPSILON, numbers, out_scale)
    torch.testing.assert_close(torch.from_numpy(hidden), expected, rtol=1e-4, atol=1e-4)
    check_rounded(numbers, out_scale, rotated(normed(expected, before)))


@settings(max_examples=20)
@given(seed=SEEDS, tokens=st.integers(1, 20), size=st.sampled_from([0.1, 1.0, 30.0]))
def test_gelu_multiply_quantise(seed, tokens, size):
    acc, scale, weight_scale, value = products(seed, tokens, 384)
    weight_scale *= np.float32(size)
    value *= np.float32(size)
    smooth = np.random.default_rng(seed).uniform(0.5, 2, 192).astype(np.float32)
    numbers, out_scale = np.zeros((tokens, 192), np.int8), np.zeros(tokens, np.float32)
    kernels.gelu_multiply_quantise(acc, scale, weight_scale, smooth, numbers, out_scale)
    gate, up = value.chunk(2, dim=1)
    check_rounded(numbers, out_scale, rotated(F.gelu(gate, approximate="tanh") * up * torch.from_numpy(smooth)))


def test_zeros_stay_zeros():
    numbers, scale = np.ones((2, 48), np.int8), np.ones(2, np.float32)
    kernels.rms_norm_quantise(np.zeros((2, 48), np.float32), np.ones(48, np.float32), EPSILON, numbers, scale)
    assert not numbers.any()
    assert np.isfinite(scale).all()

"""What stands between the matrix products of a layer in 8 bits: a pass over each token's numbers, compiled.

Each function goes over tokens one by one and does all that is to be done with one while it is in the cache, where
tensor operations would write it out and read it back after every step. Products are in ``acc``, 32-bit integers of
shape (T, n); ``step`` (T,) is what one unit of a token's 8-bit numbers stands for, ``scale`` (n,) what one of an
output's weights does. Nothing here holds Python's lock. What goes into a product is spread (:func:`_spread`) before it
is rounded, as in QuaRot (Ashkboos et al. 2024, arXiv 2404.00456); the product's weights are spread the other way.

Loops go over slices from their beginning: an index that might count from the end would make the compiler suspect arrays
that lie near each other of sharing memory, and take a loop for these that rounds in another way.
"""

from __future__ import annotations

from typing import Any

import numba  # type: ignore[import-untyped]
import numpy as np

# Sums may be taken in any order, and there are no infinities: that lets the compiler use vectors.
_compiled: Any = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)

APART = 32  # at least, of numbers that :func:`_spread` adds: shorter loops cost more than they give
_ONE, _HALF, _STEPS = np.float32(1), np.float32(0.5), np.float32(127)
_ABSOLUTE, _SMALLEST = np.int32(0x7FFFFFFF), np.float32(1e-5).view(np.int32)
# tanh as a quotient of polynomials, to a few units of the last place (as in Eigen, MathFunctionsImpl.h).
_REACH = np.float32(7.9)
_P1, _P3, _P5, _P7 = (
    np.float32(v) for v in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08)
)
_P9, _P11, _P13 = (np.float32(v) for v in (-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16))
_Q0, _Q2, _Q4, _Q6 = (
    np.float32(v) for v in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)
# Two to the power of -0.5 to 0.5, with a relative error below 2e-7.
_E1, _E2, _E3, _E4, _E5 = (
    np.float32(v) for v in (0.6931468559, 0.2402223793, 0.05550893005, 0.009671702585, 0.001321867487)
)
_LOG2E, _FAINTEST, _NEVER = np.float32(1.4426950408889634), np.float32(-126), np.float32(-1e30)
_LOWEST = np.int32(-(2**31))
_GELU, _CUBE = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)


@_compiled
def _to_int8(row, bits, out):  # type: ignore[no-untyped-def]
    """A token in 8 bits; returns its step. ``bits``: those of the row, in int32."""
    # Positive numbers are ordered as their bits are, and for integers the compiler takes a maximum in vectors.
    largest = _SMALLEST
    for i in range(bits.shape[0]):
        largest = max(largest, bits[i] & _ABSOLUTE)
    peak = np.int32(largest).view(np.float32)
    inverse = _STEPS / peak
    for i in range(row.shape[0]):
        out[i] = np.int8(np.int32(np.rint(row[i] * inverse)))
    return peak / _STEPS


def columns(n: int) -> int:
    """Of the matrix that :func:`_spread` makes of so many numbers; it has a power of two of rows."""
    while n % 2 == 0 and n >= 2 * APART:
        n //= 2
    return n


@_compiled
def _spread(row, spare):  # type: ignore[no-untyped-def]
    """Numbers turned by a Hadamard matrix, in place, so that a large one becomes many of middling size.

    ``row`` (n,) as a matrix with :func:`columns` is multiplied from the left by the matrix of ones and minus ones.
    ``spare`` (n,): for what is on its way.
    """
    half, turns = row.shape[0], 0
    while half % 2 == 0 and half >= 2 * APART:
        half //= 2
        if turns % 2 == 0:
            _sums(row, spare, half)
        else:
            _sums(spare, row, half)
        turns += 1
    if turns % 2 == 1:
        row[:] = spare


@_compiled
def _sums(given, out, half):  # type: ignore[no-untyped-def]
    """Sums and differences of numbers that are ``half`` apart."""
    for begin in range(0, given.shape[0], 2 * half):
        one, other = given[begin : begin + half], given[begin + half : begin + 2 * half]
        plus, minus = out[begin : begin + half], out[begin + half : begin + 2 * half]
        for i in range(half):
            plus[i] = one[i] + other[i]
        for i in range(half):
            minus[i] = one[i] - other[i]


@_compiled
def _inverse_norm(row, epsilon):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(row.shape[0]):
        total += row[i] * row[i]
    return _ONE / np.sqrt(total / np.float32(row.shape[0]) + epsilon)


@_compiled
def enter(hidden, weight, epsilon, out, step):  # type: ignore[no-untyped-def]
    """Hidden states (T, H), normed, in 8 bits."""
    row, spare = np.empty(hidden.shape[1], np.float32), np.empty(hidden.shape[1], np.float32)
    for t in range(hidden.shape[0]):
        state = hidden[t]
        norm = _inverse_norm(state, epsilon)
        for i in range(row.shape[0]):
            row[i] = state[i] * norm * weight[i]
        _spread(row, spare)
        step[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def project(acc, step, scale, norms, epsilon, rotation, at, heads, queries, query_step, kept, kept_step):  # type: ignore[no-untyped-def]
    """Queries, keys and values out of their product, normed and turned by their position, in 8 bits.

    ``norms`` (2, D): weights of query and key; ``rotation`` (T, D): cosines, then sines; ``at`` (T, 5): where a token's
    numbers lie, see :func:`_row`, and its slot. ``queries`` (rows, D) and ``query_step`` (rows,): of every token and
    head; ``kept`` (2, KV heads, slots, D) and ``kept_step`` (2, KV heads, slots): keys and values.
    """
    size, groups = queries.shape[1], kept.shape[1]
    half = size // 2
    row, turned = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, turned_bits = row.view(np.int32), turned.view(np.int32)
    for t in range(step.shape[0]):
        slot = at[t, 4]
        for head in range(heads + 2 * groups):
            found, unit = acc[t, head * size : (head + 1) * size], scale[head * size : (head + 1) * size]
            for i in range(size):
                row[i] = np.float32(found[i]) * step[t] * unit[i]
            if head >= heads + groups:
                group = head - heads - groups
                kept_step[1, group, slot] = _to_int8(row, bits, kept[1, group, slot])
                continue
            norm = _inverse_norm(row, epsilon)
            weight = norms[0 if head < heads else 1]
            for i in range(half):
                one, other = row[i] * norm * weight[i], row[i + half] * norm * weight[i + half]
                cosine, sine = rotation[t, i], rotation[t, i + half]
                turned[i] = one * cosine - other * sine
                turned[i + half] = other * cosine + one * sine
            if head < heads:
                place = _row(at[t], head, heads // groups)
                query_step[place] = _to_int8(turned, turned_bits, queries[place])
            else:
                kept_step[0, head - heads, slot] = _to_int8(turned, turned_bits, kept[0, head - heads, slot])


@_compiled
def _row(at, head, group):  # type: ignore[no-untyped-def]
    """The row of a token and head, ``group`` of which share a key.

    ``at``: the first row of the token's block, the block's tokens, the rows that it has for each key head, and the
    token's place in it.
    """
    return at[0] + head // group * at[2] + head % group * at[1] + at[3]


@_compiled
def weigh(scores, regions, masks, query_step, kept_step, scaling, weights, step):  # type: ignore[no-untyped-def]
    """Softmax of ``scores``, products of queries and keys, times the steps of the values, in 8 bits: ``weights``.

    A region (of ``regions``, (n, 9)) is a block's queries of one key head: where its scores begin, its first row, how
    many rows, tokens and keys it has, how far apart the scores of two rows are, its first slot, its key head, and where
    its mask, (tokens, keys), begins in ``masks``. ``step`` (rows,): what one unit of a product of weights and values
    stands for. (As SageAttention has it, Zhang et al. 2024, arXiv 2410.02367, but with weights row by row.)
    """
    most = 128  # of shorter rows, which may lie closer together, the compiler is as suspicious
    for region in range(regions.shape[0]):
        most = max(most, regions[region, 4])
    row, power = np.empty(most, np.float32), np.empty(most, np.int32)
    bits, factor = row.view(np.int32), power.view(np.float32)
    for region in range(regions.shape[0]):
        begin, first, rows, length, keys, apart, slot, group, mask = regions[region]
        key_step, value_step = kept_step[0, group, slot : slot + keys], kept_step[1, group, slot : slot + keys]
        for r in range(rows):
            at, seen = begin + r * apart, mask + r % length * keys
            found, sees = scores[at : at + keys], masks[seen : seen + keys]
            unit = query_step[first + r] * scaling * _LOG2E
            for j in range(keys):
                value = np.float32(found[j]) * unit * key_step[j]
                row[j] = value if sees[j] else _NEVER
            # Of floats, too, in vectors: with all but the sign turned round in negative ones, bits are in order.
            highest = _LOWEST
            for j in range(keys):
                highest = max(highest, bits[j] ^ ((bits[j] >> np.int32(31)) & _ABSOLUTE))
            peak = np.int32(highest ^ ((highest >> np.int32(31)) & _ABSOLUTE)).view(np.float32)
            for j in range(keys):
                x = max(row[j] - peak, _FAINTEST)
                whole = np.rint(x)
                power[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
                x -= whole
                row[j] = _ONE + x * (_E1 + x * (_E2 + x * (_E3 + x * (_E4 + x * _E5))))
            for j in range(keys):
                row[j] *= factor[j]
            total = np.float32(0)
            for j in range(keys):
                total += row[j]
            for j in range(keys):
                row[j] *= value_step[j]
            step[first + r] = _to_int8(row[:keys], bits[:keys], weights[at : at + keys]) / total
            weights[at + keys : at + apart] = 0


@_compiled
def attended(acc, acc_step, at, heads, groups, smooth, out, step):  # type: ignore[no-untyped-def]
    """What attention gave, ``acc`` (rows, D) and ``acc_step`` (rows,), in 8 bits: (T, heads * D)."""
    size = acc.shape[1]
    row, spare = np.empty(heads * size, np.float32), np.empty(heads * size, np.float32)
    for t in range(step.shape[0]):
        for head in range(heads):
            place = _row(at[t], head, heads // groups)
            part, of_head = row[head * size : (head + 1) * size], smooth[head * size : (head + 1) * size]
            for i in range(size):
                part[i] = np.float32(acc[place, i]) * acc_step[place] * of_head[i]
        _spread(row, spare)
        step[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def add(acc, step, scale, after, hidden, before, epsilon, out, step_out):  # type: ignore[no-untyped-def]
    """A product, normed by ``after``, added to the hidden states; these, normed by ``before``, in 8 bits."""
    row, spare = np.empty(hidden.shape[1], np.float32), np.empty(hidden.shape[1], np.float32)
    for t in range(hidden.shape[0]):
        state = hidden[t]
        for i in range(row.shape[0]):
            row[i] = np.float32(acc[t, i]) * step[t] * scale[i]
        norm = _inverse_norm(row, epsilon)
        for i in range(row.shape[0]):
            state[i] += row[i] * norm * after[i]
        norm = _inverse_norm(state, epsilon)
        for i in range(row.shape[0]):
            row[i] = state[i] * norm * before[i]
        _spread(row, spare)
        step_out[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def activate(acc, step, scale, smooth, out, step_out):  # type: ignore[no-untyped-def]
    """GELU (by tanh) of the first half of a product times the second half, in 8 bits."""
    size = smooth.shape[0]
    row, spare = np.empty(size, np.float32), np.empty(size, np.float32)
    of_gate, of_up = scale[:size], scale[size:]
    for t in range(step.shape[0]):
        gates, ups = acc[t, :size], acc[t, size:]
        for i in range(size):
            gate = np.float32(gates[i]) * step[t] * of_gate[i]
            up = np.float32(ups[i]) * step[t] * of_up[i]
            x = min(max(_GELU * (gate + _CUBE * gate * gate * gate), -_REACH), _REACH)
            square = x * x
            above = _P9 + square * (_P11 + square * _P13)
            above = x * (_P1 + square * (_P3 + square * (_P5 + square * (_P7 + square * above))))
            below = _Q0 + square * (_Q2 + square * (_Q4 + square * _Q6))
            row[i] = _HALF * gate * (_ONE + above / below) * up * smooth[i]
        _spread(row, spare)
        step_out[t] = _to_int8(row, row.view(np.int32), out[t])

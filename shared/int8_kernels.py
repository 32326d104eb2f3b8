"""What stands between the matrix products of a layer in 8 bits: a pass over each token's numbers, compiled.

Each function goes over tokens one by one and does all that is to be done with one while it is in the cache, where
tensor operations would write it out and read it back after every step. Products are in ``acc``, 32-bit integers of
shape (T, n); ``step`` (T,) is what one unit of a token's 8-bit numbers stands for, ``scale`` (n,) what one of an
output's weights does. bfloat16 is its bits in uint16. Nothing here holds Python's lock.
"""

from __future__ import annotations

from typing import Any

import numba  # type: ignore[import-untyped]
import numpy as np

# Sums may be taken in any order, and there are no infinities: that lets the compiler use vectors.
_compiled: Any = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)

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


@_compiled
def _to_bfloat16(bits, out):  # type: ignore[no-untyped-def]
    """Bits of float32 to the nearest bfloat16."""
    for i in range(bits.shape[0]):
        bit = bits[i]
        out[i] = np.uint16((bit + np.uint32(0x7FFF) + ((bit >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_compiled
def _inverse_norm(row, epsilon):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(row.shape[0]):
        total += row[i] * row[i]
    return _ONE / np.sqrt(total / np.float32(row.shape[0]) + epsilon)


@_compiled
def enter(hidden, weight, epsilon, out, step):  # type: ignore[no-untyped-def]
    """Hidden states (T, H), normed, in 8 bits."""
    row = np.empty(hidden.shape[1], np.float32)
    for t in range(hidden.shape[0]):
        state = hidden[t]
        norm = _inverse_norm(state, epsilon)
        for i in range(row.shape[0]):
            row[i] = state[i] * norm * weight[i]
        step[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def project(acc, step, scale, norms, epsilon, rotation, at, first, heads, queries, keys, values):  # type: ignore[no-untyped-def]
    """Queries, keys and values out of their product, normed and turned by their position, in bfloat16.

    ``norms`` (2, D): weights of query and key; ``rotation`` (T, D): cosines, then sines; ``at`` (T, 3): start and
    length of a token's block, and its slot; ``first``: place in the stream of the first token here. ``queries``
    (tokens of the stream * heads, D): in each block head by head. ``keys``, ``values``: (KV heads, slots, D).
    """
    size = queries.shape[1]
    half = size // 2
    row, turned = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, turned_bits = row.view(np.uint32), turned.view(np.uint32)
    for t in range(step.shape[0]):
        start, length, slot = at[t, 0], at[t, 1], at[t, 2]
        for head in range(heads + 2 * keys.shape[0]):
            column = head * size
            for i in range(size):
                row[i] = np.float32(acc[t, column + i]) * step[t] * scale[column + i]
            if head >= heads + keys.shape[0]:
                _to_bfloat16(bits, values[head - heads - keys.shape[0], slot])
                continue
            norm = _inverse_norm(row, epsilon)
            weight = norms[0 if head < heads else 1]
            for i in range(half):
                one, other = row[i] * norm * weight[i], row[i + half] * norm * weight[i + half]
                cosine, sine = rotation[t, i], rotation[t, i + half]
                turned[i] = one * cosine - other * sine
                turned[i + half] = other * cosine + one * sine
            if head < heads:
                _to_bfloat16(turned_bits, queries[start * heads + head * length + first + t - start])
            else:
                _to_bfloat16(turned_bits, keys[head - heads, slot])


@_compiled
def attended(attention, at, first, heads, smooth, out, step):  # type: ignore[no-untyped-def]
    """What attention gave, ordered as ``queries`` of :func:`project`, in 8 bits: (T, heads * D)."""
    size = attention.shape[1]
    row = np.empty(heads * size, np.float32)
    bits = row.view(np.uint32)
    for t in range(step.shape[0]):
        start, length = at[t, 0], at[t, 1]
        for head in range(heads):
            said = attention[start * heads + head * length + first + t - start]
            for i in range(size):
                bits[head * size + i] = np.uint32(said[i]) << np.uint32(16)
        for i in range(row.shape[0]):
            row[i] *= smooth[i]
        step[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def add(acc, step, scale, after, hidden, before, epsilon, out, step_out):  # type: ignore[no-untyped-def]
    """A product, normed by ``after``, added to the hidden states; these, normed by ``before``, in 8 bits."""
    row = np.empty(hidden.shape[1], np.float32)
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
        step_out[t] = _to_int8(row, row.view(np.int32), out[t])


@_compiled
def activate(acc, step, scale, smooth, out, step_out):  # type: ignore[no-untyped-def]
    """GELU (by tanh) of the first half of a product times the second half, in 8 bits."""
    size = smooth.shape[0]
    row = np.empty(size, np.float32)
    for t in range(step.shape[0]):
        for i in range(size):
            gate = np.float32(acc[t, i]) * step[t] * scale[i]
            up = np.float32(acc[t, size + i]) * step[t] * scale[size + i]
            x = min(max(_GELU * (gate + _CUBE * gate * gate * gate), -_REACH), _REACH)
            square = x * x
            above = _P9 + square * (_P11 + square * _P13)
            above = x * (_P1 + square * (_P3 + square * (_P5 + square * (_P7 + square * above))))
            below = _Q0 + square * (_Q2 + square * (_Q4 + square * _Q6))
            row[i] = _HALF * gate * (_ONE + above / below) * up * smooth[i]
        step_out[t] = _to_int8(row, row.view(np.int32), out[t])

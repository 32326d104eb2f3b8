"""The compiled kernels between the int8 matrix products of a layer: dequantise, compute in float32, quantise.

Each kernel makes one pass over the tokens and does everything a token needs while its numbers are in the CPU's cache;
separate tensor operations would write them out and read them back after every step. All release the GIL.

Throughout, T is the number of tokens. ``acc`` (T, n) is a product of int8 activations and weights, integers in int32 or
float32; ``scale`` (T,) holds the activations' scales, one per token, ``weight_scale`` (n,) the weights', one per output
channel: element (t, i) stands for ``acc[t, i] * scale[t] * weight_scale[i]``. ``out`` (T, n) receives int8 activations
and ``out_scale`` (T,) their scales. Inputs of a linear layer are rotated by a Hadamard matrix (:func:`_hadamard`)
before they are quantised, as in QuaRot (Ashkboos et al. 2024, arXiv 2404.00456); its weights are rotated to match when
they are quantised.

Loops run over slices from index 0: with an index that could be negative, the compiler would suspect neighbouring arrays
of aliasing and fall back to a loop that rounds differently.
"""

from __future__ import annotations

from typing import Any

import numba  # type: ignore[import-untyped]
import numpy as np

# fastmath: sums may be reordered and there are no infinities, so the compiler can vectorise.
_compiled: Any = numba.njit(nogil=True, fastmath=True, error_model="numpy", cache=True)

MIN_STRIDE = 32  # of the butterflies in :func:`_hadamard`: shorter loops cost more than they gain
_ONE, _HALF, _INT8_MAX = np.float32(1), np.float32(0.5), np.float32(127)
_SIGN_CLEARED, _MIN_PEAK = np.int32(0x7FFFFFFF), np.float32(1e-5).view(np.int32)
# tanh as a rational function, accurate to a few ulp (coefficients from Eigen, MathFunctionsImpl.h).
_TANH_LIMIT = np.float32(7.9)
_P1, _P3, _P5, _P7 = (
    np.float32(v) for v in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05, 5.12229709037114e-08)
)
_P9, _P11, _P13 = (np.float32(v) for v in (-8.60467152213735e-11, 2.00018790482477e-13, -2.76076847742355e-16))
_Q0, _Q2, _Q4, _Q6 = (
    np.float32(v) for v in (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
)
# 2**x for x in -0.5..0.5 as a polynomial, with a relative error below 2e-7.
_E1, _E2, _E3, _E4, _E5 = (
    np.float32(v) for v in (0.6931468559, 0.2402223793, 0.05550893005, 0.009671702585, 0.001321867487)
)
_LOG2E, _MIN_EXPONENT, _MASKED = np.float32(1.4426950408889634), np.float32(-126), np.float32(-1e30)
_INT32_MIN = np.int32(-(2**31))
_GELU, _GELU_CUBE = np.float32(0.7978845608028654), np.float32(0.044715)  # sqrt(2 / pi)


@_compiled
def _quantise(row, bits, out):  # type: ignore[no-untyped-def]
    """Quantises one token symmetrically into ``out`` and returns its scale. ``bits``: the row viewed as int32."""
    # Non-negative floats sort like their bits, and only an integer maximum is vectorised.
    largest = _MIN_PEAK
    for i in range(bits.shape[0]):
        largest = max(largest, bits[i] & _SIGN_CLEARED)
    peak = np.int32(largest).view(np.float32)
    inverse = _INT8_MAX / peak
    for i in range(row.shape[0]):
        out[i] = np.int8(np.int32(np.rint(row[i] * inverse)))
    return peak / _INT8_MAX


def hadamard_columns(n: int) -> int:
    """Columns of the (2**k, columns) matrix that :func:`_hadamard` reshapes ``n`` numbers to."""
    while n % 2 == 0 and n >= 2 * MIN_STRIDE:
        n //= 2
    return n


@_compiled
def _hadamard(row, spare):  # type: ignore[no-untyped-def]
    """Rotates ``row`` (n,) by a Hadamard matrix in place, which spreads an outlier over many numbers.

    The row, reshaped to :func:`hadamard_columns` columns, is multiplied from the left by the unnormalised (+1, -1)
    matrix. ``spare`` (n,) is scratch memory.
    """
    half, rounds = row.shape[0], 0
    while half % 2 == 0 and half >= 2 * MIN_STRIDE:
        half //= 2
        if rounds % 2 == 0:
            _butterflies(row, spare, half)
        else:
            _butterflies(spare, row, half)
        rounds += 1
    if rounds % 2 == 1:
        row[:] = spare


@_compiled
def _butterflies(given, out, half):  # type: ignore[no-untyped-def]
    """One round of the fast Walsh-Hadamard transform: sums and differences of numbers ``half`` apart."""
    for begin in range(0, given.shape[0], 2 * half):
        one, other = given[begin : begin + half], given[begin + half : begin + 2 * half]
        plus, minus = out[begin : begin + half], out[begin + half : begin + 2 * half]
        for i in range(half):
            plus[i] = one[i] + other[i]
        for i in range(half):
            minus[i] = one[i] - other[i]


@_compiled
def _inverse_rms(row, epsilon):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for i in range(row.shape[0]):
        total += row[i] * row[i]
    return _ONE / np.sqrt(total / np.float32(row.shape[0]) + epsilon)


@_compiled
def rms_norm_quantise(hidden, weight, epsilon, out, out_scale):  # type: ignore[no-untyped-def]
    """RMSNorm of hidden states (T, H) by ``weight`` (H,), rotated and quantised."""
    row, spare = np.empty(hidden.shape[1], np.float32), np.empty(hidden.shape[1], np.float32)
    for t in range(hidden.shape[0]):
        state = hidden[t]
        norm = _inverse_rms(state, epsilon)
        for i in range(row.shape[0]):
            row[i] = state[i] * norm * weight[i]
        _hadamard(row, spare)
        out_scale[t] = _quantise(row, row.view(np.int32), out[t])


@_compiled
def qkv_norm_rope_quantise(  # type: ignore[no-untyped-def]
    acc, scale, weight_scale, norms, epsilon, rotation, places, heads, queries, query_scale, kv, kv_scale
):
    """Queries, keys and values from their joint product: RMSNorm and RoPE of queries and keys, then quantised.

    ``norms`` (2, D): the norms' weights of queries and keys; ``rotation`` (T, D): cosines, then sines, of each token's
    position; ``places`` (T, 5): where a token's numbers go, see :func:`_query_row`, and last its cache slot.
    ``queries`` (rows, D) and ``query_scale`` (rows,) receive a row per token and head; ``kv`` (2, KV heads, slots, D)
    and ``kv_scale`` (2, KV heads, slots) the keys and values.
    """
    size, groups = queries.shape[1], kv.shape[1]
    half = size // 2
    row, turned = np.empty(size, np.float32), np.empty(size, np.float32)
    bits, turned_bits = row.view(np.int32), turned.view(np.int32)
    for t in range(scale.shape[0]):
        slot = places[t, 4]
        for head in range(heads + 2 * groups):
            part = acc[t, head * size : (head + 1) * size]
            channel_scale = weight_scale[head * size : (head + 1) * size]
            for i in range(size):
                row[i] = np.float32(part[i]) * scale[t] * channel_scale[i]
            if head >= heads + groups:
                group = head - heads - groups
                kv_scale[1, group, slot] = _quantise(row, bits, kv[1, group, slot])
                continue
            norm = _inverse_rms(row, epsilon)
            weight = norms[0 if head < heads else 1]
            for i in range(half):
                one, other = row[i] * norm * weight[i], row[i + half] * norm * weight[i + half]
                cosine, sine = rotation[t, i], rotation[t, i + half]
                turned[i] = one * cosine - other * sine
                turned[i + half] = other * cosine + one * sine
            if head < heads:
                place = _query_row(places[t], head, heads // groups)
                query_scale[place] = _quantise(turned, turned_bits, queries[place])
            else:
                kv_scale[0, head - heads, slot] = _quantise(turned, turned_bits, kv[0, head - heads, slot])


@_compiled
def _query_row(place, head, group):  # type: ignore[no-untyped-def]
    """The row of a token's query in one head, where ``group`` heads share a key head.

    ``place``: the first row of the token's block, the tokens of the block, the rows per key head (padded), and the
    token's index in the block.
    """
    return place[0] + head // group * place[2] + head % group * place[1] + place[3]


@_compiled
def softmax_quantise(  # type: ignore[no-untyped-def]
    scores, regions, masks, query_scale, kv_scale, scaling, weights, out_scale
):
    """Softmax of integer attention scores, times the scales of the values, quantised into ``weights``.

    A region, a row of ``regions`` (n, 9), is one block's queries of one key head: offset of its scores, its first
    query row, its number of rows, of tokens and of keys, the stride between two rows of scores, its first cache slot,
    its key head, and the offset of its mask, (tokens, keys), in ``masks``. ``out_scale`` (rows,): scale of a row's
    product with the int8 values. (SageAttention, Zhang et al. 2024, arXiv 2410.02367, but with one scale per row.)
    """
    most = 128  # shorter buffers may be allocated next to each other, where the compiler would suspect aliasing
    for region in range(regions.shape[0]):
        most = max(most, regions[region, 4])
    row, power = np.empty(most, np.float32), np.empty(most, np.int32)
    bits, factor = row.view(np.int32), power.view(np.float32)
    for region in range(regions.shape[0]):
        begin, first, rows, length, keys, stride, slot, group, mask = regions[region]
        key_scale, value_scale = kv_scale[0, group, slot : slot + keys], kv_scale[1, group, slot : slot + keys]
        for r in range(rows):
            at, seen = begin + r * stride, mask + r % length * keys
            row_scores, visible = scores[at : at + keys], masks[seen : seen + keys]
            row_scale = query_scale[first + r] * scaling * _LOG2E
            for j in range(keys):
                value = np.float32(row_scores[j]) * row_scale * key_scale[j]
                row[j] = value if visible[j] else _MASKED
            # The maximum of floats, vectorised: with all bits but the sign flipped in negative ones, bits sort right.
            highest = _INT32_MIN
            for j in range(keys):
                highest = max(highest, bits[j] ^ ((bits[j] >> np.int32(31)) & _SIGN_CLEARED))
            peak = np.int32(highest ^ ((highest >> np.int32(31)) & _SIGN_CLEARED)).view(np.float32)
            for j in range(keys):
                x = max(row[j] - peak, _MIN_EXPONENT)
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
                row[j] *= value_scale[j]
            out_scale[first + r] = _quantise(row[:keys], bits[:keys], weights[at : at + keys]) / total
            weights[at + keys : at + stride] = 0


@_compiled
def attention_quantise(acc, scale, places, heads, groups, smooth, out, out_scale):  # type: ignore[no-untyped-def]
    """Attention's output, ``acc`` (rows, D) and ``scale`` (rows,), gathered by token, smoothed, rotated and quantised.

    ``out``: (T, heads * D); ``smooth`` (heads * D,): the factors of the output projection's inputs.
    """
    size = acc.shape[1]
    row, spare = np.empty(heads * size, np.float32), np.empty(heads * size, np.float32)
    for t in range(out_scale.shape[0]):
        for head in range(heads):
            place = _query_row(places[t], head, heads // groups)
            part, head_smooth = row[head * size : (head + 1) * size], smooth[head * size : (head + 1) * size]
            for i in range(size):
                part[i] = np.float32(acc[place, i]) * scale[place] * head_smooth[i]
        _hadamard(row, spare)
        out_scale[t] = _quantise(row, row.view(np.int32), out[t])


@_compiled
def residual_norm_quantise(  # type: ignore[no-untyped-def]
    acc, scale, weight_scale, after, hidden, before, epsilon, out, out_scale
):
    """RMSNorm of a product by ``after``, added to ``hidden`` (T, H) in place; its RMSNorm by ``before``, quantised."""
    row, spare = np.empty(hidden.shape[1], np.float32), np.empty(hidden.shape[1], np.float32)
    for t in range(hidden.shape[0]):
        state = hidden[t]
        for i in range(row.shape[0]):
            row[i] = np.float32(acc[t, i]) * scale[t] * weight_scale[i]
        norm = _inverse_rms(row, epsilon)
        for i in range(row.shape[0]):
            state[i] += row[i] * norm * after[i]
        norm = _inverse_rms(state, epsilon)
        for i in range(row.shape[0]):
            row[i] = state[i] * norm * before[i]
        _hadamard(row, spare)
        out_scale[t] = _quantise(row, row.view(np.int32), out[t])


@_compiled
def gelu_multiply_quantise(acc, scale, weight_scale, smooth, out, out_scale):  # type: ignore[no-untyped-def]
    """GELU (tanh approximation) of the first half of a product times the second half, rotated and quantised."""
    size = smooth.shape[0]
    row, spare = np.empty(size, np.float32), np.empty(size, np.float32)
    gate_scale, up_scale = weight_scale[:size], weight_scale[size:]
    for t in range(scale.shape[0]):
        gates, ups = acc[t, :size], acc[t, size:]
        for i in range(size):
            gate = np.float32(gates[i]) * scale[t] * gate_scale[i]
            up = np.float32(ups[i]) * scale[t] * up_scale[i]
            x = min(max(_GELU * (gate + _GELU_CUBE * gate * gate * gate), -_TANH_LIMIT), _TANH_LIMIT)
            square = x * x
            above = _P9 + square * (_P11 + square * _P13)
            above = x * (_P1 + square * (_P3 + square * (_P5 + square * (_P7 + square * above))))
            below = _Q0 + square * (_Q2 + square * (_Q4 + square * _Q6))
            row[i] = _HALF * gate * (_ONE + above / below) * up * smooth[i]
        _hadamard(row, spare)
        out_scale[t] = _quantise(row, row.view(np.int32), out[t])

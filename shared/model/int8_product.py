"""Exact products of int8 activations on x86 CPUs without int8 dot-product instructions (AVX2, no VNNI or AMX).

Libraries do not have them: torch takes plain loops, and what oneDNN and FBGEMM multiply in 16 bits overflows unless one
side is smaller, as weights can be made but keys and values are not. Here both are widened to 16 bits; ``vpmaddwd``
multiplies 16 pairs and adds neighbouring products in 32 bits.

Blocked as in GotoBLAS (Goto and van de Geijn 2008): a tile of the result stays in registers, and what it is computed
from is packed in the order in which it is read, in blocks that fit the L2 cache.
"""

from __future__ import annotations

import platform
import threading
from typing import Any

import numba  # type: ignore[import-untyped]
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types  # type: ignore[import-untyped]
from numba.extending import intrinsic  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor

_compiled: Any = numba.njit(nogil=True, error_model="numpy", cache=True)

_ROWS, _COLUMNS = 6, 16  # of a tile: 12 of the 16 registers hold its sums
_PANELS = 4  # times 16 columns are packed together: a line of the CPU's cache
_UNROLLED = 2  # pairs of numbers in a step of the innermost loop
_BLOCK = 100_000  # int16 of a block of rows
_QUERIES, _KEYS, _STEP = 3, 4, 16  # a tile of a transposed product, and the numbers of a row taken at once

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _SHORTS, _SUMS = ir.VectorType(_I8, 16), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)


def supported() -> bool:
    """Whether this CPU can run these kernels."""
    return platform.machine().lower() in ("x86_64", "amd64") and bool(torch.cpu.get_capabilities().get("avx2"))


class _Scratch(threading.local):
    """A thread's memory for widened blocks, reused: allocating it costs more than writing to it."""

    def __init__(self) -> None:
        self._made = np.empty(0, np.int16)

    def __call__(self, size: int) -> NDArray[np.int16]:
        """So many int16, at a multiple of 64 bytes."""
        if len(self._made) < size + 32:
            self._made = np.empty(size + 32, np.int16)
        first = -int(self._made.ctypes.data) % 64 // 2
        return self._made[first : first + size]


_scratch = _Scratch()


def multiply(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    """``one`` (T, K) times ``other`` (K, N), both int8, into ``out`` (T, N), int32: as ``torch._int_mm``.

    All are contiguous, or ``other`` is the transpose of a contiguous matrix whose rows are a multiple of 16 long.
    """
    rows, inner = one.shape
    if other.stride(1) == 1:
        padded = -(-inner // (2 * _UNROLLED)) * 2 * _UNROLLED
        block = max(1, min(_BLOCK // padded, rows) // _ROWS) * _ROWS
        made = _scratch((block + _ROWS) * padded + _PANELS * _COLUMNS * padded)
        _multiply(one.numpy(), other.numpy(), out.numpy(), block, padded, made)
    else:
        _multiply_transposed(one.numpy(), other.t().numpy(), out.numpy())
    return out


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _offset(builder: Any, address: Any, number: int) -> Any:
    return builder.add(address, ir.Constant(_I64, number))


def _load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(_pointer(builder, address, kind), align=1)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _multiply_add(builder: Any, total: Any, one: Any, other: Any) -> Any:
    """``total`` (8 int32) plus the sums of neighbouring products of 16 int16."""
    kind = ir.FunctionType(_SUMS, [_SHORTS, _SHORTS])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
    return builder.add(total, builder.call(function, [one, other]))


def _loop(builder: Any, steps: Any, addresses: list[Any], sums: int, body: Any) -> list[Any]:
    """A loop of ``steps`` over vectors of sums that begin at zero: they stay in registers.

    ``body`` takes addresses and sums, and returns both as they are after a step. At least one step is made.
    """
    before = builder.block
    loop, after = builder.append_basic_block("step"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    count = builder.phi(_I64)
    places = [builder.phi(_I64) for _ in addresses]
    totals = [builder.phi(_SUMS) for _ in range(sums)]
    next_places, next_totals = body(places, totals)
    next_count = _offset(builder, count, 1)
    end = builder.block
    builder.cbranch(builder.icmp_signed("<", next_count, steps), loop, after)
    for phi, first, following in zip(
        (count, *places, *totals),
        (ir.Constant(_I64, 0), *addresses, *(ir.Constant(_SUMS, [0] * 8) for _ in range(sums))),
        (next_count, *next_places, *next_totals),
        strict=True,
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(following, end)
    builder.position_at_end(after)
    return next_totals


@intrinsic  # type: ignore[untyped-decorator]
def _tile(typing: Any, rows: Any, row_stride: Any, columns: Any, steps: Any, out: Any, stride: Any) -> Any:
    """A tile of the product of widened rows and packed columns, written to ``out``. Strides in bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, row_step, second, number, result, step = arguments
        rows = [builder.mul(row_step, ir.Constant(_I64, i)) for i in range(_ROWS)]

        def body(places: list[Any], totals: list[Any]) -> tuple[list[Any], list[Any]]:
            row, column = places
            for pair in range(_UNROLLED):
                halves = [_load(builder, _offset(builder, column, 64 * pair + 32 * half), _SHORTS) for half in (0, 1)]
                following = []
                for i in range(_ROWS):
                    both = _load(builder, _offset(builder, builder.add(row, rows[i]), 4 * pair), _I32)
                    one = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), both, ir.Constant(_I32, 0))
                    one = builder.shuffle_vector(one, ir.Constant(_SUMS, ir.Undefined), ir.Constant(_SUMS, [0] * 8))
                    one = builder.bitcast(one, _SHORTS)
                    following += [_multiply_add(builder, totals[2 * i + h], one, halves[h]) for h in (0, 1)]
                totals = following
            return [
                _offset(builder, row, 4 * _UNROLLED),
                _offset(builder, column, 64 * _UNROLLED),
            ], totals

        totals = _loop(builder, number, [first, second], 2 * _ROWS, body)
        for i in range(_ROWS):
            for half in (0, 1):
                _store(builder, totals[2 * i + half], _offset(builder, result, 32 * half))
            result = builder.add(result, step)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


@intrinsic  # type: ignore[untyped-decorator]
def _interleave(typing: Any, one: Any, other: Any, out: Any) -> Any:
    """Two times 16 int8 as 16 pairs of int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, result = arguments
        order = ir.Constant(ir.VectorType(_I32, 32), [i // 2 + 16 * (i % 2) for i in range(32)])
        pairs = builder.shuffle_vector(_load(builder, first, _BYTES), _load(builder, second, _BYTES), order)
        _store(builder, builder.sext(pairs, ir.VectorType(_I16, 32)), result)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


@intrinsic  # type: ignore[untyped-decorator]
def _products(
    typing: Any, rows: Any, row_stride: Any, keys: Any, key_stride: Any, steps: Any, out: Any, stride: Any
) -> Any:
    """A tile of the product of rows and keys, whose numbers both lie side by side."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, row_step, second, key_step, number, result, step = arguments

        def body(places: list[Any], totals: list[Any]) -> tuple[list[Any], list[Any]]:
            (at,) = places
            widened = []
            for base, bytes_, n in ((first, row_step, _QUERIES), (second, key_step, _KEYS)):
                starts = [builder.add(base, builder.mul(bytes_, ir.Constant(_I64, i))) for i in range(n)]
                widened.append(
                    [builder.sext(_load(builder, builder.add(start, at), _BYTES), _SHORTS) for start in starts]
                )
            queries, others = widened
            return [_offset(builder, at, _STEP)], [
                _multiply_add(builder, totals[_KEYS * i + j], queries[i], others[j])
                for i in range(_QUERIES)
                for j in range(_KEYS)
            ]

        totals = _loop(builder, number, [ir.Constant(_I64, 0)], _QUERIES * _KEYS, body)
        kind = ir.FunctionType(_I32, [_SUMS])
        total = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.add.v8i32")
        for i in range(_QUERIES):
            for j in range(_KEYS):
                _store(builder, builder.call(total, [totals[_KEYS * i + j]]), _offset(builder, result, 4 * j))
            result = builder.add(result, step)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@_compiled
def _multiply(one, other, out, block, padded, scratch):  # type: ignore[no-untyped-def]
    """See :func:`multiply`. ``block``: rows taken together; ``padded``: K, rounded up; ``scratch``: for both."""
    (total, inner), columns = one.shape, other.shape[1]
    width, steps = _PANELS * _COLUMNS, padded // (2 * _UNROLLED)
    rows = scratch[: (block + _ROWS) * padded].reshape(block + _ROWS, padded)
    panels = scratch[(block + _ROWS) * padded :].reshape(_PANELS, padded // 2, 2 * _COLUMNS)
    edge = np.empty((_ROWS, _COLUMNS), np.int32)
    rows[:, inner:] = 0
    for begin in range(0, total, block):
        taken = min(block, total - begin)
        for t in range(taken):
            rows[t, :inner] = one[begin + t]
        rows[taken:, :] = 0
        for left in range(0, columns, width):
            _pack(other, left, panels)
            for panel in range(min(_PANELS, (columns - left + _COLUMNS - 1) // _COLUMNS)):
                column = left + panel * _COLUMNS
                packed, wide = panels[panel].ctypes.data, min(_COLUMNS, columns - column)
                for t in range(0, taken, _ROWS):
                    high = min(_ROWS, taken - t)
                    if high == _ROWS and wide == _COLUMNS:
                        to = out.ctypes.data + 4 * ((begin + t) * columns + column)
                        _tile(rows.ctypes.data + 2 * t * padded, 2 * padded, packed, steps, to, 4 * columns)
                    else:
                        _tile(
                            rows.ctypes.data + 2 * t * padded, 2 * padded, packed, steps, edge.ctypes.data, 4 * _COLUMNS
                        )
                        out[begin + t : begin + t + high, column : column + wide] = edge[:high, :wide]


@_compiled
def _pack(other, left, panels):  # type: ignore[no-untyped-def]
    """Columns of ``other`` from ``left`` on as panels of 16 columns, whose neighbouring rows lie in pairs."""
    inner, columns = other.shape
    for pair in range(panels.shape[1]):
        row = 2 * pair
        for panel in range(panels.shape[0]):
            column = left + panel * _COLUMNS
            if row + 1 < inner and column + _COLUMNS <= columns:
                first = other.ctypes.data + row * columns + column
                _interleave(
                    first, first + columns, panels.ctypes.data + 4 * _COLUMNS * (panel * panels.shape[1] + pair)
                )
            else:
                for i in range(2 * _COLUMNS):
                    r, c = row + i % 2, column + i // 2
                    panels[panel, pair, i] = other[r, c] if r < inner and c < columns else 0


@_compiled
def _multiply_transposed(one, keys, out):  # type: ignore[no-untyped-def]
    """``one`` (T, K) times the transpose of ``keys`` (N, K), where K is a multiple of 16."""
    (total, inner), number = one.shape, keys.shape[0]
    for t in range(0, total, _QUERIES):
        for key in range(0, number, _KEYS):
            if t + _QUERIES <= total and key + _KEYS <= number:
                first, second = one.ctypes.data + t * inner, keys.ctypes.data + key * inner
                _products(
                    first, inner, second, inner, inner // _STEP, out.ctypes.data + 4 * (t * number + key), 4 * number
                )
            else:
                for r in range(t, min(t + _QUERIES, total)):
                    for k in range(key, min(key + _KEYS, number)):
                        sum_ = np.int32(0)
                        for i in range(inner):
                            sum_ += np.int32(one[r, i]) * np.int32(keys[k, i])
                        out[r, k] = sum_

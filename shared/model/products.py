"""Which matrix products this machine is fast at, by a short measurement that is kept in the cache folder.

Instruction sets do not tell: without bfloat16 instructions such products are emulated at a tenth of float32's rate;
without int8 ones ``torch._int_mm`` is a plain loop, but oneDNN's quantised layer is twice as fast as float32. It
multiplies unsigned by signed bytes and adds two products in 16 bits, so it is exact only for weights that are small
enough.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.model.file_cache import build_once

_SHAPE = (128, 640, 1536)  # T, K, N
# What attention multiplies beside it, and how often: 4 % of the work.
_ATTENTION = (32, 256, 160)
_TIMES = 4
_SECONDS = 0.1  # that each product is measured for
_FLOATS = ("float32", "bfloat16")


MOST = 128
"""What the absolute values of a weight's neighbouring rows may sum to: 255 times as much are within 16 bits."""


class Int8(NamedTuple):
    """A way to multiply int8 exactly; products are of ``dtype``, which holds them.

    ``multiply`` writes the product of any two matrices, (T, K) and (K, N), into the third. ``packed`` makes of a weight
    (K, N), within :data:`MOST`, what ``linear`` multiplies rows (T, K) by; the result may be in its last argument.
    """

    dtype: torch.dtype
    multiply: Callable[[Tensor, Tensor, Tensor], Tensor]
    packed: Callable[[Tensor], Any]
    linear: Callable[[Tensor, Any, Tensor], Tensor]


def _int_mm(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    return torch._int_mm(one, other, out=out)  # noqa: SLF001 - torch has no public int8 product


class _Packed(NamedTuple):
    """A weight as oneDNN wants it, and the scales and zero points of its columns, which change nothing."""

    weight: Tensor
    ones: Tensor
    zeros: Tensor


def _packed(weight: Tensor) -> _Packed:
    columns = weight.shape[1]
    made = torch.ops.onednn.qlinear_prepack(weight.t().contiguous(), None)
    return _Packed(made, torch.ones(columns), torch.zeros(columns, dtype=torch.int32))


def _linear(rows: Tensor, weight: _Packed, _: Tensor) -> Tensor:
    unsigned = rows.view(torch.uint8) ^ 128  # int8 plus 128
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        unsigned, 1.0, 128, *weight, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


def _float_mm(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    return torch.mm(one.float(), other.float(), out=out)


TORCH = Int8(torch.int32, _int_mm, lambda weight: weight, _int_mm)
ONEDNN = Int8(torch.float32, _float_mm, _packed, _linear)  # float32 holds integers up to 2**24: a thousand of 127 * 127


def int8_products() -> dict[str, Int8]:
    """Those that this machine can run."""
    supported = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return {"int8": TORCH} | ({"int8 onednn": ONEDNN} if supported else {})


def rates(cache: Path) -> dict[str, float]:
    """GFLOP/s of one core, for float32, bfloat16 and each of :func:`int8_products`; measured once per machine."""
    parts = (torch.__version__, sorted(torch.cpu.get_capabilities().items()), list(int8_products()))
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def make(file: Path) -> None:
        file.write_text(json.dumps(_measured()), encoding="utf-8")

    found: dict[str, float] = json.loads(build_once(cache / f"products-{digest}.json", make).read_bytes())
    return found


def fastest_float(cache: Path) -> str:
    """`bfloat16` or `float32`, whichever a CPU multiplies faster."""
    found = rates(cache)
    return max(_FLOATS, key=found.__getitem__)


def fastest_int8(cache: Path) -> Int8:
    """The fastest of :func:`int8_products`."""
    found, products = rates(cache), int8_products()
    return products[max(products, key=found.__getitem__)]


def prefers_int8(cache: Path) -> bool:
    """Whether some int8 product is faster than those of floats."""
    found = rates(cache)
    return max(found[name] for name in int8_products()) > max(found[name] for name in _FLOATS)


@torch.inference_mode()
def _measured() -> dict[str, float]:
    """The rates, each the best of a few runs."""
    tokens, inner, outer = _SHAPE
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {}
        for name in _FLOATS:
            one, other = (torch.ones(*shape, dtype=getattr(torch, name)) for shape in ((tokens, inner), (outer, inner)))
            found[name] = _rate(partial(F.linear, one, other))
        for name, product in int8_products().items():
            found[name] = _rate(_layer(product))
        return found
    finally:
        torch.set_num_threads(threads)


def _layer(product: Int8) -> Callable[[], None]:
    """What of a layer is multiplied in int8."""

    def drawn(tokens: int, inner: int, outer: int) -> tuple[Tensor, Tensor, Tensor]:
        one, other = (torch.ones(*shape, dtype=torch.int8) for shape in ((tokens, inner), (inner, outer)))
        return one, other, torch.empty(tokens, outer, dtype=product.dtype)

    rows, weight, out = drawn(*_SHAPE)
    packed, attention = product.packed(weight), drawn(*_ATTENTION)

    def run() -> None:
        product.linear(rows, packed, out)
        for _ in range(_TIMES):
            product.multiply(*attention)

    return run


def _rate(run: Callable[[], object]) -> float:
    """GFLOP/s of what multiplies ``_SHAPE``, by this thread's own time: others may use the core too."""
    run()  # which prepares it
    tokens, inner, outer = _SHAPE
    spent, best = 0.0, float("inf")
    while spent < _SECONDS:
        begin = time.thread_time()
        run()
        seconds = max(time.thread_time() - begin, 1e-6)
        spent, best = spent + seconds, min(best, seconds)
    return round(2e-9 * tokens * inner * outer / best, 1)

"""The kernels against plain integer products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.model import int8_product

pytestmark = pytest.mark.skipif(not int8_product.supported(), reason="needs AVX2")


def drawn(*shape):
    return torch.randint(-127, 128, shape, dtype=torch.int8)


@settings(max_examples=50)
@given(rows=st.integers(1, 40), inner=st.integers(1, 70), columns=st.integers(1, 140))
def test_products_are_exact(rows, inner, columns):
    one, other, out = drawn(rows, inner), drawn(inner, columns), torch.empty(rows, columns, dtype=torch.int32)
    assert torch.equal(int8_product.multiply(one, other, out), one.int() @ other.int())


@settings(max_examples=50)
@given(rows=st.integers(1, 20), inner=st.sampled_from((16, 32, 256)), columns=st.integers(1, 40))
def test_products_by_a_transpose_are_exact(rows, inner, columns):
    one, other, out = drawn(rows, inner), drawn(columns, inner).t(), torch.empty(rows, columns, dtype=torch.int32)
    assert torch.equal(int8_product.multiply(one, other, out), one.int() @ other.int())


def test_many_rows_are_taken_in_blocks():
    one, other, out = drawn(512, 1024), drawn(1024, 64), torch.empty(512, 64, dtype=torch.int32)
    assert torch.equal(int8_product.multiply(one, other, out), one.int() @ other.int())


def test_the_largest_numbers_do_not_overflow():
    one, other = torch.full((16, 2048), -127, dtype=torch.int8), torch.full((2048, 16), 127, dtype=torch.int8)
    out = torch.empty(16, 16, dtype=torch.int32)
    assert (int8_product.multiply(one, other, out) == -127 * 127 * 2048).all()

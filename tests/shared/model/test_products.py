"""What this machine's products are, and which of them is chosen."""

import json
from pathlib import Path

import pytest
import torch

from shared.model import products


@pytest.fixture
def rates(tmp_path, monkeypatch):
    """Sets the rates that were measured."""
    found = {"float32": 50.0, "bfloat16": 7.0} | dict.fromkeys(products.int8_products(), 1.0)

    def given(**changes: float) -> Path:
        monkeypatch.setattr(products, "rates", lambda _: found | changes)
        return tmp_path

    return given


def extreme_weights(inner, outer):
    """Weights whose neighbours sum to the most that is allowed, in every split between the two."""
    pairs = torch.arange(inner // 2 * outer).view(inner // 2, outer) % (products.MOST + 1)
    both = torch.stack((pairs, products.MOST - pairs), dim=1).clamp_(max=127).view(inner, outer)
    return both.to(torch.int8)


@pytest.mark.parametrize("name", products.int8_products())
@pytest.mark.parametrize("sign", [1, -1])
def test_linear_layers_are_exact_at_the_limit(name, sign):
    product = products.int8_products()[name]
    weight = extreme_weights(64, 48) * sign
    for rows in (torch.full((16, 64), 127, dtype=torch.int8), torch.full((16, 64), -127, dtype=torch.int8)):
        out = torch.empty(16, 48, dtype=product.dtype)
        got = product.linear(rows, product.packed(weight), out)
        assert torch.equal(got.int(), rows.int() @ weight.int())


@pytest.mark.parametrize("name", products.int8_products())
def test_any_two_matrices_are_multiplied_exactly(name):
    one, other = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((32, 64), (64, 16)))
    product = products.int8_products()[name]
    got = product.multiply(one, other, torch.empty(32, 16, dtype=product.dtype))
    assert torch.equal(got.int(), one.int() @ other.int())


def test_a_machine_is_measured_once(tmp_path, monkeypatch):
    first = products.rates(tmp_path)
    assert set(first) == {"float32", "bfloat16", *products.int8_products()}
    assert min(first.values()) > 0
    monkeypatch.setattr(products, "_measured", lambda: pytest.fail("measured again"))
    assert products.rates(tmp_path) == first
    (file,) = tmp_path.glob("products-*.json")
    assert json.loads(file.read_bytes()) == first


def test_measuring_leaves_the_threads_alone():
    before = torch.get_num_threads()
    products._measured()
    assert torch.get_num_threads() == before


def test_the_fastest_is_chosen(rates):
    assert products.fastest_float(rates()) == "float32"
    assert products.fastest_float(rates(bfloat16=90.0)) == "bfloat16"
    assert not products.prefers_int8(rates())
    for name, product in products.int8_products().items():
        assert products.prefers_int8(rates(**{name: 60.0}))
        assert products.fastest_int8(rates(**{name: 60.0})) is product
        assert not products.prefers_int8(rates(**{name: 60.0, "bfloat16": 70.0}))

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.http import SECRET, World


def test_openapi_describes_everything(world: World) -> None:
    schema = world.client.get("/openapi.json").json()
    operations = [o for path in schema["paths"].values() for o in path.values()]
    assert len(operations) == 9
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        for parameter in operation.get("parameters", ()):
            assert parameter["description"]
    for name, model in schema["components"]["schemas"].items():
        if name in ("HTTPValidationError", "ValidationError"):
            pytest.fail("the 422 answers have the format of every other error")
        for field, described in model.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"
    assert schema["components"]["schemas"]["ExtractRequest"]["examples"]
    assert schema["components"]["schemas"]["Failure"]["examples"]
    for example in schema["components"]["schemas"]["ExtractRequest"]["examples"]:
        assert world.post(example).status_code == 200


FIELDS = st.sampled_from(["id", "text", "lang", "types", "metadata", "v", "zq17"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([SECRET, "zh", "disease"])
VALUES = st.recursive(
    LEAVES | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(body=st.binary(max_size=60) | st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda d: json.dumps(d).encode()))
def test_no_body_breaks_it(body: bytes) -> None:
    response = WORLD.raw(body)
    assert response.status_code in (200, 400, 422)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"field", "problem", "remedy"}
        assert "zq17" not in response.text


@settings(deadline=None, max_examples=150)
@given(path=st.text(max_size=20), params=st.dictionaries(st.sampled_from(["text", "type", "limit"]), st.text()))
def test_no_address_breaks_it(path: str, params: dict[str, str]) -> None:
    # `surrogatepass`: bytes that are not UTF-8 in the address.
    for address in (f"/v1/documents/{quote(path.encode(errors='surrogatepass'))}", "/v1/mentions"):
        if address == "/v1/documents/":
            continue
        assert WORLD.client.get(address, params=params).status_code in (200, 404, 422)


WORLD = World()

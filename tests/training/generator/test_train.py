import json

import pytest

from shared.model.scheme import SCHEME_FILE, scheme_of
from shared.settings import Settings
from tests.support.generators import corpus, trained
from tests.support.tiny import make_tiny_model


@pytest.mark.parametrize(
    ("scheme", "expected"), [("per-type", "per-type.v1"), ("question", "per-type.v1"), ("labelled", "labelled.v1")]
)
def test_the_scheme_of_the_configuration_is_trained(tmp_path, scheme, expected):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    out = trained(tmp_path / "out", settings, scheme=scheme, max_tokens=300)
    manifest = json.loads((out / "training.json").read_text())
    assert manifest["config"]["scheme"] == scheme
    assert scheme_of(out) == expected
    assert (out / SCHEME_FILE).exists() == (scheme == "labelled")  # older adapters have none

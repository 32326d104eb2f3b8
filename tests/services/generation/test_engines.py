import importlib.util

import pytest

from services.generation import engines
from services.generation.config import GenerationConfig
from services.generation.copy import CopyEngine
from shared.settings import Settings
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Settings(base_model=str(folder), adapter="", selector="", cache=folder / "cache")


def test_a_base_that_fits_one_device_is_copied(settings):
    assert engines.fits(settings)
    assert isinstance(engines.load(settings, GenerationConfig()), CopyEngine)


def test_one_that_does_not_goes_to_vllm(settings, monkeypatch):
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    assert not engines.fits(settings)
    assert isinstance(engines.load(settings, GenerationConfig(engine="copy")), CopyEngine)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_where_vllm_is_not_installed_the_error_names_the_remedy(settings):
    with pytest.raises(ModuleNotFoundError, match=r"^engine: .*make vllm.*BIOBRACKET_GENERATION_ENGINE=copy"):
        engines.load(settings, GenerationConfig(engine="vllm"))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_each_number_format_copies_the_segment(settings, dtype):
    from services.generation.engine import TagRequest
    from shared.messages import Segment

    text = "EGFR 突变 in the lung"
    segment = Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en")
    engine = engines.load(settings, GenerationConfig(dtype=dtype))
    for line in engine.tag([TagRequest(segment, ("protein", "disease", "drug"))])[0]:
        assert line.tagged.replace("[", "").replace("]", "") in ("", text)

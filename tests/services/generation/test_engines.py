import importlib.util
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from services.generation import engines
from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from services.generation.engine import TagRequest
from shared.errors import AdapterError
from shared.messages import Segment
from shared.model.base_model import base_folder, load_base
from shared.model.digests import write_sums
from shared.model.scheme import SCHEME_FILE
from shared.settings import Settings
from tests.support.lines import mentions
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Settings(base_model=str(folder), adapter="", selector="", cache=folder / "cache")


@pytest.fixture(scope="module")
def adapter(settings, tmp_path_factory):
    """Settings with an adapter of a scheme; of none where it is empty, as adapters were before they said it."""

    def make(scheme):
        folder = tmp_path_factory.mktemp("adapter")
        get_peft_model(load_base(settings, torch.float32), LoraConfig(target_modules=["q_proj"])).save_pretrained(
            folder
        )
        if scheme:
            (folder / SCHEME_FILE).write_text(json.dumps({"scheme": scheme}))
        write_sums(folder)
        return settings.model_copy(update={"adapter": str(folder)})

    return make


def test_a_small_base_is_copied(adapter):
    settings = adapter("labelled.v1")
    assert engines.fits(settings)
    assert type(engines.load(settings, GenerationConfig())) is CopyEngine


def test_a_base_that_is_not_there_yet_is_made_with_memory(settings, monkeypatch):
    """In an image nobody has made it before."""
    devices = []

    def made(given):
        devices.append(torch.empty(0).device.type)
        return base_folder(given)

    monkeypatch.setattr(engines, "base_folder", made)
    assert engines.fits(settings)
    assert devices == ["cpu"]


def test_copying_is_not_a_matter_of_size(settings, monkeypatch):
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    assert not engines.fits(settings)
    assert type(engines.load(settings, GenerationConfig(engine="copy"))) is CopyEngine


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
@pytest.mark.parametrize("engine", ["vllm", "auto"])
def test_where_vllm_is_not_installed_the_error_names_the_remedy(adapter, monkeypatch, engine):
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    with pytest.raises(ModuleNotFoundError, match=r"^engine: .*make vllm.*BIOBRACKET_GENERATION_ENGINE=copy"):
        engines.load(adapter("labelled.v1"), GenerationConfig(engine=engine))


@pytest.mark.parametrize("scheme", ["labelled.v9", "per-type.v1", ""])
@pytest.mark.parametrize("engine", ["copy", "vllm", "auto"])
def test_an_adapter_of_another_scheme_is_refused_before_it_is_loaded(adapter, scheme, engine):
    with pytest.raises(AdapterError, match=r"^adapter: .*labelled\.v1.*BIOBRACKET_ADAPTER"):
        engines.load(adapter(scheme), GenerationConfig(engine=engine))


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_each_number_format_copies_the_segment(adapter, dtype):
    text = "EGFR 突变 in the lung"
    segment = Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en")
    types = ("protein", "disease", "drug")
    (line,) = engines.load(adapter("labelled.v1"), GenerationConfig(dtype=dtype)).tag([TagRequest(segment, types)])
    assert (line.segment, line.types) == (segment, types)
    for spans in mentions(line).values():
        assert all(0 <= start < end <= len(text) for start, end in spans)

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model

from services.generation import engines
from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from services.generation.engine import TagRequest
from services.generation.per_type.engine import PerTypeEngine
from shared.errors import AdapterError
from shared.messages import Segment
from shared.model.base_model import load_base
from shared.model.scheme import SCHEME_FILE, write_scheme
from shared.settings import Settings
from tests.support.lines import mentions
from tests.support.tiny import make_tiny_model

ENGINES = {"per-type.v1": PerTypeEngine, "labelled.v1": CopyEngine}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Settings(base_model=str(folder), adapter="", selector="", cache=folder / "cache")


@pytest.fixture(scope="module")
def adapter(settings, tmp_path_factory):
    """Settings with an adapter of a scheme; of none where it is empty, as older adapters are."""

    def make(scheme):
        folder = tmp_path_factory.mktemp("adapter")
        get_peft_model(load_base(settings, torch.float32), LoraConfig(target_modules=["q_proj"])).save_pretrained(
            folder
        )
        if scheme:
            write_scheme(folder, scheme)
        return settings.model_copy(update={"adapter": str(folder)})

    return make


@pytest.fixture(scope="module", params=list(ENGINES))
def of_scheme(adapter, request):
    return adapter(request.param), ENGINES[request.param]


def test_the_scheme_of_the_adapter_chooses_the_engine(of_scheme):
    settings, engine = of_scheme
    assert engines.fits(settings)
    assert type(engines.load(settings, GenerationConfig())) is engine


def test_without_a_scheme_or_an_adapter_there_is_a_line_a_type(settings, adapter):
    for older in (settings, adapter("")):
        assert type(engines.load(older, GenerationConfig())) is PerTypeEngine


def test_copying_is_not_a_matter_of_size(of_scheme, monkeypatch):
    settings, engine = of_scheme
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    assert not engines.fits(settings)
    assert type(engines.load(settings, GenerationConfig(engine="copy"))) is engine


@pytest.mark.parametrize("engine", ["vllm", "auto"])
def test_vllm_refuses_a_line_a_type(adapter, monkeypatch, engine):
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    with pytest.raises(AdapterError, match=r"^adapter: .*per-type\.v1.*BIOBRACKET_GENERATION_ENGINE=copy"):
        engines.load(adapter("per-type.v1"), GenerationConfig(engine=engine))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
@pytest.mark.parametrize("engine", ["vllm", "auto"])
def test_where_vllm_is_not_installed_the_error_names_the_remedy(adapter, monkeypatch, engine):
    monkeypatch.setattr(engines, "_SHARE", 0.0)
    with pytest.raises(ModuleNotFoundError, match=r"^engine: .*make vllm.*BIOBRACKET_GENERATION_ENGINE=copy"):
        engines.load(adapter("labelled.v1"), GenerationConfig(engine=engine))


def test_an_adapter_of_another_scheme_is_refused_before_it_is_loaded(adapter):
    settings = adapter("labelled.v1")
    with open(f"{settings.adapter}/{SCHEME_FILE}", "w") as file:
        file.write('{"scheme": "labelled.v9"}')
    with pytest.raises(AdapterError, match=r"labelled\.v9.*BIOBRACKET_ADAPTER"):
        engines.load(settings, GenerationConfig())


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
def test_each_number_format_copies_the_segment(of_scheme, dtype):
    text = "EGFR 突变 in the lung"
    segment = Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en")
    types = ("protein", "disease", "drug")
    (line,) = engines.load(of_scheme[0], GenerationConfig(dtype=dtype)).tag([TagRequest(segment, types)])
    assert (line.segment, line.types) == (segment, types)
    for spans in mentions(line).values():
        assert all(0 <= start < end <= len(text) for start, end in spans)

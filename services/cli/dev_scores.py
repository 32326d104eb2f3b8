"""F1 on dev texts of a generator during training, reported by ``biobracket train generator``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.extractor import Extractor
from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from services.selection.selector import Selector
from shared.model.attention import use_packed_attention
from shared.model.base_model import load_tokenizer
from shared.model.body import Packed
from shared.selection.calibration import Calibration
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from training.data.corpora import Example, corpus_folder, documents_of, read
from training.evaluation.scores import Scores, score_all


class DevScores:
    """Strict micro F1 of a model in training, on the first texts of each corpus's dev split. It can be pickled.

    Scores greedy mentions with the default calibration, since thresholds cannot be fitted while the model changes.
    """

    def __init__(self, settings: Settings, corpora: Mapping[str, dict[str, str] | None], texts: int) -> None:
        """``corpora``: label mappings by name, None for the built-in one; ``texts``: how many of each."""
        self._settings = settings
        self._corpora = corpora
        self._texts = texts
        self._examples: dict[str, list[Example]] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """F1 by corpus of a causal model with packed attention."""
        if not self._examples:
            self._examples = {
                name: read(corpus_folder(name, self._settings), "dev", types)[: self._texts]
                for name, types in self._corpora.items()
            }
        body = Packed(use_packed_attention(model))
        engine = CopyEngine(body, CopyTokens(load_tokenizer(self._settings)), GenerationConfig())
        extractor = Extractor(engine, Selector(Calibration.default()), model_revision="training")
        scores = {}
        for name, examples in self._examples.items():
            found = score_all(examples, extractor.extract(documents_of(examples)))
            scores[name] = sum(found, Scores()).micro.f1
        return scores

"""The score of a generator in training on dev texts, which ``biobracket train generator`` reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.extractor import Extractor
from services.generation.config import GenerationConfig
from services.generation.copy import CopyEngine
from services.selection.selector import Selector
from shared.model.base_model import load_tokenizer
from shared.model.body import Packed
from shared.selection.calibration import Calibration
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from training.data.corpora import Example, corpus_folder, documents_of, read
from training.evaluation.scores import Scores, score_all


class DevScores:
    """Strict micro F1 on the first texts of each corpus's dev split, of a model in training; it can be pickled.

    Greedy mentions with the default calibration: the thresholds of a model that still changes mean nothing.
    """

    def __init__(self, settings: Settings, corpora: Mapping[str, dict[str, str] | None], texts: int) -> None:
        """``corpora``: by name, with the mapping of their labels (none: the known one)."""
        self._settings = settings
        self._corpora = corpora
        self._texts = texts
        self._examples: dict[str, list[Example]] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """The scores of a causal model with packed attention, by corpus."""
        if not self._examples:
            self._examples = {
                name: read(corpus_folder(name, self._settings), "dev", types)[: self._texts]
                for name, types in self._corpora.items()
            }
        engine = CopyEngine(Packed(model), CopyTokens(load_tokenizer(self._settings)), GenerationConfig())
        extractor = Extractor(engine, Selector(Calibration.default()), model_revision="training")
        scores = {}
        for name, examples in self._examples.items():
            found = score_all(examples, extractor.extract(documents_of(examples)))
            scores[name] = sum(found, Scores()).micro.f1
        return scores

"""Training of the selector's span encoder: an adapter with bidirectional attention, and a head.

Two losses on the same embeddings. The head's is the binary cross-entropy of whether a span is a mention of its type.
The contrastive one (supervised InfoNCE, Khosla et al. 2020, arXiv 2004.11362) pulls mentions of a type together, across
documents and languages, and pushes them away from wrong spans of that type (boundaries moved by one to three pieces,
parts of a mention, the right span with a wrong type, random spans) and from mentions of other types.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.attention import run
from shared.model.base_model import load_tokenizer
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.selection.span_encoder import SpanHead, write_head
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from training.config import SelectorConfig
from training.data import mixing, spans
from training.data.candidates import digest, files, wrong
from training.data.corpora import corpus_folder, read
from training.data.spans import SpanBatch, SpanItem
from training.generator.model import lora, parts, plain, write_model
from training.tuning import loop
from training.tuning.contrast import contrastive_loss
from training.tuning.loop import Checkpoints, Measurements, Progress
from training.tuning.merged_lora import MergedLora
from training.tuning.optimizer import whole


def train(
    config: SelectorConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Progress], None] = lambda _: None,
    command: Sequence[str] = (),
) -> None:
    """:func:`training.tuning.loop.train` for a selector."""
    make = lambda device: SelectorTask(config, settings, device)  # noqa: E731
    loop.train(make, config, settings, checkpoints, report, command)


class SelectorObjective(nn.Module):
    """The weighted sum of both losses of a batch."""

    def __init__(self, model: Any, head: SpanHead, config: SelectorConfig) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._weight, self._temperature = config.contrast, config.contrast_temperature

    def forward(self, batch: SpanBatch) -> Tensor:
        embeddings, logits = self.embed(batch)
        loss = F.binary_cross_entropy_with_logits(logits, batch.right.float())
        return loss + self._weight * contrastive_loss(embeddings, batch.types, batch.right, self._temperature)

    def embed(self, batch: SpanBatch) -> tuple[Tensor, Tensor]:
        """Embeddings (N, size) and log-odds (N,) of the batch's spans."""
        hidden = run(parts(self.model)[0], batch.ids, batch.positions, batch.layout)
        found: tuple[Tensor, Tensor] = self.head(hidden[batch.at].float(), batch.types)
        return found


class SelectorTask:
    """See :class:`training.tuning.loop.Task`."""

    shared_out = False

    def __init__(self, config: SelectorConfig, settings: Settings, device: torch.device) -> None:
        self._config, self._settings, self._device = config, settings, device
        types = _types(config, settings)
        tokens = CopyTokens(load_tokenizer(settings))
        self._model = lora(config, settings, device)
        base = plain(self._model).config
        self._window = getattr(base, "sliding_window", None)
        mistakes = wrong(config.candidates)
        self._mixer, dev, self.data = mixing.load(
            config,
            settings,
            lambda examples: spans.items(examples, tokens, types, config.max_units, mistakes),
            lambda item, draw: item.drawn(config, draw),
            lambda example: not config.only_candidates or digest(example.text) in mistakes,
        )
        draw = random.Random(0)  # noqa: S311 - an order, not a secret
        self.dev = {
            name: [self.batch([item.drawn(config, draw) for item in group]) for group in groups]
            for name, groups in dev.items()
        }
        if config.candidates:
            self.data["candidates"] = {"sha256": [mixing.sha256(file) for file in files(config.candidates)]}
        self._made = SelectorFile(types=types, size=config.size, hidden=config.hidden)
        head = SpanHead(base.hidden_size, types, config.hidden, config.size)
        if config.init is not None and (config.init / SELECTOR_FILE).is_file():
            head.read(config.init)
        head = head.to(device)
        self._merged = MergedLora(self._model) if device.type == "cpu" else None
        self.layers = parts(self._model)[0].layers
        self.objective = SelectorObjective(self._model, head, config)

    def groups(self) -> Iterator[list[SpanItem]]:
        return iter(self._mixer)

    def batch(self, group: list[SpanItem]) -> SpanBatch:
        return spans.pack(group, self._config.batch_tokens, self._window, self._device)

    def updated(self) -> None:
        if self._merged is not None:
            self._merged.refresh()

    def weights(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weights of adapter and head, by their names in the objective."""
        named = self.objective.named_parameters()
        return {name: whole(p).clone() for name, p in named if p.requires_grad}

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        below: dict[str, dict[str, Tensor]] = {"model": {}, "head": {}}
        for name, weight in weights.items():
            part, _, inner = name.partition(".")
            below[part][inner] = weight
        write_model(self._model, below["model"], folder, self._settings)
        write_head(below["head"], self._made, folder)
        return {}

    @torch.no_grad()
    def measure(self) -> Measurements:
        """F1 of the head alone on the sampled spans of the dev batches, and the geometry of their embeddings."""
        f1: dict[str, float] = {}
        more: dict[str, dict[str, float]] = {}
        for name, batches in self.dev.items():
            found = [self.objective.embed(batch) for batch in batches]
            embeddings, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
            types, right = (torch.cat([getattr(batch, part) for batch in batches]) for part in ("types", "right"))
            f1[name] = _f1(logits > 0, right)
            for measure, value in geometry(embeddings, types, right).items():
                more.setdefault(measure, {})[name] = value
        return Measurements(f1, more)


def _f1(judged: Tensor, right: Tensor) -> float:
    both = int(judged.sum() + right.sum())
    return 2 * int((judged & right).sum()) / both if both else 0.0


def geometry(embeddings: Tensor, types: Tensor, right: Tensor, k: int = 10) -> dict[str, float]:
    """How well neighbours tell mentions from wrong spans: embeddings (N, size) of norm 1, types (N,), right (N,).

    ``recall_at_1`` and ``recall_at_k``: the share of mentions for which the nearest span of the type, or one of the k
    nearest, is a mention. ``separation``: the mean cosine of two mentions of a type, minus that of a mention and a
    wrong span of the type.
    """
    alike = types[:, None] == types[None, :]
    others = alike & ~torch.eye(len(types), dtype=torch.bool, device=types.device)
    cosines = embeddings @ embeddings.T
    near = others & right[:, None] & right[None, :]
    far = others & right[:, None] & ~right[None, :]
    anchors = near.any(dim=1)
    if not anchors.any():
        return {"recall_at_1": 0.0, f"recall_at_{k}": 0.0, "separation": 0.0}
    ranked = cosines.masked_fill(~others, float("-inf"))[anchors].topk(min(k, len(types)), dim=1)
    hits = right[ranked.indices] & ranked.values.isfinite()
    return {
        "recall_at_1": hits[:, 0].float().mean().item(),
        f"recall_at_{k}": hits.any(dim=1).float().mean().item(),
        "separation": (cosines[near].mean() - (cosines[far].mean() if far.any() else 0.0)).item(),
    }


def _types(config: SelectorConfig, settings: Settings) -> tuple[str, ...]:
    """The types that the corpora annotate, sorted."""
    found = {
        key
        for name, corpus in config.corpora.items()
        for key in read(corpus_folder(name, settings), "train", corpus.types)[0].types
    }
    return tuple(sorted(found))

"""Training of a generator of scheme ``labelled.v1``: one labelled line per segment (:mod:`shared.text.grammar`).

In addition to the line's loss, a head on the hidden states around a mention's brackets learns to tell correct mentions
from wrong ones, as selection does, but without reading the segment again.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.base_model import load_tokenizer
from shared.model.scheme import write_scheme
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.selection.span_encoder import SpanHead, write_head
from shared.settings import Settings
from shared.text.grammar import SCHEME, CopyTokens
from training.config import ConfigError, GeneratorConfig
from training.data import mixing
from training.data.corpora import Example, corpus_folder, read
from training.data.labelled import PLAIN, Item, SourceText, Texts, Variation
from training.generator.rows import NAME, Arrays, Builder, Rows, arrays, grouped, line_loss, on_device, states
from training.generator.task import Measure, build, parts, plain, write_model
from training.tuning.contrast import contrastive_loss
from training.tuning.loop import Measurements
from training.tuning.merged_lora import MergedLora
from training.tuning.optimizer import whole


class LabelledObjective(nn.Module):
    """The line's loss, plus that of a head that tells correct mentions of the line from wrong ones."""

    def __init__(self, model: Any, head: SpanHead | None, config: GeneratorConfig) -> None:
        super().__init__()
        self.model, self.head = model, head
        self._judge, self._contrast = config.judge, config.contrast

    def forward(self, batch: Rows) -> Tensor:
        body, embedding = parts(self.model)
        hidden = states(body, batch.ids)
        loss = line_loss(hidden, embedding.weight, batch)
        if self.head is None or not len(batch.types):
            return loss
        return loss + self._judge * self.judged(hidden, batch)

    def judged(self, hidden: Tensor, batch: Rows) -> Tensor:
        """The head's losses, from the hidden states of the rows."""
        if self.head is None:
            raise ValueError("judge: there is no head")
        embeddings, odds = self.head(hidden[batch.marked].float(), batch.types)
        loss = F.binary_cross_entropy_with_logits(odds, batch.truth.float())
        return loss + self._contrast * contrastive_loss(embeddings, batch.types, batch.truth.bool(), 0.1)


class LabelledTask:
    """See :class:`training.tuning.loop.Task`. A line of labelled brackets per segment (:mod:`shared.text.grammar`)."""

    shared_out = False

    def __init__(
        self, config: GeneratorConfig, settings: Settings, device: torch.device, measure: Measure | None = None
    ) -> None:
        self._config, self._settings, self._device, self._measure = config, settings, device, measure
        tokens = CopyTokens(load_tokenizer(settings))
        read_ = {
            name: {split: read(corpus_folder(name, settings), split, corpus.types) for split in ("train", "dev")}
            for name, corpus in config.corpora.items()
        }
        types = sorted({key for found in read_.values() for key in found["train"][0].types})
        texts = Texts(tokens, config.max_units, types)
        known = {key: i for i, key in enumerate(types)}
        sources: list[SourceText] = []
        places: dict[str, list[Place]] = {}
        self.data: dict[str, Any] = {}
        self.dev: dict[str, list[Rows]] = {}
        for name, found in read_.items():
            begin = len(sources)
            sources += texts.sources(mixing.kept(found["train"], config))
            places[name] = [Place(i, len(sources[i])) for i in range(begin, len(sources))]
            self.dev |= self._dev(name, found["dev"], texts, known)
            folder = corpus_folder(name, settings)
            self.data[name] = {
                f"{split}_sha256": mixing.sha256(folder / f"{split}.jsonl") for split in ("train", "dev")
            }
            self.data[name] |= {"texts": len(places[name]), "tokens": sum(map(len, places[name]))}
        mix = mixing.shares(places, {name: c.share for name, c in config.corpora.items()}, config.temperature)
        for name, share in mix.items():
            self.data[name]["share"] = round(share, 4)
        self._drawn = mixing.Mixer(places, mix, 10**9, config.seed).drawn()
        gc.freeze()  # millions of objects that last as long as the run; scanned again, forks would copy their pages
        vary = Variation(wrong=config.wrong)
        self._builder = Builder(sources, texts, vary, config.batch_tokens, known, few=config.graphs)
        self._model = build(config, settings, device)
        self._model.set_attn_implementation(NAME)
        base = plain(self._model).config
        head = SpanHead(base.hidden_size, types, config.hidden, config.size).to(device) if config.judge else None
        self._made = SelectorFile(types=tuple(types), size=config.size, hidden=config.hidden, reading="line")
        if head is not None and config.init is not None and (config.init / SELECTOR_FILE).is_file():
            head.read(config.init)
        self._merged = MergedLora(self._model) if config.tuning == "lora" else None
        self.layers = parts(self._model)[0].layers
        if config.dropout:
            for layer in self.layers:
                for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                    norm.register_forward_hook(_dropout(config.dropout))
        self.objective = LabelledObjective(self._model, head, config)

    def _dev(
        self, name: str, examples: Sequence[Example], texts: Texts, known: dict[str, int]
    ) -> dict[str, list[Rows]]:
        """Batches of a dev split as it is, without marked mentions; and as many with wrong ones, for the head only."""
        chosen = random.Random(0).sample(examples, len(examples))  # noqa: S311 - an order, not a secret
        size, draw = self._config.batch_tokens, random.Random(0)  # noqa: S311
        out: dict[str, list[Rows]] = {}
        for label, vary in ((name, PLAIN), (f"{name} head", replace(PLAIN, wrong=1.0))):
            items: list[Item] = []
            for example in chosen:
                if sum(map(len, items)) > 0.7 * size * self._config.dev_batches:
                    break
                (source,) = texts.sources([example])
                items += texts.items(source, draw, vary)
            if vary is PLAIN:
                items = [replace(one, marked=()) for one in items]
            elif not self._config.judge:
                continue
            else:
                items = [replace(one, decisions=()) for one in items if one.marked]
            groups = grouped(items, size, draw)
            if not groups:
                raise ConfigError(f"batch_tokens: no dev text of {name} fits a batch of {size} tokens; raise it")
            out[label] = [on_device(arrays(group, known), self._device) for group in groups]
        return out

    def groups(self) -> Iterator[Arrays]:
        return self._builder.batches(self._drawn, self._config.seed, self._config.builders)

    def batch(self, group: Arrays) -> Rows:
        return on_device(group, self._device, few=self._config.graphs)

    def updated(self) -> None:
        if self._merged is not None:
            self._merged.refresh()

    def weights(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weights of adapter (or model) and head, by their names in the objective."""
        del masters
        adapter = self._config.tuning != "full"
        named = self.objective.named_parameters()
        return {name: whole(p).clone() for name, p in named if p.requires_grad or not adapter}

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        del last
        below: dict[str, dict[str, Tensor]] = {"model": {}, "head": {}}
        for name, weight in weights.items():
            part, _, inner = name.partition(".")
            below[part][inner] = weight
        write_model(self._model, below["model"], folder, self._settings)
        if below["head"]:
            write_head(below["head"], self._made, folder)
        write_scheme(folder, SCHEME)
        return {}

    def measure(self) -> Measurements | None:
        if self._measure is None:
            return None
        try:
            return Measurements(self._measure(plain(self._model)))
        finally:
            self._model.set_attn_implementation(NAME)  # the engine has its own


class Place(int):
    """The index of a source text, with the length of that text."""

    length: int

    def __new__(cls, place: int, length: int) -> Place:
        self = super().__new__(cls, place)
        self.length = length
        return self

    def __len__(self) -> int:
        return self.length


def _dropout(share: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return F.dropout(output, share, training=torch.is_grad_enabled())

    return hook

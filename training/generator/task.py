"""Training of the generator: an adapter (or a whole model) that copies text with brackets (:mod:`shared.text.grammar`).

The loss is the negative log-likelihood of the right action among the admissible ones: the same few logits that decoding
looks at, so the projection onto the full vocabulary is never computed. In addition, a head on the hidden states around
a mention's brackets can learn to tell correct mentions from wrong ones. The loop around it is
:mod:`training.tuning.loop`.
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
from shared.model.scheme import Guideline, write_scheme
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.selection.span_encoder import SpanHead, write_head
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from training.ablations.questions import Questions
from training.config import ConfigError, GeneratorConfig
from training.data import mixing
from training.data.corpora import Example, corpus_folder, read
from training.data.labelled import PLAIN, Item, ItemSource, Texts, Variation
from training.data.replacement import Replacements
from training.data.rows import NAME, Arrays, Builder, Rows, arrays, grouped, line_loss, on_device, states
from training.generator.model import build, parts, plain, write_difference, write_model
from training.tuning import loop
from training.tuning.contrast import contrastive_loss
from training.tuning.loop import Checkpoints, Measurements, Progress
from training.tuning.merged_lora import MergedLora
from training.tuning.optimizer import whole

Measure = Callable[[Any], dict[str, float]]
"""A model's current F1 on the dev split of each corpus."""


def train(
    config: GeneratorConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Progress], None] = lambda _: None,
    measure: Measure | None = None,
    command: Sequence[str] = (),
) -> None:
    """:func:`training.tuning.loop.train` for a generator; ``measure`` is called as set by ``measure_every``."""
    make = lambda device: GeneratorTask(config, settings, device, measure)  # noqa: E731
    loop.train(make, config, settings, checkpoints, report, command)


class GeneratorObjective(nn.Module):
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


class GeneratorTask:
    """See :class:`training.tuning.loop.Task`."""

    def __init__(
        self, config: GeneratorConfig, settings: Settings, device: torch.device, measure: Measure | None = None
    ) -> None:
        self._config, self._settings, self._device, self._measure = config, settings, device, measure
        tokens = CopyTokens(load_tokenizer(settings))
        read_ = {
            name: {split: read(corpus_folder(name, settings), split, corpus.types) for split in ("train", "dev")}
            for name, corpus in config.corpora.items()
        }
        self._guidelines = dict.fromkeys(Guideline(e.lang, e.types) for found in read_.values() for e in found["train"])
        types = sorted({key for found in read_.values() for key in found["train"][0].types})
        texts: ItemSource[Any]
        if config.scheme == "question":
            texts = Questions(tokens, config.max_units)
        else:
            trained = (e for found in read_.values() for e in mixing.kept(found["train"], config))
            texts = Texts(tokens, config.max_units, types, Replacements(trained) if config.replaced else None)
        known = {key: i for i, key in enumerate(types)}
        sources: list[Any] = []
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
        vary = Variation(wrong=config.wrong, replaced=config.replaced)
        self._builder = Builder(sources, texts, vary, config.batch_tokens, known, few=config.graphs)
        self._model = build(config, settings, device)
        self._model.set_attn_implementation(NAME)
        base = plain(self._model).config
        head = SpanHead(base.hidden_size, types, config.hidden, config.size).to(device) if config.judge else None
        self._made = SelectorFile(types=tuple(types), size=config.size, hidden=config.hidden, reading="line")
        if head is not None and config.init is not None and (config.init / SELECTOR_FILE).is_file():
            head.read(config.init)
        self.shared_out = config.parallel == "fsdp"
        # A second copy of the weights: cheap in a CPU's memory or of a small base, but not of a large one on a GPU.
        copied = config.tuning == "lora" and not self.shared_out and (device.type == "cpu" or config.graphs)
        self._merged = MergedLora(self._model) if copied else None
        self.layers = parts(self._model)[0].layers
        if config.dropout:
            for layer in self.layers:
                for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                    norm.register_forward_hook(_dropout(config.dropout))
        self.objective = GeneratorObjective(self._model, head, config)

    def _dev(
        self, name: str, examples: Sequence[Example], texts: ItemSource[Any], known: dict[str, int]
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
        """The weights of adapter (or model) and head, by their names in the objective.

        If only a difference is exported, the trained weights in full precision.
        """
        named = list(self.objective.named_parameters())
        if self._config.export_rank:
            names = [name for name, parameter in named if parameter.requires_grad]
            return {name: whole(m).clone() for name, m in zip(names, masters, strict=True)}
        adapter = self._config.tuning != "full"
        return {name: whole(p).clone() for name, p in named if p.requires_grad or not adapter}

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        below: dict[str, dict[str, Tensor]] = {"model": {}, "head": {}}
        for name, weight in weights.items():
            part, _, inner = name.partition(".")
            below[part][inner] = weight
        if below["head"]:
            write_head(below["head"], self._made, folder)
        if self._config.scheme != "question":
            write_scheme(folder, self._guidelines)
        if not self._config.export_rank:
            write_model(self._model, below["model"], folder, self._settings)
        elif last:  # it needs a second copy of the base, and takes a while
            return {"export": write_difference(below["model"], self._config, folder, self._settings)}
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

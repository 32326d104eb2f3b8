"""Embeddings of mentions, made of the generator's own states around their brackets.

Those states have seen the whole text and the line so far, so nothing is read twice. The head was trained with the
generator (:mod:`training.generator.labelled`): mentions of a type lie near one another and away from wrong spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.selection.span_encoder import HEAD_FILE, SpanHead
from shared.text.grammar import Typed


class MentionHead:
    """Thread-safe: it only reads its weights."""

    def __init__(self, head: SpanHead) -> None:
        self._head = head.eval().requires_grad_(False)
        self._types = {key: i for i, key in enumerate(head.known)}

    @classmethod
    def load(cls, folder: Path) -> MentionHead | None:
        """That of an adapter's folder; none where it has none."""
        if not (folder / SELECTOR_FILE).is_file():
            return None
        made = SelectorFile.load(folder)
        weights = load_file(folder / HEAD_FILE)
        head = SpanHead(weights["states.weight"].shape[1] // 4, made.types, made.hidden, made.size)
        head.load_state_dict(weights)
        return cls(head)

    def embed(self, found: Mapping[Typed, Sequence[Tensor]]) -> dict[Typed, NDArray[np.float32]]:
        """The embedding, shape (size,), of each span from its four states; none of types it was not trained on."""
        spans = [span for span in found if span[2] in self._types]
        if not spans:
            return {}
        states = torch.stack([torch.stack(list(found[span])) for span in spans]).float().cpu()
        types = torch.tensor([self._types[key] for _, _, key in spans])
        embeddings, _ = self._head(states, types)
        return dict(zip(spans, embeddings.numpy(), strict=True))

"""Plain decoding of labelled lines: the whole model, token by token and with no packing, to compare the engine with."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.grammar import CopyTokens, Labels, PieceTokens, Script
from shared.text.pieces import split

TYPES = ("protein", "disease", "cell_line", "cell_type")
TEXTS = [
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression and NF-kappa B activation [1] in Jurkat T cells",
    "a",
    "  two  spaces\tand a tab\nand \\ lines ] [ | ",
    "右肺下叶腺癌 with EGFR 突变",
]


def made(folder, **changes):
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    config = GenerationConfig(**{"candidate_floor": 0.3, "branch_pieces": 4} | changes)
    return CopyEngine(Packed(model), CopyTokens(AutoTokenizer.from_pretrained(folder)), config)


def segment(text: str, lang: str = "en", index: int = 0) -> Segment:
    return Segment(document_id="d", index=index, start=0, end=len(text), text=text, lang=lang)


def script_of(tokens, text, types):
    return Script(tokens, PieceTokens(tokens, split(text)), Labels(tokens, types, "en"))


@torch.inference_mode()
def decided(reference, script, ids, state):
    """The log-probability of each admissible action, by a forward pass over the whole sequence."""
    actions, first = script.options(state)
    logits = reference[0](torch.tensor([ids])).logits[0, -1, list(first)]
    return dict(zip(actions, torch.log_softmax(logits, -1).tolist(), strict=True))


def greedy(reference, text, types, begin=()):
    """Actions and the log-probability of each, from ``begin`` on."""
    script = script_of(reference[1], text, types)
    ids, state, actions, chosen = list(script.prompt()), script.begin(), [], []
    while state.admissible():
        found = decided(reference, script, ids, state)
        action = begin[len(actions)] if len(actions) < len(begin) else max(found, key=found.__getitem__)
        actions.append(action)
        chosen.append(found[action])
        ids += script.ids(state, action)
        state.apply(action)
    return script, actions, chosen

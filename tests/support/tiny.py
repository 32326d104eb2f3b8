"""A tiny base model with random weights, of the architectures that are served: real code paths in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)


def make_tiny_model(
    folder: Path, *, seed: int = 0, window: int = 512, architecture: str = "gemma3", head: int = 16, groups: int = 1
) -> Path:
    """A model of two layers over single bytes (and ` [`, ` -`, ` |`), saved in the folder. Returns it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *letters, "Ġ[", "Ġ-", "Ġ|"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "["), ("Ġ", "-"), ("Ġ", "|")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", "pad_token": "<pad>"} | (
        {"bos_token": "<bos>"} if architecture == "gemma3" else {}
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    torch.manual_seed(seed)
    common = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": groups,
        "head_dim": head,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.5,  # at the usual 0.02 every choice would be nearly even
    }
    if architecture == "gemma3":
        config = Gemma3TextConfig(
            **common,
            sliding_window=window,
            layer_types=["sliding_attention", "full_attention"],
            bos_token_id=2,
            query_pre_attn_scalar=head,
        )
        model = Gemma3ForCausalLM(config)
    else:  # like its 8B model, with an output embedding of its own
        model = Qwen3ForCausalLM(Qwen3Config(**common, tie_word_embeddings=False))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder

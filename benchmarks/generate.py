"""Lines by ``generate`` of transformers, as most people would: what the engines are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from services.generation.copy.lines import Start, Step, tagged_line
from services.generation.engine import TagRequest
from services.generation.vllm import merged_folder
from services.generation.walk import Walk
from shared.messages import TaggedLine
from shared.model.base_model import load_tokenizer
from shared.settings import Settings
from shared.text.grammar import ABSENT, CopyTokens, Labels, PieceTokens, Script
from shared.text.pieces import split


class Generate:
    """Lines by ``generate`` of transformers, so many at once, padded on the left."""

    def __init__(self, settings: Settings, together: int) -> None:
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForCausalLM.from_pretrained(
            merged_folder(settings), dtype=torch.bfloat16, use_safetensors=True
        ).to(device)
        self._tokenizer = load_tokenizer(settings)
        self._tokens = CopyTokens(self._tokenizer)
        self._together = together

    def tag(self, requests: Sequence[TagRequest]) -> list[TaggedLine]:
        """See :class:`services.generation.engine.Engine`."""
        groups = (requests[i : i + self._together] for i in range(0, len(requests), self._together))
        return [line for group in groups for line in self._generate(group)]

    @torch.inference_mode()
    def _generate(self, requests: Sequence[TagRequest]) -> list[TaggedLine]:
        scripts = [script_of(self._tokens, request) for request in requests]
        prompts = [list(script.prompt()) for script in scripts]
        width = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        (end,) = self._tokens.end
        walks = [Walk(script) for script in scripts]
        seen = [width] * len(walks)

        def allowed(row: int, so_far: torch.Tensor) -> list[int]:
            for token in so_far[seen[row] :].tolist():
                if walks[row].choices or walks[row].allowed() != (end,):
                    walks[row].take(token)
            seen[row] = len(so_far)
            return list(walks[row].allowed())

        said = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=2 * width,
            eos_token_id=end,
            pad_token_id=pad,
            prefix_allowed_tokens_fn=allowed,
        )[:, width:]
        return [self._line(*each) for each in zip(requests, scripts, said.tolist(), strict=True)]

    @staticmethod
    def _line(request: TagRequest, script: Script, said: Sequence[int]) -> TaggedLine:
        """What was said, as if it were certain: `generate` is not asked for probabilities."""
        walk, steps = Walk(script), []
        for token in said:
            if not walk.choices and walk.allowed() == script.tokens.end:
                break
            if (action := walk.take(token)) is not None:
                steps.append(Step(action, None))
        begin = Start(float(steps[0].action != ABSENT), False, steps[0])
        return tagged_line(request.segment, split(request.segment.text), script.labels, begin, steps)


def script_of(tokens: CopyTokens, request: TagRequest) -> Script:
    """The lines that a segment may have."""
    labels = Labels(tokens, request.types, request.segment.lang)
    return Script(tokens, PieceTokens(tokens, split(request.segment.text)), labels)

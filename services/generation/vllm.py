"""The ``vllm`` engine: a line token by token, for bases that one device cannot hold.

Each type of a segment is a separate request; their common prefix is computed once, in vLLM's prefix cache. The copy
constraint is a logits processor, so that only the segment and brackets can be generated, with log-probabilities over
the admissible actions, as in the ``copy`` engine. vLLM does not support a logits processor together with speculative
decoding (from n-grams of the prompt, or its own source-aligned proposer): there the model runs unconstrained, and
parsing aligns its output.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from services.generation.config import GenerationConfig
from services.generation.engine import Engine, TagRequest
from services.generation.per_type.lines import Range, TypeLine, TypeLineStep, begun, passed_over, tagged_line, type_line
from services.generation.per_type.walk import KEY, Walk, steps_of
from shared import entity_types
from shared.messages import TaggedLine
from shared.model.base_model import load_tokenizer
from shared.model.file_cache import build_once
from shared.model.folders import adapter_folder
from shared.model.loading import load_merged
from shared.model.revision import generator_revision
from shared.settings import Settings
from shared.text.per_type import Action, PerTypeTokens
from shared.text.pieces import Pieces, split

_CONSTRAINT = "services.generation.vllm_constraint:CopyConstraint"
_PASS = 8192  # tokens, unless the settings say otherwise
_LONGEST = 1024  # tokens: a segment and its line stay below half of it
_BLOCK = 16  # tokens per block of shared keys and values: the texts are short
_ACTIONS = len(Action)


class VllmEngine(Engine):
    """See the module."""

    def __init__(self, model: Path, config: GenerationConfig) -> None:
        """``model``: a folder that holds base, adapter merged, and tokenizer."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        self._tokens = PerTypeTokens(tokenizer)
        self._tokenizer = tokenizer
        self._config = config
        self._constrained = not config.speculate
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self._engine = asyncio.run_coroutine_threadsafe(self._start(model), self._loop).result()

    @classmethod
    def load(cls, settings: Settings, config: GenerationConfig) -> VllmEngine:
        """Base model and adapter of the settings, merged once into the cache folder.

        Raises ModuleNotFoundError, naming the remedy, if vLLM is not installed.
        """
        try:
            import vllm  # noqa: F401
        except ImportError:
            raise ModuleNotFoundError(
                "engine: vllm is not installed; `make vllm` installs it on a CPU, `pip install biobracket[vllm]` on "
                "CUDA, or set BIOBRACKET_GENERATION_ENGINE=copy"
            ) from None
        return cls(merged_folder(settings), config)

    async def _start(self, model: Path) -> Any:
        config = self._config
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; a thousand lines of the smallest base
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # vLLM would leave one core of two idle
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        speculation = {
            "method": "ngram",
            "num_speculative_tokens": config.speculate,
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 1,
        }
        arguments = AsyncEngineArgs(
            model=str(model),
            dtype="float32" if config.dtype == "float32" else "bfloat16",
            max_model_len=_LONGEST,
            max_num_batched_tokens=config.pass_tokens or _PASS,
            block_size=_BLOCK,
            enable_prefix_caching=True,
            tensor_parallel_size=config.tensor_parallel,
            async_scheduling=False,  # the constraint needs the last token before the next one
            max_logprobs=_ACTIONS,
            logprobs_mode="processed_logprobs",
            logits_processors=[_CONSTRAINT] if self._constrained else None,
            speculative_config=speculation if config.speculate else None,
            enable_log_requests=False,  # they would hold clinical text
            disable_log_stats=True,
        )
        return AsyncLLM.from_engine_args(arguments)

    def close(self) -> None:
        """Stop vLLM's processes."""
        self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        """See :class:`services.generation.engine.Engine`."""
        return asyncio.run_coroutine_threadsafe(self._segment(request), self._loop)

    async def _segment(self, request: TagRequest) -> TaggedLine:
        pieces = split(request.segment.text)
        if not self._constrained:
            return await self._free_lines(request, pieces)
        lines = await asyncio.gather(*(self._line(request, pieces, key) for key in request.types))
        return tagged_line(request.segment, lines)

    async def _line(self, request: TagRequest, pieces: Pieces, key: str) -> TypeLine:
        """A line and the candidates beyond it; see ``PerTypeEngine``, which finds the same ones with fewer passes."""
        floor = math.log(self._config.candidate_floor)
        prompt = [*self._tokens.prefix(pieces), *self._header(request, key)]
        steps = await self._decode(prompt, pieces)
        begin = begun(steps[0].logprobs or {steps[0].action: 0.0}, self._config.candidate_floor)
        if begin.forced:
            steps = [begin.first, *await self._decode(prompt, pieces, (begin.first.action,))]
        steps[0] = begin.first
        beyond: dict[Range, float] = {}
        branches = []
        if begin.first.action is not Action.ABSENT:
            actions = [step.action for step in steps]
            for at, state, action, logprob in passed_over(len(pieces), steps, floor):
                if action is Action.CLOSE:
                    span = (state.open[-1], state.copied)
                    beyond[span] = max(beyond.get(span, -math.inf), logprob)
                else:
                    branches.append((state.copied, logprob, (*actions[:at], Action.OPEN)))
        closed = await asyncio.gather(
            *(self._decode(prompt, pieces, done, self._config.branch_pieces) for _, _, done in branches)
        )
        for (copied, logprob, _), inner in zip(branches, closed, strict=True):
            if inner and inner[-1].action is Action.CLOSE:
                logprob += sum((step.logprobs or {}).get(step.action, 0.0) for step in inner)
                span = (copied, copied + sum(step.action is Action.COPY for step in inner))
                if logprob >= floor:
                    beyond[span] = max(beyond.get(span, -math.inf), logprob)
        return type_line(key, pieces, begin, steps, beyond, floor)

    async def _free_lines(self, request: TagRequest, pieces: Pieces) -> TaggedLine:
        """The unconstrained output: a copy for each type that is present, preceded by the type's name."""
        prefix = self._tokens.prefix(pieces)
        lang = request.segment.lang

        async def said(key: str) -> str:
            output = await self._ask([*prefix, *self._header(request, key)], len(prefix) * 2 + 8, None)
            copy = str(self._tokenizer.decode(output.token_ids, skip_special_tokens=True))
            return "" if copy.strip() in ("", "-") else f"{entity_types.get(key).name(lang)}: {copy.strip()}"

        copies = [copy for copy in await asyncio.gather(*map(said, request.types)) if copy]
        return TaggedLine(
            segment=request.segment, types=request.types, tagged="\n".join(copies), presence=float(bool(copies))
        )

    async def _decode(
        self, prompt: Sequence[int], pieces: Pieces, done: Sequence[Action] = (), closing: int = 0
    ) -> list[TypeLineStep]:
        """The steps behind ``done``."""
        line = [token for _, tokens in self._tokens.steps(pieces, done) for token in tokens]
        asked = {"text": pieces.text, "done": [int(action) for action in done], "closing": closing}
        output = await self._ask([*prompt, *line], _LONGEST - len(prompt) - len(line), asked)
        said = [token for token in output.token_ids if token != self._tokenizer.eos_token_id]
        given: list[Mapping[int, float]] = [
            {token: found.logprob for token, found in entry.items()} for entry in output.logprobs[: len(said)]
        ]
        return steps_of(Walk(self._tokens, pieces, self._tokenizer.eos_token_id, done, closing), said, given)

    async def _ask(self, prompt: Sequence[int], most: int, asked: dict[str, Any] | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stop = [self._tokenizer.eos_token_id, *(self._tokens.newline if asked is None else ())]
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=most,
            stop_token_ids=stop,
            logprobs=None if asked is None else _ACTIONS,
            extra_args=None if asked is None else {KEY: asked},
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        answers = self._engine.generate({"prompt_token_ids": list(prompt)}, parameters, request_id=uuid.uuid4().hex)
        (answer,) = [answer async for answer in answers]  # the final one only
        return answer.outputs[0]

    def _header(self, request: TagRequest, key: str) -> tuple[int, ...]:
        return self._tokens.header(entity_types.get(key).name(request.segment.lang))


def merged_folder(settings: Settings) -> Path:
    """The base with the adapter of the settings merged, in the cache folder: made once."""

    def make(folder: Path) -> None:
        load_merged(settings, adapter_folder(settings), "bfloat16").to("cpu").save_pretrained(folder)
        load_tokenizer(settings).save_pretrained(folder)

    return build_once(settings.cache / f"merged-{generator_revision(settings)}", make)

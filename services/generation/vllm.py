"""The ``vllm`` engine: a line token by token, for bases that one device cannot hold.

A segment is a request, and so is each branch beyond its greedy line; what they have in common, such as the types asked
for, is computed once, in vLLM's prefix cache. The copy
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from services.generation.config import GenerationConfig
from services.generation.copy.branches import other_types, passed_over
from services.generation.copy.lines import Step, alternatives, mentions, start, tagged_line
from services.generation.engine import Engine, TagRequest
from services.generation.walk import KEY, Walk, after, steps_of
from shared.entity_types import TYPES
from shared.messages import TaggedLine
from shared.model.base_model import load_tokenizer
from shared.model.digests import check_sums, write_sums
from shared.model.file_cache import build_once
from shared.model.folders import adapter_folder
from shared.model.loading import load_merged
from shared.model.revision import generator_revision
from shared.settings import Settings
from shared.text.grammar import ABSENT, LABEL, Action, CopyTokens, Labels, PieceTokens, Script, Typed
from shared.text.pieces import split

_CONSTRAINT = "services.generation.vllm_constraint:CopyConstraint"
_PASS = 8192  # tokens, unless the settings say otherwise
_LONGEST = 2048  # tokens: types, a segment of 320 units and two lines of it; what a third has beyond is cut off
_BLOCK = 16  # tokens per block of shared keys and values: the texts are short
_OPTIONS = max(LABEL, len(TYPES))  # most options of a decision: the other actions, or a label for each type


class VllmEngine(Engine):
    """See the module."""

    def __init__(self, model: Path, config: GenerationConfig) -> None:
        """``model``: a folder that holds base, adapter merged, and tokenizer."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        self._tokens = CopyTokens(tokenizer)
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
            max_logprobs=_OPTIONS,
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
        """A line and the candidates beyond it; see ``CopyEngine``, which finds the same ones with fewer passes."""
        pieces = split(request.segment.text)
        labels = Labels(self._tokens, request.types, request.segment.lang)
        script = Script(self._tokens, PieceTokens(self._tokens, pieces), labels)
        if not self._constrained:
            return await self._free_line(request, script)
        steps = await self._decode(request, script)
        first = steps[0]
        begin = start(first.logprobs or {first.action: 0.0}, self._config.candidate_floor)
        if begin.forced:
            steps = [begin.first, *await self._decode(request, script, (begin.first.action,))]
        steps[0] = begin.first
        least = math.log(self._config.candidate_floor)
        own: dict[Typed, float] = {}
        others: dict[Typed, float] = {}
        if begin.first.action != ABSENT:
            own = mentions(script.begin(), labels, steps)
            given = least - (math.log(begin.presence) if begin.forced else 0.0)
            others = await self._beyond(request, script, steps, given)
        found = alternatives(pieces, begin, own, others, least)
        return tagged_line(request.segment, pieces, labels, begin, steps, found)

    async def _beyond(
        self, request: TagRequest, script: Script, steps: Sequence[Step], floor: float
    ) -> dict[Typed, float]:
        """The candidates that a line did not take, with log-probabilities of at least ``floor``.

        A mention that was not opened is closed at the first good place, not at the best one.
        """
        found = other_types(script, steps, floor)
        actions = [step.action for step in steps]
        branches = [((*actions[:at], action), logprob) for at, _, action, logprob in passed_over(script, steps, floor)]
        longest = self._config.branch_pieces
        grown = await asyncio.gather(*(self._decode(request, script, done, longest) for done, _ in branches))
        for (done, logprob), inner in zip(branches, grown, strict=True):
            for span, total in _closed(script, done, logprob, inner):
                if total >= floor:
                    found[span] = max(found.get(span, -math.inf), total)
        return found

    async def _free_line(self, request: TagRequest, script: Script) -> TaggedLine:
        """The unconstrained output, which parsing aligns."""
        prompt = script.prompt()
        output = await self._ask(prompt, min(2 * len(prompt) + 64, _LONGEST - len(prompt)), None)
        said = str(self._tokenizer.decode(output.token_ids, skip_special_tokens=True)).strip()
        tagged = "" if said == "-" else said
        return TaggedLine(segment=request.segment, types=request.types, tagged=tagged, presence=float(bool(tagged)))

    async def _decode(
        self, request: TagRequest, script: Script, done: Sequence[Action] = (), closing: int = 0
    ) -> list[Step]:
        """The steps behind ``done``; none where no token is left for them."""
        prompt = [*script.prompt(), *script.said(done)]
        if len(prompt) >= _LONGEST:
            return []  # a branch at the end of a line that was cut off
        asked = {
            "text": request.segment.text,
            "types": list(request.types),
            "lang": request.segment.lang,
            "done": list(done),
            "closing": closing,
        }
        output = await self._ask(prompt, _LONGEST - len(prompt), asked)
        given: list[Mapping[int, float]] = [
            {token: found.logprob for token, found in entry.items()} for entry in output.logprobs
        ]
        return steps_of(Walk(script, done, closing), output.token_ids, given)

    async def _ask(self, prompt: Sequence[int], most: int, asked: dict[str, Any] | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stop = [*self._tokens.end]
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=most,
            stop_token_ids=stop,
            logprobs=None if asked is None else max(LABEL, len(asked["types"])),
            extra_args=None if asked is None else {KEY: asked},
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        answers = self._engine.generate({"prompt_token_ids": list(prompt)}, parameters, request_id=uuid.uuid4().hex)
        (answer,) = [answer async for answer in answers]  # the final one only
        return answer.outputs[0]


def _closed(
    script: Script, done: Iterable[Action], logprob: float, inner: Iterable[Step]
) -> Iterator[tuple[Typed, float]]:
    """The mention that a branch closes, of each type that its label could have had, with its log-probability.

    ``logprob``: of the brackets in ``done``; ``inner``: the steps behind.
    """
    state = after(script, done)
    for step in inner:
        if step.action >= LABEL and state.node is not None:
            for action, other in (step.logprobs or {step.action: 0.0}).items():
                branch = state.node[action - LABEL]
                if branch.node is None:
                    (type_,) = branch.types
                    yield (state.open[-1], state.copied, script.labels.types[type_]), logprob + other
        logprob += step.logprob
        state.apply(step.action)


def merged_folder(settings: Settings) -> Path:
    """The base with the adapter of the settings merged, in the cache folder: made once."""

    def make(folder: Path) -> None:
        load_merged(settings, adapter_folder(settings), "bfloat16").to("cpu").save_pretrained(folder)
        load_tokenizer(settings).save_pretrained(folder)
        write_sums(folder)

    merged = build_once(settings.cache / f"merged-{generator_revision(settings)}-with-sums", make)
    check_sums(merged, settings.cache)
    return merged

"""The ``copy`` engine: a segment's passes, from its prompt to the message.

The header, whose tokens are the same for all segments that ask for the same types, is computed once for each worker and
its keys and values are copied. Prompt, line and branches of a segment lie in one row of slots of the cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from services.generation.config import GenerationConfig
from services.generation.copy.branches import Found, beyond, greedy
from services.generation.copy.draft import MARGIN, Line, Memory, decoded
from services.generation.copy.forward import Forward, Part, Task
from services.generation.copy.lines import alternatives, start, tagged_line
from services.generation.copy.scheduler import Scheduler, Worker
from services.generation.engine import Engine, TagRequest
from shared import entity_types
from shared.messages import Lang, TaggedLine
from shared.model.base_model import load_tokenizer
from shared.model.body import Body
from shared.model.folders import adapter_folder
from shared.model.loading import load_body
from shared.model.masks import causal
from shared.model.revision import generator_revision
from shared.selection.mention_head import MentionHead
from shared.settings import Settings
from shared.text.grammar import ABSENT, CopyTokens, Labels, PieceTokens, Script, Typed
from shared.text.pieces import split

_HEADERS = 16  # kept by a worker


class CopyEngine(Engine):
    """See the module."""

    def __init__(
        self, body: Body, tokens: CopyTokens, config: GenerationConfig, head: MentionHead | None = None
    ) -> None:
        """``head``: makes the embeddings of mentions; without it lines carry none."""
        self._forward = Forward(body)
        self._tokens = tokens
        self._config = config
        self._head = head
        self._memory = Memory()
        self._labels: dict[tuple[tuple[str, ...], Lang], Labels] = {}
        on_cpu = self._forward.device.type == "cpu"
        self._lookahead = config.lookahead or (6 if on_cpu else 256)
        self._scheduler: Scheduler[TagRequest, TaggedLine] = Scheduler(
            self._forward,
            self._segment,
            (config.threads or os.cpu_count() or 1) if on_cpu else 1,
            config.pass_tokens or (512 if on_cpu else 8192),
            config.cache_tokens,
        )

    @classmethod
    def load(cls, settings: Settings, config: GenerationConfig) -> CopyEngine:
        """Base model, adapter and head of the settings; the adapter is merged into the weights and costs nothing to
        run.
        """
        tokens = CopyTokens(load_tokenizer(settings))
        alone = config.model_copy(update={"threads": 1})

        def example(body: Body) -> None:
            segments = entity_types.definitions()
            cls(body, tokens, alone).tag([TagRequest(s, entity_types.DEFAULTS[s.lang]) for s in segments])

        folder, revision = adapter_folder(settings), generator_revision(settings)
        head = None if folder is None else MentionHead.load(folder)
        return cls(load_body(settings, folder, revision, config.dtype, example), tokens, config, head)

    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        """See :class:`services.generation.engine.Engine`."""
        return self._scheduler.submit(request)

    def _segment(self, request: TagRequest, worker: Worker) -> Task[TaggedLine]:
        """The passes of a segment: its prompt, its line, its branches."""
        pieces = split(request.segment.text)
        script = Script(self._tokens, PieceTokens(self._tokens, pieces), self._labels_of(request))
        floor = self._config.candidate_floor
        header, text = script.labels.header, script.pieces.text
        prompt = len(header) + len(text)
        room = prompt + len(text) + MARGIN
        cache = worker.cache
        slot = cache.take(room)
        known = worker.headers.get(header)
        past = 0
        if known is not None:
            cache.copy(known, slot, len(header))
            past = len(header)
        ids = [*header, *text][past:]
        actions, options = script.options(script.begin())
        mask = causal(len(ids), past, self._forward.device)
        (answer,) = yield [Part(ids, range(past, prompt), mask, slot, past, [(len(ids) - 1, options)], [len(ids) - 1])]
        if header not in worker.headers and len(worker.headers) < _HEADERS:
            worker.headers[header] = cache.take(len(header))
            cache.copy(slot, worker.headers[header], len(header))
        begin = start(dict(zip(actions, answer.logprobs[0], strict=True)), floor)
        line = Line(request.segment, pieces, script, slot, room, begin, script.begin(), list(answer.states), prompt)
        yield from decoded(line, self._memory, self._lookahead, cache)
        own: dict[Typed, Found] = {}
        others: dict[Typed, Found] = {}
        if begin.first.action != ABSENT:
            own = greedy(line)
            least = math.log(floor) - (math.log(begin.presence) if begin.forced else 0.0)
            others = yield from beyond(line, least, self._config.branch_pieces, self._lookahead, cache)
            if not begin.forced:
                self._memory.learn(pieces, list(own))
        cache.give_back(line.slot, line.room)
        return self._message(line, own, others)

    def _labels_of(self, request: TagRequest) -> Labels:
        key = (request.types, request.segment.lang)
        labels = self._labels.get(key)
        if labels is None:
            if len(self._labels) > 1000:
                self._labels.clear()
            labels = self._labels[key] = Labels(self._tokens, *key)
        return labels

    def _message(self, line: Line, own: Mapping[Typed, Found], others: Mapping[Typed, Found]) -> TaggedLine:
        embeddings: dict[Typed, NDArray[np.float32]] = {}
        if self._head is not None:
            found = {span: one.states for span, one in (*others.items(), *own.items()) if one.states is not None}
            embeddings = self._head.embed(found)
        known = {span: one.logprob for span, one in own.items()}
        new = {span: one.logprob for span, one in others.items()}
        labels = line.script.labels
        floor = self._config.candidate_floor
        beyond_ = alternatives(line.pieces, line.begin, known, new, math.log(floor), embeddings)
        return tagged_line(line.segment, line.pieces, labels, line.begin, line.steps, beyond_, embeddings)

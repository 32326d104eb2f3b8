"""The ``copy`` engine: the passes of a segment, from its prompt to its message.

The header, whose tokens are the same for all segments that request the same types, is computed once per worker, and its
keys and values are copied. Prompt, line and branches of a segment occupy one row of cache slots.
"""

from __future__ import annotations

import math
from concurrent.futures import Future

from services.generation.config import GenerationConfig
from services.generation.copy.branches import beyond
from services.generation.copy.draft import MARGIN, Line, Memory, decoded
from services.generation.copy.forward import Forward, Part, Task
from services.generation.copy.lines import alternatives, mentions, start, tagged_line
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
from shared.settings import Settings
from shared.text.grammar import ABSENT, CopyTokens, Labels, PieceTokens, Script, Typed
from shared.text.pieces import split

_HEADERS = 16  # headers that a worker keeps


class CopyEngine(Engine):
    """See the module."""

    def __init__(self, body: Body, tokens: CopyTokens, config: GenerationConfig) -> None:
        self._forward = Forward(body)
        self._tokens = tokens
        self._config = config
        self._memory = Memory()
        self._labels: dict[tuple[tuple[str, ...], Lang], Labels] = {}
        self._lookahead = config.lookahead or self._forward.lookahead
        self._scheduler: Scheduler[TagRequest, TaggedLine] = Scheduler(self._forward, self._segment, config)

    @classmethod
    def load(cls, settings: Settings, config: GenerationConfig) -> CopyEngine:
        """Base model and adapter of the settings; the adapter is merged into the weights and costs nothing to
        run.
        """
        tokens = CopyTokens(load_tokenizer(settings))
        alone = config.model_copy(update={"threads": 1})

        def example(body: Body) -> None:
            segments = entity_types.definitions()
            cls(body, tokens, alone).tag([TagRequest(s, entity_types.DEFAULTS[s.lang]) for s in segments])

        folder, revision = adapter_folder(settings), generator_revision(settings)
        return cls(load_body(settings, folder, revision, config.dtype, example), tokens, config)

    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        """See :class:`services.generation.engine.Engine`."""
        return self._scheduler.submit(request)

    def _segment(self, request: TagRequest, worker: Worker) -> Task[TaggedLine]:
        """The passes of a segment: its prompt, its line, its branches."""
        pieces = split(request.segment.text)
        script = Script(self._tokens, PieceTokens(self._tokens, pieces), self._labels_of(request))
        floor, device, cache = self._config.candidate_floor, self._forward.device, worker.cache
        header, text = script.labels.header, script.pieces.text
        prompt = len(header) + len(text)
        room = prompt + len(text) + MARGIN
        slot = cache.take(room)
        known = worker.headers.get(header)
        past = 0
        if known is not None:
            cache.copy(known, slot, len(header))
            past = len(header)
        ids = [*header, *text][past:]
        actions, options = script.options(script.begin())
        mask = causal(len(ids), past, device)
        ((logprobs,),) = yield [Part(ids, range(past, prompt), mask, slot, past, [(len(ids) - 1, options)])]
        if header not in worker.headers and len(worker.headers) < _HEADERS:
            worker.headers[header] = cache.take(len(header))
            cache.copy(slot, worker.headers[header], len(header))
        begin = start(dict(zip(actions, logprobs, strict=True)), floor)
        line = Line(pieces, script, slot, room, begin, script.begin(), prompt)
        yield from decoded(line, self._memory, self._lookahead, cache, device)
        own: dict[Typed, float] = {}
        others: dict[Typed, float] = {}
        least = math.log(floor)
        if begin.first.action != ABSENT:
            own = mentions(script.begin(), script.labels, line.steps)
            given = least - (math.log(begin.presence) if begin.forced else 0.0)
            others = yield from beyond(line, given, self._config.branch_pieces, self._lookahead, cache, device)
            if not begin.forced:
                self._memory.learn(pieces, list(own))
        cache.give_back(line.slot, line.room)
        found = alternatives(pieces, begin, own, others, least)
        return tagged_line(request.segment, pieces, script.labels, begin, line.steps, found)

    def _labels_of(self, request: TagRequest) -> Labels:
        key = (request.types, request.segment.lang)
        labels = self._labels.get(key)
        if labels is None:
            if len(self._labels) > 1000:
                self._labels.clear()
            labels = self._labels[key] = Labels(self._tokens, *key)
        return labels

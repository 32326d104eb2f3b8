"""The engine of scheme ``per-type.v1``: a segment's passes, from its prefix to the message.

A segment's lines share its prefix and do not see one another. Each line under way lies in one row of slots of the
cache, a copy of the prefix's first, so that attention sees them in one piece.
"""

from __future__ import annotations

import math
from concurrent.futures import Future

from services.generation.config import GenerationConfig
from services.generation.copy.forward import Forward, Part, Task, side_by_side
from services.generation.copy.scheduler import Scheduler, Worker
from services.generation.engine import Engine, TagRequest
from services.generation.per_type.branches import Brancher
from services.generation.per_type.draft import MARGIN, DraftedLine, Drafter, Prefix, completed
from services.generation.per_type.lines import Range, TypeLine, begun, tagged_line, type_line
from shared import entity_types
from shared.messages import TaggedLine
from shared.model.base_model import load_tokenizer
from shared.model.body import Body
from shared.model.cache import Cache
from shared.model.folders import adapter_folder
from shared.model.loading import load_body
from shared.model.masks import block_mask
from shared.model.revision import generator_revision
from shared.settings import Settings
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import split


class PerTypeEngine(Engine):
    """See the module."""

    def __init__(self, body: Body, tokens: PerTypeTokens, config: GenerationConfig) -> None:
        self._forward = Forward(body)
        self._tokens = tokens
        self._floor = config.candidate_floor
        lookahead = config.lookahead or self._forward.lookahead
        self._drafter = Drafter(tokens, lookahead, self._forward.device)
        self._brancher = Brancher(tokens, self._drafter, self._floor, config.branch_pieces, lookahead)
        self._scheduler: Scheduler[TagRequest, TaggedLine] = Scheduler(self._forward, self._segment, config)

    @classmethod
    def load(cls, settings: Settings, config: GenerationConfig) -> PerTypeEngine:
        """Base model and adapter of the settings; the adapter is merged into the weights and costs nothing to run."""
        tokens = PerTypeTokens(load_tokenizer(settings))
        alone = config.model_copy(update={"threads": 1})

        def example(body: Body) -> None:
            requests = [TagRequest(segment, (segment.document_id,)) for segment in entity_types.definitions()]
            cls(body, tokens, alone).tag(requests)

        folder, revision = adapter_folder(settings), generator_revision(settings)
        return cls(load_body(settings, folder, revision, config.dtype, example), tokens, config)

    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        """See :class:`services.generation.engine.Engine`."""
        return self._scheduler.submit(request)

    def _segment(self, request: TagRequest, worker: Worker) -> Task[TaggedLine]:
        """The first pass: the prefix, and whether each type is there at all; then the lines of those that are."""
        cache = worker.cache
        segment, pieces = request.segment, split(request.segment.text)
        prefix = Prefix(segment, pieces, self._tokens.prefix(pieces))
        headers = [self._tokens.header(entity_types.get(key).name(segment.lang)) for key in request.types]
        ids, positions, at = list(prefix.ids), list(range(len(prefix.ids))), []
        for header in headers:
            ids += header
            positions += range(len(prefix.ids), len(prefix.ids) + len(header))
            at.append(len(ids) - 1)
        options = State(len(pieces)).admissible()
        first_ids = self._drafter.first_ids(pieces, 0, options, after_open=False)
        mask = block_mask(len(prefix.ids), [len(header) for header in headers], self._forward.device)
        slot = cache.take(len(ids))
        (answer,) = yield [Part(ids, positions, mask, slot, 0, [(token, first_ids) for token in at])]
        lines = []
        begin = slot + len(prefix.ids)
        for key, header, logprobs in zip(request.types, headers, answer, strict=True):
            line = self._line(prefix, key, header, dict(zip(options, logprobs, strict=True)))
            if not line.absent:
                line.room = 2 * len(prefix.ids) + len(header) + MARGIN
                line.slot = cache.take(line.room)
                cache.copy(slot, line.slot, len(prefix.ids))
                cache.copy(begin, line.slot + len(prefix.ids), len(header))
            begin += len(header)
            lines.append(line)
        cache.give_back(slot, len(ids))
        said = yield from side_by_side([self._decoded(line, cache) for line in lines])
        return tagged_line(segment, said)

    def _line(self, prefix: Prefix, key: str, header: tuple[int, ...], decided: dict[Action, float]) -> DraftedLine:
        """A line with its first action accepted. An absent type that had a real chance is drafted all the same."""
        begin = begun(decided, self._floor)
        line = DraftedLine(prefix, key, header, begin, State(len(prefix.pieces)), done=len(header))
        line.accept(begin.first)
        if not line.absent:
            line.draft = completed(line.state, [])
        return line

    def _decoded(self, line: DraftedLine, cache: Cache) -> Task[TypeLine]:
        """The passes over a line's draft, each of which accepts it up to and including its first correction."""
        beyond: dict[Range, float] = {}
        if not line.absent:
            while line.draft:
                part = self._drafter.prepare(line, cache)
                logprobs: list[list[float]] = []
                if part is not None:
                    (logprobs,) = yield [part]
                self._drafter.check(line, logprobs)
            beyond = yield from self._brancher.beyond(line, cache)
            cache.give_back(line.slot, line.room)
        floor = math.log(self._floor)
        return type_line(line.type, line.prefix.pieces, line.begin, line.steps, beyond, floor)

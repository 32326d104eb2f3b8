"""The Ray Serve binding of selection."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from services.replica_deployment import deployment
from services.selection.batching import Batcher
from services.selection.config import SelectionConfig
from services.selection.selector import Selector
from shared.backends.feedback_store import FeedbackStore
from shared.messages import Basis, Candidate, Selected
from shared.runtime.cpus import give_way, use_threads
from shared.runtime.logs import configure
from shared.settings import settings

_CONFIG = SelectionConfig()


@deployment("selection", _CONFIG, num_gpus=_CONFIG.num_gpus)
class Selection:
    """Decides which candidates are entities, in batches across documents."""

    def __init__(self) -> None:
        configure(settings("selection"))
        give_way()
        feedback = FeedbackStore.from_settings(settings("selection"))
        self._selector = Selector.load(settings("selection"), config=_CONFIG, feedback=feedback)
        # The number of threads is a thread's own. The libraries are loaded by now, if this selector needs them.
        self._executor = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="batch",
            initializer=use_threads,
            initargs=(_CONFIG.replica_threads,),
        )
        self._batcher: Batcher[tuple[Candidate, ...], Selected] = Batcher(
            self._selector.select,
            self._selector.tokens,
            batch_tokens=_CONFIG.batch_tokens,
            max_queued=_CONFIG.max_queued,
            full="selection: too many documents are waiting; send fewer or raise BIOBRACKET_SELECTION_MAX_QUEUED",
            executor=self._executor,
        )

    async def select(self, candidates: tuple[Candidate, ...]) -> Selected:
        """See :meth:`services.selection.selector.Selector.select`."""
        (selected,) = await self._batcher.ask([candidates])
        return selected

    async def basis(self) -> Basis:
        """What this replica decides by. Runs between two batches, since a selector takes one caller at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._selector.basis)

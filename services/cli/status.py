"""``biobracket status``: documents, entities and lag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.console import DataOption, attached_settings, fail, out

if TYPE_CHECKING:
    pass


def status(data: DataOption = None) -> None:
    """Show documents, entities and lag."""
    from services.cli.rendering import LiveCounts
    from services.ingest.config import IngestConfig
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.scan import Lag
    from shared.errors import BackendError

    settings, group = attached_settings(data), IngestConfig().group
    try:
        store = ResultStore.from_settings(settings)
        counts = store.counts()
        store.close()
        reader = Lag(settings, group, settings.topic_documents)
        lag = reader.read()
        reader.close()
    except BackendError as error:
        fail(str(error))
    out.print(str(LiveCounts(counts["documents"], counts["entities"], lag)), highlight=False)

"""``biobracket produce``: documents into Kafka."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import DataOption, attached_settings, fail, out, progress_bar, warn
from services.cli.document_files import check_readable

if TYPE_CHECKING:
    pass

# Far more than a broker acknowledges at once, and still little memory.
_UNACKNOWLEDGED = 1000


def produce(
    files: Annotated[
        list[str],
        typer.Argument(
            help="*.txt and *.md: one document each. Anything else: one JSON document per line, or JSON that holds "
            "documents; also compressed (*.gz) or from a pipe; - is standard input."
        ),
    ],
    data: DataOption = None,
) -> None:
    """Send documents to Kafka.

    Lines are sent unchanged. Invalid documents are reported here and end up in the dead-letters topic; of a file that
    holds no documents at all nothing is sent.
    """
    from services.cli.document_files import records
    from shared.backends.streams.sink import Sink
    from shared.errors import StreamError

    settings = attached_settings(data)
    total = invalid = failed = 0
    waiting: list[Future[Any]] = []

    def settle(everything: bool) -> int:
        lost = 0
        while waiting and (everything or len(waiting) >= _UNACKNOWLEDGED):
            try:
                waiting.pop(0).result()
            except StreamError as error:
                lost += 1
                if lost == 1:
                    warn(str(error))
        return lost

    check_readable(files)
    try:
        sink = Sink(settings)
        with progress_bar() as progress:
            for record in records(files, progress):
                total += 1
                if record.problem is not None:
                    warn(f"{record.place}: {record.problem}")
                if record.value is None:
                    failed += 1
                    continue
                invalid += record.problem is not None
                waiting.append(sink.send(settings.topic_documents, record.key, record.value))
                failed += settle(False)
            failed += settle(True)
        sink.close()
    except StreamError as error:
        fail(str(error))
    out.print(f"sent {total - failed} of {total} documents to {settings.topic_documents}", highlight=False)
    if invalid:
        out.print(f"{invalid} of them are invalid and will be in {settings.topic_dead_letters}", highlight=False)
    if failed:
        raise typer.Exit(1)

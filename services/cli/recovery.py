"""Commands after an incident: ``biobracket audit``, ``audit verify`` and ``rebuild``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import DataOption, attached_settings, fail, load_settings, out, progress_bar

audit = typer.Typer(help="Whether every document came out, and whether the audit trail is whole.")


@audit.callback(invoke_without_command=True)
def came_out(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option("--since", help="Start here: 2025-11-26T08:00 (UTC), or 90m, 12h, 7d ago.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Topic of documents; default BIOBRACKET_TOPIC_DOCUMENTS.")
    ] = None,
    resend: Annotated[bool, typer.Option("--resend", help="Append missing documents to the topic again.")] = False,
    data: DataOption = None,
) -> None:
    """Check that every committed document has a result or a dead letter; exit status 1 if one has neither."""
    if context.invoked_subcommand is not None:
        return
    from services.audit import Audit, since_ms
    from services.ingest.config import IngestConfig
    from shared.errors import BackendError

    settings, group = attached_settings(data), IngestConfig().group
    topic = topic or settings.topic_documents
    try:
        start = 0 if since is None else since_ms(since, time.time())
    except ValueError as error:
        fail(str(error))
    try:
        with Audit(settings, group, topic, since_ms=start) as found:
            with progress_bar() as progress:
                task = progress.add_task("reading", total=None)
                counts = found.run(
                    resend=resend,
                    report=lambda step, read, total: progress.update(
                        task, description=step, completed=read, total=total
                    ),
                )
            for (name, partition), offset in found.missing():
                out.print(f"missing: {name}, partition {partition}, offset {offset}", highlight=False, soft_wrap=True)
    except BackendError as error:
        fail(str(error))
    out.print(f"{topic}, as far as group {group} has committed it: {counts}", highlight=False, soft_wrap=True)
    if counts.missing:
        raise typer.Exit(1)


@audit.command(name="verify")
def verify_trail(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files of the trail; those of BIOBRACKET_AUDIT if none is given.")
    ] = None,
) -> None:
    """Check the audit trail with BIOBRACKET_AUDIT_KEY; exit status 1 if an entry was changed, moved or is missing."""
    from services.audit_trail import Verified, verify

    settings = load_settings()
    if not files:
        if settings.audit is None:
            fail("files: none is given and BIOBRACKET_AUDIT is unset; name the files of the trail")
        files = sorted(settings.audit.glob("*.jsonl"))
    counts, flaws = Verified(), 0
    key = settings.audit_key.get_secret_value().encode()
    for file in files:
        try:
            with file.open("rb") as lines:
                for flaw in verify(lines, counts, key):
                    flaws += 1
                    out.print(f"{file}:{flaw.line}: {flaw.problem}", highlight=False, soft_wrap=True, markup=False)
        except OSError as error:
            fail(f"files: {file} cannot be read ({error.strerror})")
    out.print(
        f"{counts.entries} entries in {counts.chains} chains, {counts.open} of them without an end; {flaws} flaws",
        highlight=False,
        soft_wrap=True,
    )
    if flaws:
        raise typer.Exit(1)


def rebuild(data: DataOption = None) -> None:
    """Fill an empty or partial Redis from the topic of entities; harmless beside the running application."""
    from services.rebuild import rebuild as fill
    from shared.errors import BackendError

    settings = attached_settings(data)
    try:
        with progress_bar() as progress:
            task = progress.add_task(f"reading {settings.topic_entities}", total=None)
            counts = fill(settings, lambda read, total: progress.update(task, completed=read, total=total))
    except BackendError as error:
        fail(str(error))
    out.print(str(counts), highlight=False)

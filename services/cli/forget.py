"""``biobracket forget``: documents are erased."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import DataOption, attached_settings, err, fail, out

if TYPE_CHECKING:
    from services.erasure import Choice, Found
    from shared.settings import Settings

_DAY_MS = 86_400_000


def forget(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Identifiers of documents.")] = None,
    before: Annotated[
        str | None,
        typer.Option("--before", help="Those whose record is older: 2025-11-26, 2025-11-26T08:00 (UTC), or 365d ago."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", help="Those whose metadata has this: ward=7; repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before --before and --metadata are carried out.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Erase documents: results, mentions, cached segments, their feedback; one that is not there is a success too."""
    from services.audit_trail import AuditTrail
    from services.erasure import Erasures
    from shared.backends.streams.topics import retention_ms
    from shared.errors import BackendError

    choice = _choice(ids, before, metadata)
    settings = attached_settings(data)
    try:
        with Erasures(settings) as erasures:
            found = erasures.find(choice)
            if found.undated:
                err.print(
                    f"{found.undated:,} results of an earlier version of biobracket have no time: erase them by id",
                    highlight=False,
                    soft_wrap=True,
                )
            if dry_run:
                out.print(f"{_counted(found)} to erase", highlight=False, soft_wrap=True)
                return
            if not choice.ids and not yes:
                typer.confirm(f"erase {_counted(found)}?", abort=True, err=True)
            trail = AuditTrail.from_settings(settings)  # before anything is erased: it may not be writable
            erasures.erase(found)
            if trail is not None:
                for id_ in found.documents:
                    trail.add(f"command:{getpass.getuser()}", "forget", id_, "erased")
                trail.close()
            kept = retention_ms(settings)
    except BackendError as error:
        fail(str(error))
    except OSError as error:
        fail(f"audit: the trail cannot be written ({error.strerror}); let BIOBRACKET_AUDIT name a folder that can be")
    out.print(f"{_counted(found)} erased", highlight=False, soft_wrap=True)
    _tell_what_remains(settings, kept)


def _choice(ids: list[str] | None, before: str | None, metadata: list[str] | None) -> Choice:
    from services.audit import since_ms
    from services.erasure import Choice
    from shared.messages import MAX_ID_CHARS

    if bool(ids) == bool(before or metadata):
        fail("documents: name some by id, or choose them by --before, --metadata or both")
    for id_ in ids or ():
        if not 0 < len(id_) <= MAX_ID_CHARS:
            fail(f"id: one has {len(id_)} characters; ids have 1 to {MAX_ID_CHARS}")
    wanted = {}
    for pair in metadata or ():
        name, equals, value = pair.partition("=")
        if not equals or not name or name in wanted:
            fail("metadata: is not NAME=VALUE, or names something twice; write for example --metadata ward=7")
        wanted[name] = value
    try:
        before_ms = None if before is None else since_ms(before, time.time())
    except ValueError as error:
        fail(str(error).replace("since:", "before:", 1))
    return Choice(frozenset(ids or ()), before_ms, wanted)


def _counted(found: Found) -> str:
    said = f"{len(found.documents):,} documents ({found.results:,} with a result)"
    return said + (f" and {len(found.letters):,} dead letters" if found.letters else "")


def _tell_what_remains(settings: Settings, kept: dict[str, int | None]) -> None:
    """Topics keep what was sent, and no command of biobracket can change that."""
    topics = (settings.topic_documents, settings.topic_dead_letters, settings.topic_feedback)
    said = ", ".join(f"{topic} ({_lasting(kept.get(topic))})" for topic in topics)
    err.print(f"records stay on their topics until retention removes them: {said}", highlight=False, soft_wrap=True)
    for topic in topics:
        lasts = kept.get(topic)
        if lasts is not None and settings.erasure_ttl and not 0 <= lasts < settings.erasure_ttl * 1000:
            err.print(
                f"{topic} keeps records longer than the mark of an erasure lasts, after which they could be replayed: "
                "lower its retention.ms, or raise BIOBRACKET_ERASURE_TTL",
                highlight=False,
                soft_wrap=True,
            )


def _lasting(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "not told by the broker"
    if milliseconds < 0:
        return "for good"
    return f"{milliseconds / _DAY_MS:.3g} days"

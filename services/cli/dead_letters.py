"""``biobracket dead-letters``: what could not be processed, and what becomes of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import DataOption, JsonOption, attached_settings, err, fail, out

if TYPE_CHECKING:
    from services.dead_letters import Filter, Letter

dead_letters = typer.Typer(help="Records that could not be processed: list, look at, replay or drop them.")

Places = Annotated[list[str] | None, typer.Argument(help="Letters by name, as `list` shows them.")]
Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only with this reason; repeatable.")]
Since = Annotated[str | None, typer.Option("--since", help="From here on: 2025-11-26T08:00 (UTC), or 90m, 12h ago.")]
Until = Annotated[str | None, typer.Option("--until", help="Up to here.")]
Every = Annotated[bool, typer.Option("--every", help="All that are unresolved.")]
All = Annotated[bool, typer.Option("--all", help="Also those that were replayed or dropped.")]


@dead_letters.command(name="list")
def list_letters(
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    all: All = False,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """List letters with reason, time and origin; never their content."""
    from services.dead_letters import DeadLetters
    from shared.errors import StreamError

    wanted = _filter(None, reason, since, until, all)
    counts: Counter[str] = Counter()
    try:
        for letter in DeadLetters(attached_settings(data)).letters(wanted):
            counts[letter.reason] += 1
            if as_json:
                out.print(json.dumps(_facts(letter)), highlight=False, soft_wrap=True, markup=False)
            else:
                out.print(_line(letter), highlight=False, soft_wrap=True, markup=False)
    except StreamError as error:
        fail(str(error))
    said = ", ".join(f"{number:,} {name}" for name, number in counts.most_common())
    err.print(f"{counts.total():,} letters{': ' + said if said else ''}", highlight=False, soft_wrap=True)


@dead_letters.command()
def show(
    place: Annotated[str, typer.Argument(help="The letter by name, as `list` shows it.")],
    value: Annotated[bool, typer.Option("--value", help="Print its content, which may be clinical text.")] = False,
    data: DataOption = None,
) -> None:
    """Show a letter's headers, and with --value its bytes."""
    from services.dead_letters import DeadLetters, printable
    from shared.errors import StreamError

    wanted = _filter([place], None, None, None, True)
    try:
        found = list(DeadLetters(attached_settings(data)).letters(wanted))
    except StreamError as error:
        fail(str(error))
    if not found:
        fail(f"letter: there is no {place}; see `biobracket dead-letters list --all`")
    (letter,) = found
    if value:
        typer.echo(letter.record.value or b"", nl=False)
        return
    for name, content in _facts(letter).items():
        out.print(f"{name}: {content}", highlight=False, soft_wrap=True, markup=False)
    for name, header in letter.record.headers:
        text = printable(name.encode("utf-8", "surrogatepass"))
        out.print(f"header {text}: {printable(header)}", highlight=False, soft_wrap=True, markup=False)


@dead_letters.command()
def replay(
    places: Places = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
    all: All = False,
    data: DataOption = None,
) -> None:
    """Send records to their topics again. They never replace a later version of their document."""
    _check_chosen(places, reason, since, until, every)
    _resolve("replay", _filter(places, reason, since, until, all), data)


@dead_letters.command()
def drop(
    places: Places = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    every: Every = False,
    data: DataOption = None,
) -> None:
    """Mark letters as done with."""
    _check_chosen(places, reason, since, until, every)
    _resolve("drop", _filter(places, reason, since, until, False), data)


@dead_letters.command()
def resume(data: DataOption = None) -> None:
    """Let ingest go on after too many dead letters halted it."""
    from services.ingest.config import IngestConfig
    from shared.backends.halt_store import HaltStore
    from shared.errors import StoreError

    try:
        store = HaltStore(attached_settings(data), IngestConfig().group)
        why = store.halted()
        store.lift()
        store.close()
    except StoreError as error:
        fail(str(error))
    out.print("ingest was not halted" if why is None else f"ingest goes on; it was halted since {why}", highlight=False)


def _resolve(how: str, wanted: Filter, data: DataOption) -> None:
    from services.dead_letters import DeadLetters
    from shared.errors import StreamError

    letters = DeadLetters(attached_settings(data))
    try:
        counts = letters.replay(wanted) if how == "replay" else letters.drop(wanted)
    except StreamError as error:
        fail(str(error))
    done = "replayed" if how == "replay" else "dropped"
    out.print(f"{counts.resolved:,} letters {done}", highlight=False)
    if counts.kept:
        err.print(
            f"{counts.kept:,} hold no document (too large to keep, empty, or not readable): send these again from "
            "their source, and drop the letters",
            highlight=False,
            soft_wrap=True,
        )


def _check_chosen(
    places: list[str] | None, reasons: list[str] | None, since: str | None, until: str | None, every: bool
) -> None:
    if not (places or reasons or since or until or every):
        fail("letters: none are chosen; name some, use --reason, --since or --until, or say --every")


def _filter(
    places: list[str] | None, reasons: list[str] | None, since: str | None, until: str | None, resolved: bool
) -> Filter:
    from services.audit import since_ms
    from services.dead_letters import Filter

    now = time.time()
    try:
        return Filter(
            places=frozenset(places or ()),
            reasons=frozenset(reasons or ()),
            since_ms=0 if since is None else since_ms(since, now),
            until_ms=None if until is None else since_ms(until, now),
            resolved=resolved,
        )
    except ValueError as error:
        fail(str(error))


def _facts(letter: Letter) -> dict[str, object]:
    return {
        "letter": letter.place,
        "reason": letter.reason,
        "field": letter.field,
        "time": datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="seconds"),
        "topic": letter.origin.topic,
        "partition": letter.origin.partition,
        "offset": letter.origin.offset,
        "bytes": len(letter.record.value or b""),
        "resolution": letter.resolution,
    }


def _line(letter: Letter) -> str:
    facts = _facts(letter)
    field = f" ({facts['field']})" if letter.field else ""
    done = f", {letter.resolution}" if letter.resolution else ""
    return (
        f"{facts['letter']}  {facts['time']}  {facts['reason']}{field}  from {facts['topic']}, "
        f"partition {facts['partition']}, offset {facts['offset']}{done}"
    )

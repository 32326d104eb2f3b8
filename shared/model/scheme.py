"""The tagging scheme that an adapter was trained for, and the types that it was trained to look for together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import AdapterError, quotable
from shared.messages import Lang

SCHEME = "labelled.v1"
SCHEME_FILE = "scheme.json"


class Guideline(NamedTuple):
    """Types that were annotated together in texts of a language."""

    lang: Lang
    types: tuple[str, ...]


class _SchemeFile(BaseModel):
    """``scheme.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    scheme: str
    guidelines: tuple[Guideline, ...] = ()


def check_scheme(folder: Path | None) -> None:
    """AdapterError unless an adapter's folder says that it is of :data:`SCHEME`. None, for no adapter, is right."""
    guidelines_of(folder)


def guidelines_of(folder: Path | None) -> tuple[Guideline, ...]:
    """What an adapter was trained on; empty where its folder does not say it. Errors as of :func:`check_scheme`."""
    if folder is None:
        return ()
    file = folder / SCHEME_FILE
    remedy = "set BIOBRACKET_ADAPTER to another adapter, or install a version of biobracket that knows the scheme"
    if not file.exists():
        raise AdapterError(
            f"adapter: {folder} has no {SCHEME_FILE}, as the adapters of biobracket 0.2 (`per-type.v1`); this version "
            f"reads {SCHEME}: {remedy}"
        )
    try:
        content = _SchemeFile.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise AdapterError(
            f"adapter: {file} does not name a scheme; copy the adapter again, with all its files"
        ) from None
    if content.scheme != SCHEME:
        raise AdapterError(
            f"adapter: {file} names the scheme `{quotable(content.scheme)}`; this version reads {SCHEME}: {remedy}"
        )
    return content.guidelines


def write_scheme(folder: Path, guidelines: Iterable[Guideline] = ()) -> None:
    """Writes what :func:`guidelines_of` reads."""
    content = _SchemeFile(scheme=SCHEME, guidelines=tuple(guidelines))
    (folder / SCHEME_FILE).write_text(content.model_dump_json() + "\n", encoding="utf-8")


def asked_together(types: Sequence[str], lang: Lang, guidelines: Sequence[Guideline]) -> list[tuple[str, ...]]:
    """The types asked for, in groups of which each is a line of its own.

    A model knows what is *not* a mention only from texts that were annotated with all the types asked for: a word of a
    text that was annotated with others may well be one. So types are asked for together where a guideline has them all,
    one in the language of the text before another; those of no guideline, in a group of their own. Within a group the
    order stays.
    """
    if not guidelines:
        return [tuple(types)]
    left = list(types)
    groups: list[tuple[str, ...]] = []
    while left:
        covered = [(one.lang == lang, [key for key in left if key in one.types]) for one in guidelines]
        # The most types, of a guideline in the text's language if one has any; the first of equal ones.
        _, _, chosen = max(((here and bool(keys), len(keys), keys) for here, keys in covered), key=lambda one: one[:2])
        chosen = chosen or left
        groups.append(tuple(chosen))
        left = [key for key in left if key not in chosen]
    return groups

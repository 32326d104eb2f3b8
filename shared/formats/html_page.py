"""A page of HTML that needs nothing else: texts with their entities marked in them, and a table for each.

Inner entities are marks within marks. HTML cannot cross elements: an entity that crosses another is marked in pieces
of the same title. Texts are text: markup is escaped, control characters become pictures of themselves, and a text's
direction stays its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import BinaryIO

from shared.entity_types import TYPES
from shared.formats.common import Annotated, Writing
from shared.messages import Entity

_SAFE = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A, 0x0D)} | {0x7F: 0x2421}
_SAFE |= dict.fromkeys([*range(0x80, 0xA0), 0xFFFE, 0xFFFF], 0xFFFD)
# Controls of direction, which could show a text in another order than it has.
_SAFE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C], 0xFFFD)

_STYLE = """\
:root { color-scheme: light dark; font: 16px/1.9 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { color: inherit; background: hsl(var(--hue) 70% 50% / .2); border-bottom: 2px solid hsl(var(--hue) 70% 45%);
  border-radius: .2em; padding: .1em .1em; }
mark > small { font-size: .65em; margin-inline-start: .25em; opacity: .8; user-select: none; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.4; }
th, td { text-align: start; padding: .15rem .8rem .15rem 0; }
td.n { text-align: end; font-variant-numeric: tabular-nums; }
"""
_HEAD = f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>biobracket</title>
<style>
{_STYLE}</style>
</head>
<body>
"""


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents on one page."""
    out.write(_HEAD.encode())
    for document in documents:
        shown = document.known_text()
        if (changed := sum(ord(char) in _SAFE for char in shown)) > 0:
            writing.changed["control character shown as a picture or U+FFFD"] += changed
        out.write("".join(_section(document)).encode())
    out.write(b"</body>\n</html>\n")


def _section(document: Annotated) -> Iterator[str]:
    lang = "zh" if document.extraction.lang == "zh" else "en"
    yield f'<section>\n<h2 dir="auto">{_text(document.id)}</h2>\n<div class="text" lang="{lang}" dir="auto">'
    yield from _marked(document.known_text(), document.entities)
    yield f"</div>\n<details>\n<summary>{len(document.entities)} entities</summary>\n<table>\n<thead><tr>"
    yield "".join(f"<th>{name}</th>" for name in ("type", "start", "end", "confidence", "text"))
    yield "</tr></thead>\n<tbody>\n"
    for entity in document.entities:
        numbers = (str(entity.start), str(entity.end), f"{entity.confidence:.2f}")
        yield f"<tr><td>{_text(entity.type)}</td>" + "".join(f'<td class="n">{number}</td>' for number in numbers)
        yield f'<td dir="auto">{_text(entity.text)}</td></tr>\n'
    yield "</tbody>\n</table>\n</details>\n</section>\n"


def _marked(text: str, entities: Sequence[Entity]) -> Iterator[str]:
    """The text in marks. ``entities``: as from :attr:`Annotated.entities`."""
    starts: dict[int, list[Entity]] = {}
    for entity in entities:
        starts.setdefault(entity.start, []).append(entity)
    open_: list[Entity] = []
    at = 0
    for bound in sorted({at for e in entities for at in (e.start, e.end)} | {len(text)}):
        yield _text(text[at:bound])
        at = bound
        # Down to the outermost that ends here; what crosses its end is opened again behind it.
        ended = next((i for i, e in enumerate(open_) if e.end == bound), len(open_))
        again = []
        while len(open_) > ended:
            entity = open_.pop()
            yield _closing(entity, entity.end == bound)
            if entity.end > bound:
                again.append(entity)
        for entity in sorted([*again, *starts.get(bound, ())], key=lambda e: -e.end):
            yield _opening(entity)
            open_.append(entity)


def _opening(entity: Entity) -> str:
    title = f"{entity.type} {entity.start}–{entity.end}, confidence {entity.confidence:.2f}"
    return f'<mark style="--hue: {_hue(entity.type)}" title="{_text(title)}">'


def _closing(entity: Entity, ends: bool) -> str:
    return (f"<small>{_text(entity.type)}</small>" if ends else "") + "</mark>"


def _hue(type_: str) -> int:
    # The golden angle: neighbours in the inventory are far apart.
    return round((list(TYPES).index(type_) if type_ in TYPES else len(TYPES)) * 137.508) % 360


def _text(text: str) -> str:
    return escape(text.translate(_SAFE))

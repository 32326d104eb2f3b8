"""Bytes that a stranger could send: right ones with parts changed, JSON of any shape, and noise.

Each changed one holds :data:`MARK` where it can, so that an error message that quotes the input is found.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

MARK = "患者 zq17"

_TOKENS: list[bytes] = [
    MARK.encode(),
    MARK.encode("gb18030"),
    json.dumps(MARK).encode(),
    *(bytes([byte]) for byte in b'[]{}<>"\\|,:;&#\t\n\r \x00\x1f\x7f\xff'),
    b"\r\n",
    b"\xef\xbb\xbf",  # a byte order mark
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a surrogate in UTF-8
    b"\\ud800",
    "\u2028\u202e\u200b\u0301😀İß".encode(),
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"0.5",
    b"9" * 25,
    b"9" * 5000,  # more digits than Python turns into a number
    b"[" * 3000,
    b'{"a":' * 1200,
    b"<document>",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"<?xml version='1.0' encoding='utf-7'?>",
    b"&b;",
    b"# text = ",
    b"-DOCSTART-",
    b"B-zq17",
    b"T1\tzq17 0 5\t",
    b"|t|",
    b"|a|",
    b"\\[",
    b" | zq17]",
    b"2001-99-99",  # a date to YAML
    b"*zq17",
    b"&zq17 ",
    b"!!python/object/apply:os.getcwd []",
    b"../",
    b"x" * 700,
]
_LEAVES: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\ud800", "\x00", MARK, "zh", "disease", "x" * 700, [], {}, [MARK], {MARK: MARK}, [[[[[]]]]],
]  # fmt: skip

_values = st.recursive(
    st.sampled_from(_LEAVES) | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def inputs(seeds: Sequence[bytes], fields: Sequence[str] = ()) -> st.SearchStrategy[bytes]:
    """Inputs for a parser, most of them made of right ones. ``fields``: names of members of its JSON objects."""
    changed = st.builds(changed_from, st.sampled_from(seeds), st.integers(0, 2**64 - 1))
    objects = st.dictionaries(st.sampled_from([*fields, MARK, "v"]), _values, max_size=6).map(_dumped)
    others = [st.binary(max_size=80), objects] if fields else [st.binary(max_size=80)]
    return st.one_of(*[changed] * 6, *others)


def changed_from(seed: bytes, number: int) -> bytes:
    """A right input with one to six changes, which ``number`` determines."""
    draw = random.Random(number)
    if draw.random() < 0.4:
        try:
            return _dumped(_changed_value(json.loads(seed), draw))
        except ValueError:
            pass  # not JSON
    content = bytearray(seed)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        begin = draw.randint(0, len(content))
        end = min(len(content), begin + draw.choice((0, 1, 1, 2, 8, 40)))
        kind = draw.randrange(6)
        if kind == 0:
            content[begin:end] = bytes(draw.randrange(256) for _ in range(end - begin))
        elif kind == 1:
            content[begin:begin] = content[begin:end] * draw.choice((1, 2, 50))
        elif kind == 2:
            del content[begin : draw.choice((end, end, end, len(content)))]
        elif kind == 3:
            content[begin:end] = draw.choice(_TOKENS)
        else:
            content[begin:begin] = draw.choice(_TOKENS)
    return bytes(content)


def _changed_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its nodes replaced, left out, renamed or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(list(value))
        kind = draw.random()
        if kind < 0.1:
            return {key: item for key, item in value.items() if key != name}
        if kind < 0.2:
            return {(MARK if key == name else key): item for key, item in value.items()}
        return value | {name: _changed_value(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        if draw.random() < 0.2:
            return value + value[at:]
        return [*value[:at], _changed_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(_LEAVES)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")

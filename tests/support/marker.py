"""A word that stands nowhere else, planted into what the product handles, and the search for traces of it."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis


def _word() -> str:
    return f"zq{secrets.token_hex(5)}"


@dataclass(frozen=True)
class Marker:
    """Two rare words around a Chinese one; a trace of either word is a trace of it."""

    words: tuple[str, str] = field(default_factory=lambda: (_word(), _word()))

    @property
    def text(self) -> str:
        return self.words[0] + "右肺腺癌" + self.words[1]

    def traces(self, content: bytes) -> list[str]:
        """The forms in which either word, or the Chinese one beside it, stands in some bytes."""
        lower = content.lower()
        return [
            f"{name} of {word}"
            for word in self.words
            for name, form in _forms(word)
            if (form.lower() in lower if name != "base64" else form in content)
        ]

    def in_redis(self, url: str) -> Iterator[str]:
        """Traces in the keys and values of a server, each with its place."""
        with redis.Redis.from_url(url) as client:
            for key in client.scan_iter():
                for trace in self.traces(key + b"\n" + b"\n".join(_parts(client, key))):
                    yield f"{re.sub(rb'[^a-z:{}]', b'', key).decode()}: {trace}"

    def in_folder(self, folder: Path) -> Iterator[str]:
        """The same of a folder's files and their names."""
        for path in folder.rglob("*"):
            found = self.traces(os.fsencode(path.name))
            if path.is_file() and not path.is_symlink():
                found += self.traces(path.read_bytes())
            yield from (f"{path.name}: {trace}" for trace in found)


def _forms(word: str) -> Iterator[tuple[str, bytes]]:
    yield "utf-8", word.encode()
    yield "utf-16", word.encode("utf-16-le")
    yield "utf-16", word.encode("utf-16-be")
    yield "hex", word.encode().hex().encode()
    for before in range(3):  # as it stands within what was encoded as a whole
        whole = base64.b64encode(b"\0" * before + word.encode() + b"\0\0")
        yield "base64", whole[4 if before else 0 : 4 * ((before + len(word)) // 3)]
    escaped = "".join(f"\\u{ord(c):04x}" for c in word)
    yield "escaped", escaped.encode()
    yield "escaped", json.dumps(escaped)[1:-1].encode()


def _parts(client: Any, key: bytes) -> Iterable[bytes]:
    kind = client.type(key)
    if kind == b"hash":
        return [part for pair in client.hgetall(key).items() for part in pair]
    if kind == b"string":
        return [client.get(key) or b""]
    if kind == b"set":
        return list(client.smembers(key))
    assert kind == b"zset", kind
    return list(client.zrange(key, 0, -1))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

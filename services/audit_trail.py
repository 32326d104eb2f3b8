"""Who did what to which document, when, and with what outcome: entries that cannot be changed unnoticed.

An entry is a JSON object on a line of its own. Each process begins a chain: an entry has its place in the chain and the
digest of the entry before it, so that a changed, missing or moved entry breaks the chain. With a key digests are
HMAC-SHA-256, and whoever has no key cannot make a chain anew; without one they are SHA-256. The last entry of a chain
says that it ended; where it is missing the process runs, was killed, or the end was cut off.

Documents are named by digests, as in logs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from shared.settings import Settings

Action = Literal["read", "search", "extract", "feedback", "forget", "administer"]

_END = "end"
_MEMBERS = {"chain", "number", "time", "who", "action", "what", "outcome", "before", "digest"}


class AuditTrail:
    """Appends the entries of this process. Thread-safe."""

    def __init__(self, write: Callable[[bytes], object], key: bytes = b"") -> None:
        """``write`` takes one line at a time and keeps their order; ``key``: of the digests."""
        self._write, self._key = write, key
        self._lock = Lock()
        self._chain = secrets.token_hex(8)
        self._number = 0
        self._before = ""

    @classmethod
    def in_folder(cls, folder: Path, key: bytes = b"") -> AuditTrail:
        """In a new file of the folder, readable by its owner only. OSError if it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        began = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        name = f"audit-{began}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}.jsonl"
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        return cls(lambda line: os.write(file, line), key)

    @classmethod
    def from_settings(cls, settings: Settings) -> AuditTrail | None:
        """In the folder ``audit``; None where none is set."""
        if settings.audit is None:
            return None
        return cls.in_folder(settings.audit, settings.audit_key.get_secret_value().encode())

    def add(self, who: str, action: Action, document: str, outcome: str) -> None:
        """``who``: the caller's name; ``document``: its id, or what was searched for; ``outcome``: a short code."""
        self._add(who, action, hashlib.sha256(document.encode(errors="surrogatepass")).hexdigest(), outcome)

    def close(self) -> None:
        """The chain ends here."""
        self._add("", _END, "", "")

    def _add(self, who: str, action: str, what: str, outcome: str) -> None:
        with self._lock:
            entry = {
                "chain": self._chain,
                "number": self._number,
                "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds"),
                "who": who,
                "action": action,
                "what": what,
                "outcome": outcome,
                "before": self._before,
            }
            digest = _digest(entry, self._key)
            self._write(json.dumps(entry | {"digest": digest}).encode() + b"\n")
            self._number += 1
            self._before = digest


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong at a line, counted from 1; 0 for a chain as a whole."""

    line: int
    problem: str


@dataclass(slots=True)
class _Chain:
    number: int = 0
    before: str = ""
    ended: bool = False


class Verified:
    """What :func:`verify` counted: entries, chains, and those of them without an end."""

    def __init__(self) -> None:
        self.entries = 0
        self._chains: dict[str, _Chain] = {}

    @property
    def chains(self) -> int:
        return len(self._chains)

    @property
    def open(self) -> int:
        """Chains of processes that run, were killed, or whose last entries are missing."""
        return sum(not chain.ended for chain in self._chains.values())


def verify(lines: Iterable[bytes], counts: Verified, key: bytes = b"") -> Iterator[Flaw]:
    """The flaws of a trail, in which several chains may be mixed; fills ``counts``."""
    for at, line in enumerate(lines, 1):
        counts.entries += 1
        entry = _parsed(line)
        if entry is None:
            yield Flaw(at, "is not an entry")
            continue
        digest = entry.pop("digest")
        if not hmac.compare_digest(_digest(entry, key).encode(), digest.encode(errors="surrogatepass")):
            yield Flaw(at, "was changed, or another key was used")
        chain = counts._chains.setdefault(entry["chain"], _Chain())  # noqa: SLF001 - of this module
        number = entry["number"]
        if number > chain.number:
            yield Flaw(at, f"{number - chain.number} entries before it are missing, or stand behind it")
        elif number < chain.number:
            yield Flaw(at, "stands behind a later one, or twice")
        elif entry["before"] != chain.before:
            yield Flaw(at, "does not follow on the entry before it")
        elif chain.ended:
            yield Flaw(at, "stands behind the end of its chain")
        if number >= chain.number:
            chain.number, chain.before, chain.ended = number + 1, digest, entry["action"] == _END


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    # Written in another way, a reader could be shown other values than those that were digested.
    if not isinstance(entry, dict) or entry.keys() != _MEMBERS or json.dumps(entry).encode() != line.rstrip(b"\n"):
        return None
    number = entry["number"]
    if type(number) is not int or number < 0 or not all(isinstance(entry[n], str) for n in _MEMBERS - {"number"}):
        return None
    return entry


def _digest(entry: dict[str, Any], key: bytes) -> str:
    content = json.dumps(entry, sort_keys=True).encode()
    return hmac.new(key, content, hashlib.sha256).hexdigest() if key else hashlib.sha256(content).hexdigest()

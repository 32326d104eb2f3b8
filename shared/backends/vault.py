"""Encryption at rest: values are sealed, and what names them is a keyed digest.

A sealed value is `BB 01`, the length and the letters of the key's id, 24 random bytes, and what AES-256-GCM makes of
the value. The first twelve random bytes and the key give the value a key of its own (HMAC-SHA-256), the last twelve are
its nonce: with so many random bits nobody has to count the values under a key, see XAES-256-GCM
(https://c2sp.org/XAES-256-GCM). The place of a value is authenticated with it, so that it opens nowhere else.

Names (document ids, texts, ids of feedback) become HMAC-SHA-256 under a key of its own, cut to 128 bits. That key stays
when values get a new one, since nothing would be found any more.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.backends import secret_file
from shared.backends.watched_file import WatchedFile
from shared.errors import StoreError
from shared.settings import Settings

Kind = Literal["document", "feedback", "line", "mention", "segment", "version"]

_MARK = b"\xbb\x01"  # never in UTF-8, so no JSON begins with it
_RANDOM = 12
_TAG = 16
_ID = r"[A-Za-z0-9_\-]{1,32}"
_SETTING = "BIOBRACKET_ENCRYPTION_KEYS"

Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SealError(StoreError):
    """A value that cannot be opened, or keys that cannot be used. The message tells nothing of values and keys."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message, retryable)


class KeyFile(BaseModel):
    """The content of the file of keys; keys are 32 random bytes, hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    v: Literal[1] = Field(default=1, description="Version of the format.")
    current: str = Field(description="Id of the key that new values are sealed under.")
    keys: dict[Annotated[str, Field(pattern=f"^{_ID}$")], Hex32] = Field(
        repr=False, description="Keys of values, by id."
    )
    names: Hex32 = Field(repr=False, description="Key of names; it cannot be changed.")

    @model_validator(mode="after")
    def _current_is_there(self) -> KeyFile:
        if self.current not in self.keys:
            raise ValueError("current: names none of the keys")
        return self


class Vault:
    """Without keys: values and ids as they are, names as SHA-256."""

    fingerprint = "plain"
    """Tells keys of names apart."""

    def seal(self, value: bytes, place: str) -> bytes:
        """The value as it is to be stored at a place: a Redis key and a field of it, or the like."""
        return value

    def open(self, sealed: bytes, place: str) -> bytes:
        """The inverse of :meth:`seal`. :class:`SealError` where that cannot be."""
        if sealed.startswith(_MARK):
            raise SealError(f"store: a value is encrypted; set {_SETTING} to the file with its key")
        return sealed

    def current(self, sealed: bytes) -> bool:
        """Whether a value is stored as :meth:`seal` would store it now."""
        return True

    def name(self, kind: Kind, text: str) -> str:
        """A digest of 32 hex digits, in which the text cannot be read."""
        return hashlib.sha256(_bytes(text)).hexdigest()[:32]

    def member(self, kind: Kind, text: str) -> str:
        """What stands for an id in an index: itself, unless there are keys."""
        return text

    def named(self, kind: Kind, member: str) -> str:
        """The :meth:`name` of what a :meth:`member` stands for."""
        return self.name(kind, member)


PLAIN = Vault()


class KeyedVault(Vault):
    """With the keys of a file, which is followed: keys that are added or made current count from the next value on.

    While the file is missing or broken, the keys known before count.
    """

    def __init__(self, path: Path) -> None:
        """:class:`SealError` where the file cannot be used."""
        self._file = WatchedFile(path, parse)
        try:
            self._known = self._file.get()
        except OSError as error:
            raise SealError(f"{path}: cannot be read ({error.strerror}); check {_SETTING}") from None
        except SealError as error:
            raise SealError(f"{path}: {error}; check {_SETTING}") from None
        self._names = bytes.fromhex(self._known.names)
        self.fingerprint = hmac.digest(self._names, b"fingerprint", "sha256").hex()[:16]

    def seal(self, value: bytes, place: str) -> bytes:
        keys = self._keys()
        random = os.urandom(2 * _RANDOM)
        sealed = _cipher(keys, keys.current, random).encrypt(random[_RANDOM:], value, _bytes(place))
        id_ = keys.current.encode()
        return b"".join((_MARK, bytes((len(id_),)), id_, random, sealed))

    def open(self, sealed: bytes, place: str) -> bytes:
        id_, rest = _parts(sealed)
        keys = self._keys()
        if id_ not in keys.keys:
            raise SealError(f"store: a value is encrypted with the key {id_}, which the file of {_SETTING} lacks")
        random = rest[: 2 * _RANDOM]
        try:
            return _cipher(keys, id_, random).decrypt(random[_RANDOM:], rest[2 * _RANDOM :], _bytes(place))
        except InvalidTag:
            raise SealError(
                "store: an encrypted value was changed, or comes from another place; restore it, or remove it and "
                "process its document again"
            ) from None

    def current(self, sealed: bytes) -> bool:
        return _parts(sealed)[0] == self._keys().current

    def name(self, kind: Kind, text: str) -> str:
        return hmac.digest(self._names, f"{kind}\x1f".encode() + _bytes(text), "sha256").hex()[:32]

    def member(self, kind: Kind, text: str) -> str:
        return self.name(kind, text)

    def named(self, kind: Kind, member: str) -> str:
        return member

    def _keys(self) -> KeyFile:
        try:
            found = self._file.get()
        except (OSError, SealError):
            return self._known
        if found.names == self._known.names:
            self._known = found
        return self._known


def vault(settings: Settings) -> Vault:
    """The vault that ``encryption_keys`` names; one without keys where it is unset. :class:`SealError`."""
    return PLAIN if settings.encryption_keys is None else KeyedVault(settings.encryption_keys)


def parse(content: bytes) -> KeyFile:
    """The keys of a file. :class:`SealError`, which says nothing of the content but where it fails."""
    try:
        return KeyFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = str(first["loc"][0]) if first["loc"] else "the file"
        raise SealError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def create(path: Path) -> str:
    """Makes a file of keys; the id of its only one. :class:`SealError` where there is a file already; OSError."""
    with secret_file.locked(path):
        if path.exists():
            raise SealError(f"{path}: is there already; add a key to it, or name another file")
        made = KeyFile(current="k1", keys={"k1": secrets.token_hex(32)}, names=secrets.token_hex(32))
        _write(path, made)
    return made.current


def add(path: Path) -> str:
    """Adds a key, which is not current yet; its id. :class:`SealError`, OSError."""
    with secret_file.locked(path):
        kept = parse(path.read_bytes())
        id_ = f"k{max((int(k[1:]) for k in kept.keys if k[1:].isdecimal()), default=0) + 1}"
        _write(path, kept.model_copy(update={"keys": kept.keys | {id_: secrets.token_hex(32)}}))
    return id_


def use(path: Path, id_: str) -> None:
    """Makes a key the current one. :class:`SealError` where there is none of this id; OSError."""
    with secret_file.locked(path):
        kept = parse(path.read_bytes())
        if id_ not in kept.keys:
            raise SealError(f"id: no key has it; the file has {', '.join(kept.keys)}")
        _write(path, kept.model_copy(update={"current": id_}))


def remove(path: Path, id_: str) -> None:
    """Removes a key that is not current. :class:`SealError`, OSError."""
    with secret_file.locked(path):
        kept = parse(path.read_bytes())
        if id_ not in kept.keys or id_ == kept.current:
            others = ", ".join(sorted(kept.keys.keys() - {kept.current})) or "none"
            raise SealError(f"id: is the current key or none; those that can be removed: {others}")
        _write(path, kept.model_copy(update={"keys": {k: v for k, v in kept.keys.items() if k != id_}}))


def key_of(sealed: bytes) -> str | None:
    """The id of the key that a value is sealed under; None where it is not sealed."""
    return _parts(sealed)[0] if sealed.startswith(_MARK) else None


def _write(path: Path, keys: KeyFile) -> None:
    secret_file.write(path, keys.model_dump_json(indent=2) + "\n")


def _parts(sealed: bytes) -> tuple[str, bytes]:
    """The key's id, and what stands behind it."""
    if not sealed.startswith(_MARK):
        raise SealError(f"store: a value is not encrypted, though {_SETTING} is set; remove it, or unset that")
    start = len(_MARK) + 1
    end = start + (sealed[start - 1] if len(sealed) >= start else 0)
    if len(sealed) < end + 2 * _RANDOM + _TAG:
        raise SealError("store: an encrypted value was cut off; restore it, or remove it")
    id_ = sealed[start:end].decode("ascii", "replace")
    if not re.fullmatch(_ID, id_):  # messages name it, so it must be one
        raise SealError("store: an encrypted value was changed; restore it, or remove it")
    return id_, sealed[end:]


def _cipher(keys: KeyFile, id_: str, random: bytes) -> AESGCM:
    return AESGCM(hmac.digest(bytes.fromhex(keys.keys[id_]), random[:_RANDOM], "sha256"))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

"""API keys in a JSON file: made, listed, revoked and checked.

A key is ``bbk_ID_SECRET``; the file has its id and a salted SHA-256 of its secret. A slow hash such as scrypt protects
passwords because these can be guessed; a secret of 256 random bits cannot, and a slow hash would cost each request tens
of milliseconds that anybody could make the server spend.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from services.query.auth.callers import AuthenticationError, Caller, Rejected, Unavailable
from services.query.auth.scopes import SCOPES, Scope
from shared.backends.secret_file import locked, write
from shared.backends.watched_file import WatchedFile
from shared.errors import first_problem

PREFIX = "bbk_"
_SECRET_BYTES = 32
_NAME = r"[A-Za-z0-9][A-Za-z0-9._\-]{0,63}"
_KEY = re.compile(r"bbk_([0-9a-f]{12})_([A-Za-z0-9_\-]{43})")
_NO_SALT, _NO_HASH = bytes(16), bytes(32)

Hex16 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ApiKey(BaseModel):
    """A key as the file has it, which the key itself cannot be had from."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern="^[0-9a-f]{12}$", description="Public part of the key.")
    caller: str = Field(pattern=f"^{_NAME}$", description="Name of the caller; several keys may have the same.")
    scopes: tuple[Scope, ...] = Field(min_length=1, description="What it may be used for.")
    salt: Hex16 = Field(description="Random bytes before the secret, hexadecimal.")
    sha256: Hex32 = Field(description="SHA-256 of salt and secret, hexadecimal.")
    created: AwareDatetime = Field(description="When it was made.")
    expires: AwareDatetime | None = Field(default=None, description="From when on it is refused; null: never.")
    revoked: AwareDatetime | None = Field(default=None, description="When it was revoked; null: it was not.")

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        """Whether it is accepted at a time."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"


class ApiKeys(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    v: Literal[1] = Field(default=1, description="Version of the format.")
    keys: tuple[ApiKey, ...] = Field(default=(), description="All keys, revoked ones included, oldest first.")


class KeyRing:
    """Checks keys against the file; a change of the file counts from the next check on."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises :class:`AuthenticationError` where the file cannot be used."""
        self._now = now
        self._file = WatchedFile(path, lambda content: {key.id: key for key in parse(content).keys})
        try:
            self._file.get()
        except (OSError, AuthenticationError) as error:
            raise _unusable(path, error) from None

    def check(self, token: str) -> Caller:
        """The caller that a key is of.

        Raises :class:`.callers.Rejected` for one that is not accepted, and :class:`.callers.Unavailable` while the file
        is missing or broken: keys that may have been revoked by then are not accepted.
        """
        try:
            keys = self._file.get()
        except (OSError, AuthenticationError):
            raise Unavailable("key_file_unreadable") from None
        match = _KEY.fullmatch(token)
        key = keys.get(match[1]) if match else None
        secret = match[2] if match else ""
        # An unknown id takes the same steps, so that the time tells nothing.
        salt, expected = (bytes.fromhex(key.salt), bytes.fromhex(key.sha256)) if key else (_NO_SALT, _NO_HASH)
        right = hmac.compare_digest(_hash(salt, secret), expected)
        if key is None or not right:
            raise Rejected("unknown_key", "holds an API key that is not known")
        if (state := key.state(self._now())) != "valid":
            raise Rejected(
                f"{state}_key", f"holds an API key that {'has expired' if state == 'expired' else 'was revoked'}"
            )
        return Caller("key", key.caller, frozenset(key.scopes))


def create(path: Path, caller: str, scopes: Sequence[Scope], days: int, now: datetime) -> tuple[str, ApiKey]:
    """Make a key that is valid for ``days`` (0: for good); returns it, as nobody can later, and its entry in the file.

    Raises :class:`AuthenticationError` for a name that cannot be used or a file that is not one of keys, OSError where
    it cannot be written. The file is made if it is missing.
    """
    if not re.fullmatch(_NAME, caller):
        raise AuthenticationError(
            "name: has other characters than letters, digits and . _ -, or more than 64; name the program or person "
            "that will use the key, such as ward-3.viewer"
        )
    secret, salt = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_bytes(16)
    with locked(path):
        kept = _read(path, missing_ok=True)
        identifier = secrets.token_hex(6)
        while any(identifier == key.id for key in kept.keys):
            identifier = secrets.token_hex(6)
        key = ApiKey(
            id=identifier,
            caller=caller,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            salt=salt.hex(),
            sha256=_hash(salt, secret).hex(),
            created=now,
            expires=now + timedelta(days=days) if days else None,
        )
        write(path, ApiKeys(keys=(*kept.keys, key)).model_dump_json(indent=2) + "\n")
    return f"{PREFIX}{key.id}_{secret}", key


def revoke(path: Path, identifier: str, now: datetime) -> ApiKey:
    """Revoke the key with an id; one that was revoked before stays as it is.

    Raises :class:`AuthenticationError` where there is none, OSError where the file cannot be written.
    """
    with locked(path):
        kept = _read(path)
        found = next((key for key in kept.keys if key.id == identifier), None)
        if found is None:
            raise AuthenticationError("id: no key has it; `biobracket keys list` shows the ids")
        if found.revoked is not None:
            return found
        revoked = found.model_copy(update={"revoked": now})
        keys = ApiKeys(keys=tuple(revoked if key is found else key for key in kept.keys))
        write(path, keys.model_dump_json(indent=2) + "\n")
    return revoked


def listed(path: Path) -> tuple[ApiKey, ...]:
    """All keys of the file, oldest first. Raises :class:`AuthenticationError` where it cannot be read."""
    return _read(path).keys


def parse(content: bytes) -> ApiKeys:
    """The keys of a file. Raises :class:`AuthenticationError`, which says nothing of the content but where it fails."""
    try:
        keys = ApiKeys.model_validate_json(content)
    except ValidationError as error:
        raise AuthenticationError(first_problem(error)) from None
    if len({key.id for key in keys.keys}) < len(keys.keys):
        raise AuthenticationError("keys: two have the same id")
    return keys


def _hash(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode()).digest()


def _unusable(path: Path, error: Exception) -> AuthenticationError:
    if isinstance(error, FileNotFoundError):
        said = "is missing; make it by `biobracket keys create NAME --scopes read,extract`"
    elif isinstance(error, OSError):
        said = f"cannot be read ({error.strerror or type(error).__name__}); let this user read it"
    else:
        said = f"is no file of keys ({error}); restore it, or move it away and make new keys"
    return AuthenticationError(f"BIOBRACKET_QUERY_API_KEYS: {path} {said}")


def _read(path: Path, *, missing_ok: bool = False) -> ApiKeys:
    try:
        return parse(path.read_bytes())
    except (OSError, AuthenticationError) as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return ApiKeys()
        raise _unusable(path, error) from None

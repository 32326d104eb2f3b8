"""Digests of model files: a folder's ``SHA256SUMS``, checked before anything in the folder is loaded.

The format is that of coreutils, so ``sha256sum -c SHA256SUMS`` in the folder checks the same. Large files are hashed
once: their digests are remembered in the cache folder until size, times or inode change.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

from shared.errors import DigestError

SUMS = "SHA256SUMS"
_REMEMBERED = "digests.json"
_LARGE = 2**24  # bytes; what is smaller is hashed in milliseconds
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9_.+\-]{1,128})")  # names as errors quote them
# Loading any of these can run code. Only safetensors is read.
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def sha256(file: Path, cache: Path | None = None) -> str:
    """Hex SHA-256 of a file. With a ``cache`` folder, that of an unchanged large file is taken from there."""
    if cache is None or file.stat().st_size < _LARGE:
        return _hashed(file)
    found = file.stat()
    # The time of the last change of the inode is among them: it cannot be set, as that of the content can.
    stamp = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    name, remembered = str(file.resolve()), _remembered(cache)
    known = remembered.get(name)
    if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
        return known[-1]
    digest = _hashed(file)
    _remember(cache, {key: value for key, value in remembered.items() if Path(key).exists()} | {name: [*stamp, digest]})
    return digest


def write_sums(folder: Path, *names: str) -> None:
    """Writes the digests of a folder's files, or renews those of ``names`` and leaves the others as they are."""
    kept = _read(folder) if names else {}
    files = names or [file.name for file in folder.iterdir() if file.is_file() and _covered(file)]
    sums = kept | {name: sha256(folder / name) for name in files}
    new = folder / f".{SUMS}.new"
    new.write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")
    new.replace(folder / SUMS)


def check_sums(folder: Path, cache: Path | None = None) -> None:
    """DigestError, naming the file, unless a folder's files are those that its ``SHA256SUMS`` names.

    Also refused: weights and JSON files that it does not name, and weights in formats other than safetensors.
    ``cache``: see :func:`sha256`.
    """
    sums = _read(folder)
    for name, expected in sums.items():
        file = folder / name
        try:
            actual = sha256(file, cache)
        except OSError as error:
            raise DigestError(
                f"{file}: named in {SUMS}, but cannot be read ({error.strerror}); copy the folder again"
            ) from None
        if actual != expected:
            raise DigestError(f"{file}: not the file whose digest {SUMS} names; copy the folder again from its source")
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLES:
            raise DigestError(f"{file}: weights are read from safetensors alone; convert it, and remove this file")
        if file.suffix in (".json", ".safetensors") and file.name not in sums:
            raise DigestError(f"{file}: not named in {SUMS}; remove it, or copy the folder again from its source")


def _covered(file: Path) -> bool:
    """Whether the digest of a file belongs into ``SHA256SUMS``: its card and hidden files determine nothing."""
    return file.name not in (SUMS, "README.md") and not file.name.startswith(".")


def _read(folder: Path) -> dict[str, str]:
    file = folder / SUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DigestError(
            f"{file}: missing; copy the folder again with all its files, or, if you know where they come from, make it "
            f"there: sha256sum *.safetensors *.json > {SUMS}"
        ) from None
    except (OSError, UnicodeDecodeError):
        raise DigestError(f"{file}: cannot be read; copy the folder again") from None
    found = [_LINE.fullmatch(line) for line in lines]
    for number, match in enumerate(found, 1):
        if match is None or match[2] in (".", ".."):
            raise DigestError(f"{file}: line {number} is no digest and name; copy the folder again")
    return {match[2]: match[1] for match in found if match}


def _hashed(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remembered(cache: Path) -> dict[str, object]:
    try:
        found = json.loads((cache / _REMEMBERED).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(cache: Path, digests: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written to: hash again next time
        cache.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=cache, prefix=f".{_REMEMBERED}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(digests, file)
        Path(name).replace(cache / _REMEMBERED)

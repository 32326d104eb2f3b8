"""What a client shows to a server: secrets from files, and TLS by private CAs.

Errors name the setting, never a value.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from shared.errors import BackendError


def secret(path: str | Path, variable: str, kind: type[BackendError]) -> str:
    """What a file holds, without the line's end. ``kind``: the error where it holds nothing, with ``variable``."""
    try:
        found = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise kind(f"{variable}: {path} cannot be read ({error.strerror}); name a file with it", True) from None
    except UnicodeDecodeError:
        raise kind(f"{variable}: {path} is not UTF-8 text; write the secret alone into it", False) from None
    if not found or "\n" in found:
        raise kind(f"{variable}: {path} is not one line; write the secret alone into it", True)
    return found


def client_context(prefix: str, files: Files, kind: type[BackendError]) -> ssl.SSLContext:
    """TLS 1.2 or later, which checks certificate and host of the server. ``prefix``: of the settings, in upper case."""
    ca, certificate, key = files
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError:
        raise kind(f"{prefix}_CA: {ca} holds no certificates; name a file of them in PEM", False) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError):
            raise kind(
                f"{prefix}_CERTIFICATE: {certificate} and {key} are no certificate and its key; name two files in PEM, "
                "the key without a password",
                False,
            ) from None
    return context


Files = tuple[str | None, str | None, str | None]
"""Paths of trusted certificates, and of a client's certificate and key."""

"""The command that lists every setting: ``biobracket settings``."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from services.cli.console import configs, out

_SECRET_NAMES = ("password", "secret", "token", "keyfile", "key_password")
_MASK = "********"


def show_settings() -> None:
    """List every setting: environment variable, value in force, meaning."""
    from services.cli.rendering import setting

    for config in configs():
        for row in _rows(config):
            out.print(setting(*row))


def _rows(config: BaseSettings) -> Iterator[tuple[str, str, str]]:
    prefix = config.model_config["env_prefix"]
    for name, field in type(config).model_fields.items():
        yield f"{prefix}{name}".upper(), _shown(getattr(config, name)), field.description or ""


def _shown(value: object) -> str:
    """A value without what is secret in it."""
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, dict):
        masked = {k: _MASK if any(s in k.lower() for s in _SECRET_NAMES) else v for k, v in value.items()}
        return json.dumps(masked)
    return "" if value is None else str(value)

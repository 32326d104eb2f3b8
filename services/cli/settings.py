"""The command that lists every setting: ``biobracket settings``."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from collections.abc import Iterator

from pydantic import SecretStr
from pydantic_settings import BaseSettings

import services
from services.cli.console import load_settings, out

_SECRET_NAMES = ("password", "secret", "token", "keyfile", "key_password")
_MASK = "********"


def show_settings() -> None:
    """List every setting: environment variable, value in force, meaning."""
    from services.cli.rendering import setting

    for config in configs():
        for row in _rows(config):
            out.print(setting(*row))


def configs() -> Iterator[BaseSettings]:
    """The shared settings, then those of each service that has some."""
    yield load_settings()
    for module in sorted(m.name for m in pkgutil.iter_modules(services.__path__) if m.ispkg):
        if importlib.util.find_spec(f"services.{module}.config") is None:
            continue
        config = importlib.import_module(f"services.{module}.config")
        for value in vars(config).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == config.__name__:
                yield value()


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

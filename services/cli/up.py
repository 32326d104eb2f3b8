"""``biobracket up``: everything on this machine, until Ctrl-C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.cli.console import DataOption, PortOption, load_settings
from services.cli.embedded_runtime import print_addresses, started, watch

if TYPE_CHECKING:
    pass


def up(data: DataOption = None, port: PortOption = None) -> None:
    """Start broker, store and services on this machine, and show live counts until Ctrl-C."""
    settings = load_settings(data, port)
    with started(settings) as runtime:
        print_addresses(runtime)
        watch(runtime)

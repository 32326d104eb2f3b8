"""The Ray Serve binding of parsing."""

from __future__ import annotations

import asyncio

from services.parsing.brackets import parse_lines
from services.parsing.config import ParsingConfig
from services.replica_deployment import deployment
from shared.messages import Parsed, TaggedLine
from shared.runtime.logs import configure
from shared.runtime.metrics import REPAIRS
from shared.runtime.ray_metrics import RayObserver
from shared.settings import settings

_CONFIG = ParsingConfig()


@deployment("parsing", _CONFIG)
class Parsing:
    """Turns tagged lines into candidates."""

    def __init__(self) -> None:
        configure(settings())
        self._observe = RayObserver()

    async def parse(self, lines: tuple[TaggedLine, ...]) -> Parsed:
        """See :func:`services.parsing.brackets.parse_lines`. Runs in a thread, so that probes are still answered."""
        parsed = await asyncio.to_thread(parse_lines, lines)
        for kind, count in parsed.repairs.items():
            self._observe(REPAIRS, count, {"kind": kind})
        return parsed

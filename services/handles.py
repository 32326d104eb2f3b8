"""Calls from one service to another."""

from __future__ import annotations

import asyncio
from typing import Any


async def answer(response: Any) -> Any:
    """What a call to another service returns. A caller that is cancelled cancels the call, and so what that calls.

    ``response``: Serve's ``DeploymentResponse``, by the attributes that are used, since a handle's is typed too widely.

    Serve does the second by itself where it cancels a request, but the first neither for a timeout nor for a task that
    ends with another's error.
    """
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise

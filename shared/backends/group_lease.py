"""Which of several deployments consumes for a group, in Redis: at most one, the newest that asked.

While one Ray cluster takes over from another, both have replicas that could consume. A deployment that is ready claims
the lease under its name, which raises the epoch. Replicas of the deployment before see the higher epoch, finish and
leave; only when none of them is left may the new one's replicas begin. A deployment that was succeeded gets the lease
back only if its successor has not been seen for as long as a lease lasts, so that a failed upgrade can be taken back.

Keys of a group, all in one slot:

    bb:lease:{<group>}            hash: `holder`, a deployment; `epoch`; `seen`, when one of its replicas last was there
    bb:lease:{<group>}:replicas   sorted set of `<epoch>:<replica>` by when they expire, of whoever may be consuming
    bb:lease:{<group>}:held       sorted set of the deployments that held the lease, by epoch

Times are the server's, in milliseconds. A server that forgets what it acknowledged (a crash between two writes to disk,
a fail-over to a replica that lags) may let two deployments consume until one of them asks again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from shared.backends.result_store import connect, translated
from shared.settings import Settings

# Far more deployments than there are at a time; who is older counts as new.
_REMEMBERED = 100

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_READ = """
local lease, replicas, held = KEYS[1], KEYS[2], KEYS[3]
redis.call('ZREMRANGEBYSCORE', replicas, '-inf', now)
local holder, epoch, seen = unpack(redis.call('HMGET', lease, 'holder', 'epoch', 'seen'))
epoch = tonumber(epoch or 0)
"""
# Arguments: deployment, replica, milliseconds that a lease lasts, deployments to remember.
# Returns the epoch, and whether the replica may consume in it.
_ENTER = """
local me, replica, lasts = ARGV[1], ARGV[2], tonumber(ARGV[3])
if holder ~= me then
  if holder and redis.call('ZSCORE', held, me) and now < seen + lasts then return {epoch, 0} end
  epoch = epoch + 1
  redis.call('HSET', lease, 'holder', me, 'epoch', epoch)
  redis.call('ZADD', held, epoch, me)
  redis.call('ZREMRANGEBYRANK', held, 0, -1 - ARGV[4])
end
redis.call('HSET', lease, 'seen', now)
for _, each in ipairs(redis.call('ZRANGE', replicas, 0, -1)) do
  if tonumber(string.match(each, '^%d+')) ~= epoch then return {epoch, 0} end
end
redis.call('ZADD', replicas, now + lasts, epoch .. ':' .. replica)
return {epoch, 1}
"""
# Arguments: the epoch that the replica entered in, replica, milliseconds that a lease lasts.
# Returns the epoch there is now, and whether the replica still counts.
_RENEW = """
local own, replica, lasts = tonumber(ARGV[1]), ARGV[1] .. ':' .. ARGV[2], tonumber(ARGV[3])
if epoch == own then
  redis.call('HSET', lease, 'seen', now)
elseif not redis.call('ZSCORE', replicas, replica) then
  return {epoch, 0}
end
redis.call('ZADD', replicas, now + lasts, replica)
return {epoch, 1}
"""


@dataclass(frozen=True, slots=True)
class Term:
    """What a replica was told: the epoch there is, and when its own right to consume ends, by `time.monotonic`.

    None where it has none: another deployment holds the lease, or has not left yet.
    """

    epoch: int
    until: float | None


class GroupLease:
    """The lease of one consumer group, as one replica of a deployment sees it.

    Thread-safe; methods may block on the network and raise :class:`StoreError`. Whoever was given a term has it until
    the end that it was told, whatever becomes of the network; the server counts from later on.
    """

    def __init__(self, settings: Settings, group: str, deployment: str, replica: str, lasts_s: float) -> None:
        self._client: Any = connect(settings)
        lease = f"bb:lease:{{{group}}}"
        self._keys = [lease, f"{lease}:replicas", f"{lease}:held"]
        self._deployment = deployment
        self._replica = replica
        self._lasts_s = lasts_s
        self._enter = self._client.register_script(_NOW + _READ + _ENTER)
        self._renew = self._client.register_script(_NOW + _READ + _RENEW)

    def enter(self) -> Term:
        """Claims the lease for the deployment, unless it holds it already, and asks to consume."""
        return self._ask(self._enter, self._deployment, self._replica, _REMEMBERED)

    def renew(self, epoch: int) -> Term:
        """Goes on in the epoch that was entered, or finishes in it, where the one returned is another."""
        return self._ask(self._renew, epoch, self._replica)

    def leave(self, epoch: int) -> None:
        """Ends a term: nothing is consumed in it any more."""
        with translated():
            self._client.zrem(self._keys[1], f"{epoch}:{self._replica}")

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()

    def _ask(self, script: Any, first: str | int, replica: str, *more: int) -> Term:
        start = time.monotonic()
        with translated():
            epoch, granted = script(keys=self._keys, args=[first, replica, int(self._lasts_s * 1000), *more])
        return Term(epoch, start + self._lasts_s if granted else None)

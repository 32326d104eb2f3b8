"""Who may consume for a group, in every order of what replicas of two deployments can do, on real servers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from shared.backends import group_lease
from shared.backends.group_lease import GroupLease, Term
from shared.errors import StoreError
from shared.settings import Settings
from tests.support.servers import Target

LASTS_S = 30.0


def lease(target: Target, deployment: str, replica: str = "0", lasts_s: float = LASTS_S) -> GroupLease:
    return GroupLease(target.settings, "g", deployment, f"{deployment}-{replica}", lasts_s)


def held(term: Term) -> bool:
    return term.until is not None


def test_the_newest_deployment_consumes_when_the_one_before_has_left(target: Target) -> None:
    target.everywhere("FLUSHALL")
    old, beside, new = lease(target, "old"), lease(target, "old", "1"), lease(target, "new")
    assert (held(old.enter()), held(beside.enter())) == (True, True)
    assert (new.enter().epoch, held(new.enter())) == (2, False)
    told = old.renew(1)
    assert (told.epoch, held(told)) == (2, True)  # it may finish what it has
    old.leave(1)
    assert not held(new.enter())  # one is still there
    beside.leave(1)
    assert new.enter().epoch == 2
    assert held(new.renew(2))
    assert not held(old.enter())  # succeeded, and the successor lives
    assert not held(beside.renew(1))
    for each in (old, beside, new):
        each.close()


def test_groups_know_nothing_of_one_another(target: Target) -> None:
    target.everywhere("FLUSHALL")
    here = lease(target, "a")
    there = GroupLease(target.settings, "h", "b", "b-0", LASTS_S)
    assert here.enter().epoch == there.enter().epoch == 1
    assert here.renew(1).epoch == 1


def test_a_failed_upgrade_is_taken_back_when_nobody_has_seen_it_for_a_term(target: Target) -> None:
    target.everywhere("FLUSHALL")
    old, new = lease(target, "old", lasts_s=0.2), lease(target, "new", lasts_s=0.2)
    old.enter()
    new.enter()
    old.leave(1)
    assert held(new.enter())
    terms = (old.enter() for _ in itertools.count())
    back = next(term for term in terms if held(term))  # dead, without a word
    assert back.epoch == 3
    assert not held(new.enter())


def test_a_server_out_of_reach_is_told() -> None:
    away = GroupLease(Settings(redis="redis://127.0.0.1:1/0"), "g", "a", "a-0", LASTS_S)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        away.enter()


# -- every order -------------------------------------------------------------------------------------------------------

# The server's clock stands still but where a step moves it.
CLOCK = "local now = tonumber(redis.call('GET', KEYS[1] .. ':clock'))\n"
STEP_MS = 10_000  # a third of a term
REPLICAS = (("a", "0"), ("a", "1"), ("b", "0"))
ACTIONS = ("enter", "renew", "leave", "die")


@dataclass(frozen=True)
class Local:
    """What one replica believes: the epoch of its term, and when that ends by the clock; None where it has no term."""

    epoch: int | None = None
    until: int = 0


@dataclass(frozen=True)
class State:
    """All there is, with times from now on, so that like states are one."""

    lease: tuple[tuple[str, str], ...]
    replicas: tuple[tuple[str, int], ...]
    held: tuple[tuple[str, int], ...]
    locals: tuple[Local, ...]


class World:
    def __init__(self, target: Target) -> None:
        self.client = target.client
        self.keys = ["bb:lease:{g}", "bb:lease:{g}:replicas", "bb:lease:{g}:held"]
        self.leases = [lease(target, *each) for each in REPLICAS]

    def load(self, state: State) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for key in self.keys:
                pipe.delete(key)
            pipe.set(f"{self.keys[0]}:clock", 0)
            for key, pairs in ((self.keys[1], state.replicas), (self.keys[2], state.held)):
                if pairs:
                    pipe.zadd(key, dict(pairs))
            if state.lease:
                pipe.hset(self.keys[0], mapping=dict(state.lease))
            pipe.execute()

    def dump(self, locals_: list[Local], now: int) -> State:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.keys[0])
            pipe.zrange(self.keys[1], 0, -1, withscores=True)
            pipe.zrange(self.keys[2], 0, -1, withscores=True)
            fields, replicas, held_by = pipe.execute()
        known = {name.decode(): value.decode() for name, value in fields.items()}
        if "seen" in known:  # longer ago than a term is all the same
            known["seen"] = str(max(int(known["seen"]) - now, -int(LASTS_S * 1000)))
        return State(
            tuple(sorted(known.items())),
            tuple(sorted((name.decode(), int(at) - now) for name, at in replicas if at > now)),
            tuple(sorted((name.decode(), int(at)) for name, at in held_by)),
            tuple(Local(each.epoch, each.until - now if each.until > now else 0) for each in locals_),
        )

    def after(self, state: State) -> Iterator[tuple[str, State]]:
        """Every step from here, by one replica or of the clock."""
        moved = [Local(each.epoch, max(0, each.until - STEP_MS)) for each in state.locals]
        self.load(state)
        yield "clock", self.dump([Local(each.epoch, each.until + STEP_MS) for each in moved], STEP_MS)
        for place, action in itertools.product(range(len(REPLICAS)), ACTIONS):
            here = state.locals[place]
            if (action == "enter") != (here.epoch is None):
                continue
            self.load(state)
            locals_ = list(state.locals)
            locals_[place] = self.act(self.leases[place], action, here)
            yield f"{action} {place}", self.dump(locals_, 0)

    def act(self, replica: GroupLease, action: str, here: Local) -> Local:
        if action == "enter":
            term = replica.enter()
            return Local(term.epoch, int(LASTS_S * 1000)) if held(term) else Local()
        assert here.epoch is not None
        if action == "renew":
            # Without a term it neither consumes nor finishes, and asks anew.
            return Local(here.epoch, int(LASTS_S * 1000)) if held(replica.renew(here.epoch)) else Local()
        if action == "leave":
            replica.leave(here.epoch)
        return Local()  # one that dies says nothing; whoever takes its place has its name


@pytest.mark.parametrize("steps", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_never_two_deployments_consume_whatever_the_order(
    target: Target, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many steps: all states there are up to the third epoch, which is that of a rollback."""
    if steps > 3 and target.settings.redis_cluster:
        pytest.skip("the same scripts, and slow")
    monkeypatch.setattr(group_lease, "_NOW", CLOCK)
    target.everywhere("FLUSHALL")
    world = World(target)
    start = State((), (), (), (Local(),) * len(REPLICAS))
    seen, edge, took_over, came_back = {start}, [start], 0, 0
    for _ in range(steps):
        following: list[State] = []
        for state in edge:
            for step, reached in world.after(state):
                check(state, step, reached)
                epoch = int(dict(reached.lease).get("epoch", 0))
                took_over += epoch == 2
                came_back += epoch == 3
                if reached not in seen and epoch <= 3:
                    seen.add(reached)
                    following.append(reached)
        edge = following
    assert took_over  # and so the states that matter were met
    if steps > 3:
        assert not edge
        assert came_back


def check(before: State, step: str, after: State) -> None:
    consuming = {REPLICAS[n][0] for n, each in enumerate(after.locals) if each.epoch is not None and each.until > 0}
    assert len(consuming) <= 1, (before, step)
    epochs = {each.epoch for each in after.locals if each.epoch is not None and each.until > 0}
    assert len(epochs) <= 1, (before, step)
    old, new = (int(dict(state.lease).get("epoch", 0)) for state in (before, after))
    assert old <= new <= old + 1, (before, step)
    known: Any = dict(after.replicas)
    for n, each in enumerate(after.locals):
        if each.epoch is not None and each.until > 0:  # the server lets nobody else in for as long
            assert known[f"{each.epoch}:{'-'.join(REPLICAS[n])}"] >= each.until, (before, step)

from __future__ import annotations

from shared.backends.halt_store import HaltStore
from tests.support.servers import Target


def test_a_group_is_halted_until_that_is_lifted(target: Target) -> None:
    target.everywhere("FLUSHALL")
    one, another = HaltStore(target.settings, "g"), HaltStore(target.settings, "h")
    again = HaltStore(target.settings, "g")
    assert one.halted() is None
    one.halt("first")
    again.halt("second")
    assert (again.halted(), another.halted()) == ("first", None)
    assert again.lift()
    assert not one.lift()
    assert one.halted() is None
    for store in (one, another, again):
        store.close()

"""Another key for everything, while clients go on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from services.embedded.servers import Valkey
from shared.backends import vault
from shared.backends.feedback_store import FeedbackStore
from shared.backends.resealing import Resealed, reseal, used
from shared.backends.result_store import ResultStore
from shared.backends.vault import SealError
from shared.messages import Extraction, SourcePosition
from shared.selection.feedback import Feedback
from shared.settings import Settings
from tests.support.servers import Target

COUNT = 30


def result(n: int, at: int = 0) -> Extraction:
    source = SourcePosition(topic="t", partition=0, offset=at, timestamp_ms=0)
    return Extraction(
        document_id=f"d-{n}", text_sha256="", lang="en", types=(), entities=(), model_revision="r", source=source
    )


def feedback(n: int) -> Feedback:
    return Feedback(id=f"f-{n}", text="a cold", start=2, end=6, type="disease", accepted=False, time=1.0)


@pytest.fixture
def settings(target: Target, tmp_path: Path) -> Iterator[Settings]:
    """With keys of their own on each of the servers."""
    target.everywhere("FLUSHALL")
    vault.create(tmp_path / "keys")
    yield target.settings.model_copy(update={"encryption_keys": tmp_path / "keys"})
    target.everywhere("FLUSHALL")


def filled(settings: Settings, stack: ExitStack) -> tuple[ResultStore, FeedbackStore]:
    store = stack.enter_context(closing(ResultStore.from_settings(settings)))
    given = stack.enter_context(closing(FeedbackStore.from_settings(settings)))
    for n in range(COUNT):
        store.put(result(n))
        given.put(feedback(n))
    given.undo("f-0")
    store.put_segments({f"s-{n}": b"text" for n in range(COUNT)})
    return store, given


def test_everything_is_sealed_under_the_current_key_and_the_one_before_can_go(
    settings: Settings, target: Target
) -> None:
    keys = settings.encryption_keys
    assert keys is not None
    with ExitStack() as stack:
        store, given = filled(settings, stack)
        (segment, *_) = target.client.scan_iter(match="bb:s:*")
        before = target.client.ttl(segment)
        assert used(settings) == {"k1": 3 * COUNT - 1}
        assert reseal(settings) == Resealed(others=3 * COUNT - 1)
        vault.use(keys, vault.add(keys))
        store.put(result(0, at=1))
        seen: list[int] = []
        assert reseal(settings, seen.append) == Resealed(sealed=3 * COUNT - 2, others=1)
        assert seen[-1] == 3 * COUNT - 1
        assert 0 < target.client.ttl(segment) <= before
        assert used(settings) == {"k2": 3 * COUNT - 1}
        vault.remove(keys, "k1")
        assert [store.get(f"d-{n}") for n in range(1, COUNT)] == [result(n) for n in range(1, COUNT)]
        assert store.get("d-0") == result(0, at=1)
        assert {item.id for item in given.page().feedback} == {f"f-{n}" for n in range(1, COUNT)}
        assert store.get_segments(["s-1"]) == [b"text"]
        assert given.undo("f-1")
        assert not given.put(feedback(1))


def test_what_clients_write_meanwhile_stays(settings: Settings) -> None:
    keys = settings.encryption_keys
    assert keys is not None
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        store, given = filled(settings, stack)
        vault.use(keys, vault.add(keys))

        def write() -> None:
            for n in range(COUNT):
                store.put(result(n, at=7))
                given.undo(f"f-{n}")

        writing = threads.submit(write)
        while not writing.done():
            assert reseal(settings).unreadable == 0
        writing.result()
        assert reseal(settings).sealed == 0
        assert used(settings).keys() == {"k2"}
        assert [store.get(f"d-{n}") for n in range(COUNT)] == [result(n, at=7) for n in range(COUNT)]
        assert given.page().feedback == ()


def test_what_cannot_be_opened_is_counted_and_stays(settings: Settings, target: Target) -> None:
    keys = settings.encryption_keys
    assert keys is not None
    with ExitStack() as stack:
        store, _ = filled(settings, stack)
        (segment, *_) = target.client.scan_iter(match="bb:s:*")
        target.client.append(segment, b"x")
        vault.use(keys, vault.add(keys))
        assert reseal(settings) == Resealed(sealed=3 * COUNT - 2, unreadable=1)
        assert used(settings) == {"k2": 3 * COUNT - 2, "k1": 1}
        vault.use(keys, vault.add(keys))
        vault.remove(keys, "k2")
        with pytest.raises(SealError, match="k2"):
            store.get("d-1")


def test_segments_on_a_server_of_their_own(valkey: Valkey, tmp_path: Path) -> None:
    vault.create(tmp_path / "keys")
    with Valkey(tmp_path / "cache") as cache, ExitStack() as stack:
        settings = Settings(
            redis=SecretStr(valkey.url), redis_cache=SecretStr(cache.url), encryption_keys=tmp_path / "keys"
        )
        with redis.Redis.from_url(valkey.url) as client:
            client.flushall()
            filled(settings, stack)
            vault.use(tmp_path / "keys", vault.add(tmp_path / "keys"))
            assert reseal(settings).sealed == 3 * COUNT - 1
            client.flushall()

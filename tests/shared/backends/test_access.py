"""Each service does all that it does on Redis as a user with its rules; what its rules are for, and that they suffice.

For Kafka: tests/shared/backends/streams/test_security.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis

from shared.backends import access, agreement, vault
from shared.backends.eviction import refuse_eviction
from shared.backends.feedback_store import FeedbackStore
from shared.backends.group_lease import GroupLease
from shared.backends.halt_store import HaltStore
from shared.backends.resealing import reseal
from shared.backends.result_store import ResultStore
from shared.errors import StoreError
from shared.messages import Entity, Erasure, Extraction, SourcePosition, entity_id
from shared.selection.feedback import NewFeedback
from shared.settings import Settings
from tests.support.secured import SecureRedis

ROOT = Path(__file__).resolve().parents[3]
LASTING = {"segment_ttl": 0, "erasure_ttl": 0}
EXPIRING = {"result_ttl": 60, "erasure_ttl": 1, "feedback_ttl": 9}
# Of a cluster's client; the others are of every client.
CLUSTER = {"command", "cluster|slots", "cluster|shards", "readonly"}


class Stores:
    """All stores, as one user sees them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.results = ResultStore.from_settings(settings)
        self.feedback = FeedbackStore.from_settings(settings)
        self.halts = HaltStore(settings, "biobracket")
        self.lease = GroupLease(settings, "biobracket", "a", "replica", lasts_s=15)

    def close(self) -> None:
        for store in (self.results, self.feedback, self.halts, self.lease):
            store.close()


def place(offset: int) -> SourcePosition:
    return SourcePosition(topic="documents", partition=0, offset=offset, timestamp_ms=offset)


def extraction(offset: int = 0, text: str = "asthma", **fields: Any) -> Extraction:
    entity = Entity(
        id=entity_id("disease", 0, 6),
        start=0,
        end=6,
        text=text,
        type="disease",
        confidence=0.9,
        generator_confidence=0.9,
    )
    given: dict[str, Any] = {"document_id": "d", "text_sha256": "", "lang": "en", "types": ("disease",)}
    given |= {"entities": (entity,), "source": place(offset), "model_revision": "r"}
    return Extraction(**given | fields)


def feedback(id_: str) -> NewFeedback:
    given = {"id": id_, "text": "asthma", "start": 0, "end": 6, "type": "disease", "accepted": False}
    return NewFeedback.model_validate(given | {"document_id": "d"})


def ingest(stores: Stores) -> None:
    assert refuse_eviction(stores.settings)
    for offset, text in ((10, "asthma"), (11, "fever")):
        write = stores.results.put(extraction(offset, text))
        assert write.unpublished is not None
        assert stores.results.published(extraction(offset, text), write.unpublished) is None
    stores.results.put(extraction(0, "cough"))  # too late
    stores.results.put(extraction(document_id="new"))
    assert stores.feedback.put(feedback("a").feedback(now=1.0))
    assert stores.feedback.undo("a", 2.0)
    assert not stores.results.erased("d", place(1))
    stores.feedback.expire()
    # The first to come to a store of an earlier release.
    stores.results._client.delete(agreement.KEY)
    ResultStore.from_settings(stores.settings).close()
    erasure = Erasure(document_id="d", source=place(12))
    assert stores.results.erase(erasure).outcome == "written"
    assert stores.results.published(erasure, erasure) is None
    assert stores.results.erased("d", place(1))
    stores.feedback.put(feedback("b").feedback(now=1.0))
    stores.feedback.erase("d", 3.0)
    stores.halts.halt("why")
    assert stores.halts.halted() == "why"
    # Taken over from another deployment, and lost to it again.
    stores.results._client.hset("bb:lease:{biobracket}", mapping={"holder": "b", "epoch": 7, "seen": 0})
    entered = stores.lease.enter()
    assert (entered.epoch, entered.until is None) == (8, False)
    stores.results._client.hset("bb:lease:{biobracket}", "epoch", 9)
    assert stores.lease.renew(8).epoch == 9
    stores.lease.leave(8)


def pipeline(stores: Stores) -> None:
    stores.feedback.version()
    stores.results.removals()
    stores.results.put_segments({"s": b"x"})
    stores.results.trace_segments("d", ["s"])
    assert stores.results.get_segments(["s"]) == [b"x"]


def query(stores: Stores) -> None:
    stores.results.ping()
    stores.results.get("d")
    stores.results.mentions("asthma", "disease")
    stores.results.mentions("gone")
    stores.feedback.put(feedback("c").feedback(now=5.0))
    stores.feedback.page()
    stores.feedback.undo("c")
    # An erasure over HTTP; the record that asks for it is Kafka's.
    for id_ in ("d", "never there"):
        stores.results.erase(Erasure(document_id=id_, source=place(9)))
    stores.feedback.erase("d", 9.0)


def selection(stores: Stores) -> None:
    assert stores.feedback.version() > 0
    stores.feedback.changes()


def operator(stores: Stores) -> None:
    stores.results.counts()
    stores.results.get("d")
    stores.results.newest(["d"])
    list(stores.results.results())
    # `rebuild`, then `forget`.
    stores.results.put(extraction(20), published=True)
    stores.results.put(extraction(21, "fever"), published=True)
    stores.results.erase(Erasure(document_id="d", source=place(22)), published=True)
    stores.feedback.erase("d", 22.0)
    reseal(stores.settings)
    assert stores.halts.halted() == "why"
    assert stores.halts.lift()


WORK: dict[str, Callable[[Stores], None]] = {
    "ingest": ingest,
    "pipeline": pipeline,
    "query": query,
    "selection": selection,
    "operator": operator,
}


@pytest.fixture
def opened(secure_redis: SecureRedis, tmp_path: Path) -> Iterator[Callable[..., Stores]]:
    """Opens the stores as a service. The server has a result, a halt, feedback, and a mention that is none any more."""
    admin = redis.Redis.from_url(secure_redis.url)
    admin.flushall()
    with ExitStack() as stack:
        stack.callback(admin.close)

        def make(service: str, **others: Any) -> Stores:
            return stack.enter_context(closing(Stores(secure_redis.settings(service, tmp_path, **others))))

        yield make


@pytest.fixture
def used(secure_redis: SecureRedis) -> Iterator[Callable[[], set[str]]]:
    """The commands that the server carried out since the test began."""
    with redis.Redis.from_url(secure_redis.url) as admin:
        admin.config_resetstat()

        def told() -> set[str]:
            stats = admin.info("commandstats")
            names = {n.removeprefix("cmdstat_"): s for n, s in stats.items()}
            return {name for name, stat in names.items() if stat["calls"] > stat["rejected_calls"]}

        yield told


def stocked(opened: Callable[..., Stores]) -> None:
    """A document with traces and feedback of which ingest and pipeline have written."""
    given = opened("contract")
    given.results.put(extraction(5))
    given.results.put_segments({"s": b"x"})
    given.results.trace_segments("d", ["s"])
    given.feedback.put(feedback("old").feedback(now=1.0))
    given.halts.halt("why")
    given.results._client.zadd(_mentions("gone"), {"nobody": 1})


def _mentions(text: str) -> str:
    from shared.backends.mention_index import _key

    return _key(vault.PLAIN.name("mention", text), None)


@pytest.mark.parametrize("expiring", [False, True])
@pytest.mark.parametrize("service", access.REDIS)
def test_a_service_does_its_work_with_its_rules(opened: Callable[..., Stores], service: str, expiring: bool) -> None:
    stocked(opened)
    lives = (
        {"result_ttl": 60, "erasure_ttl": 60, "feedback_ttl": 9} if expiring else {"segment_ttl": 0, "erasure_ttl": 0}
    )
    WORK[service](opened(service, **lives))


def test_a_service_has_no_command_that_it_does_not_use(
    opened: Callable[..., Stores], secure_redis: SecureRedis, used: Callable[[], set[str]]
) -> None:
    everything = set()
    with redis.Redis.from_url(secure_redis.url) as admin:
        for service in access.REDIS:
            found: set[str] = set()
            for lives in (
                {"segment_ttl": 0, "erasure_ttl": 0},
                {"result_ttl": 60, "erasure_ttl": 1, "feedback_ttl": 9},
            ):
                admin.flushall()
                admin.script_flush()
                stocked(opened)
                stores = opened(service, **lives)
                admin.config_resetstat()
                WORK[service](stores)
                found |= used()
            superfluous = set(access.REDIS[service].commands) - found - CLUSTER
            everything |= {(service, command) for command in superfluous}
    rotates = {("operator", "eval")}  # see the next test
    assert everything - rotates == {(service, "ping") for service in access.REDIS if service != "query"}


def test_an_operator_rotates_keys(opened: Callable[..., Stores], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    vault.create(keys)
    opened("ingest", encryption_keys=keys).results.put(extraction())
    vault.use(keys, vault.add(keys))
    assert reseal(opened("operator", encryption_keys=keys).settings).sealed == 1


def test_who_may_not_look_leaves_it_to_others_to_note_keys(opened: Callable[..., Stores], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    vault.create(keys)
    early = opened("query", encryption_keys=keys)
    assert early.results.get("d") is None
    opened("ingest")
    with pytest.raises(StoreError, match="BIOBRACKET_ENCRYPTION_KEYS"):
        early.results.get("d")


def test_what_is_another_services_is_refused(opened: Callable[..., Stores]) -> None:
    stocked(opened)
    refused: tuple[tuple[str, Callable[[Stores], Any]], ...] = (
        ("pipeline", lambda s: s.results.get("d")),
        ("pipeline", lambda s: s.feedback.page()),
        ("pipeline", lambda s: s.results.erase(Erasure(document_id="d", source=place(50)))),
        ("selection", lambda s: s.results.get("d")),
        ("selection", lambda s: s.feedback.put(feedback("x").feedback(now=9.0))),
        ("query", lambda s: s.halts.lift()),
        ("query", lambda s: s.results.get_segments(["s"])),
        ("query", lambda s: list(s.results.results())),
        ("ingest", lambda s: s.results.get_segments(["s"])),
    )
    for service, call in refused:
        with pytest.raises(StoreError, match="not authorised") as failed:
            call(opened(service))
        assert "asthma" not in str(failed.value)
    admin = opened("contract")
    assert admin.results.get("d") is not None
    assert admin.halts.halted() == "why"
    for service in access.REDIS:
        with pytest.raises(redis.exceptions.NoPermissionError):
            opened(service).results._client.execute_command("FLUSHALL")
        with pytest.raises(redis.exceptions.NoPermissionError):
            opened(service).results._client.execute_command("KEYS", "*")


def test_the_documents_show_these_rules() -> None:
    assert access.as_markdown() in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_services_are_the_same_on_both_servers() -> None:
    assert set(access.KAFKA) | set(access.REDIS) == set(access.SERVICES)

"""Clients with other keys than the store's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from services.embedded.servers import Valkey
from shared.backends import vault
from shared.backends.agreement import KEY, KeysRefused
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.errors import StoreError
from shared.messages import Extraction
from shared.selection.feedback import Feedback
from shared.settings import Settings


def result(id_: str) -> Extraction:
    return Extraction(document_id=id_, text_sha256="", lang="en", types=(), entities=(), model_revision="r")


@pytest.fixture
def clients(valkey: Valkey, tmp_path: Path) -> dict[str, Settings]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    found = {"plain": Settings(redis=SecretStr(valkey.url))}
    for name in ("one", "other"):
        vault.create(tmp_path / name)
        found[name] = found["plain"].model_copy(update={"encryption_keys": tmp_path / name})
    return found


REFUSALS = {
    ("plain", "one"): "not encrypted",
    ("one", "plain"): "is encrypted; set BIOBRACKET_ENCRYPTION_KEYS",
    ("one", "other"): "named by another key",
}


@pytest.mark.parametrize(("first", "second"), REFUSALS)
@pytest.mark.parametrize("Store", [ResultStore, FeedbackStore])
def test_a_client_with_other_keys_does_not_start(
    clients: dict[str, Settings], first: str, second: str, Store: type
) -> None:
    for each in (ResultStore, FeedbackStore):
        each.from_settings(clients[first]).close()
    Store.from_settings(clients[first]).close()
    with pytest.raises(KeysRefused, match=REFUSALS[first, second]) as refused:
        Store.from_settings(clients[second])
    assert not refused.value.retryable


FILL: dict[str, Callable[[Settings], object]] = {
    "results": lambda settings: ResultStore.from_settings(settings).put(result("d")),
    "feedback": lambda settings: FeedbackStore.from_settings(settings).put(
        Feedback(id="f", text="a cold", start=2, end=6, type="disease", accepted=False, time=1.0)
    ),
}


@pytest.mark.parametrize(("first", "second"), [("plain", "one"), ("one", "plain"), ("one", "other")])
@pytest.mark.parametrize("kind", FILL)
def test_also_where_nobody_noted_them(
    clients: dict[str, Settings], valkey: Valkey, first: str, second: str, kind: str
) -> None:
    FILL[kind](clients[first])
    with redis.Redis.from_url(valkey.url) as client:
        client.delete(KEY)  # as an earlier release left it
    Store = ResultStore if kind == "results" else FeedbackStore
    with pytest.raises(KeysRefused):
        Store.from_settings(clients[second])
    Store.from_settings(clients[first]).close()
    with pytest.raises(KeysRefused):
        Store.from_settings(clients[second])


def test_a_client_that_started_without_the_store_is_refused_later(clients: dict[str, Settings], tmp_path: Path) -> None:
    server = Valkey(tmp_path / "later")
    server.start()
    away = {name: each.model_copy(update={"redis": SecretStr(server.url)}) for name, each in clients.items()}
    server.stop()
    store, feedback = ResultStore.from_settings(away["other"]), FeedbackStore.from_settings(away["plain"])
    with pytest.raises(StoreError) as failed:
        store.get("d")
    assert failed.value.retryable
    server._fixed = True
    with server:
        ResultStore.from_settings(away["one"]).close()
        for use in (lambda: store.get("d"), lambda: store.put(result("d")), feedback.version):
            with pytest.raises(KeysRefused):
                use()
    store.close()
    feedback.close()

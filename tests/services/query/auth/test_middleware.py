from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from fastapi import Request
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from services.query.api import routes
from services.query.auth import key_file
from services.query.auth.scopes import SCOPES, requires
from shared.backends.feedback_store import FeedbackStore
from shared.messages import Document, Extraction
from shared.settings import Settings
from tests.services.query.auth.conftest import MakeKey
from tests.support.http import SECRET, World, assert_problem

PROBES = {("GET", "/healthz"), ("GET", "/readyz")}
MANY = int(os.environ.get("BIOBRACKET_INPUTS", "2500")) // 5  # of right ones and of wrong ones, for each operation
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW")


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


@pytest.fixture
def guarded(make_key: MakeKey, keys_path: Path) -> Iterator[World]:
    make_key("admin", caller="first")  # so that the file is there
    made = World(api_keys=keys_path, failed_rate="1000000/second")
    with made.client:
        yield made


def addresses(world: World) -> set[str]:
    """Every path of the description and of the application, each with something in place of its parameters."""
    found = set(world.app.openapi()["paths"]) | {str(route.path) for route in routes(world.app)}
    filled = {path.replace("{id:document}", "a/b").replace("{id}", "a") for path in found}
    return filled | {f"{path}/" for path in filled} | {"/", "/v1", "/v2/zq17", "/docs/oauth2-redirect", "//healthz"}


def test_every_path_and_method_but_the_probes_takes_a_credential(guarded: World) -> None:
    found = addresses(guarded)
    assert len(found) > 20
    for path in found:
        for method in METHODS:
            answer = guarded.client.request(method, path, content=SECRET.encode(), follow_redirects=False)
            if (method, path) in PROBES:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
                if method != "HEAD":
                    assert_problem(answer, 401, "authorization")


def test_every_operation_takes_its_scope_and_no_other_will_do(guarded: World, make_key: MakeKey) -> None:
    keys = {scope: make_key(scope) for scope in SCOPES}
    none = 0
    for path, operations in guarded.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if "security" not in operation:
                assert (method.upper(), path) in PROBES
                none += 1
                continue
            ((name, needed),) = operation["security"][0].items()
            assert guarded.app.openapi()["components"]["securitySchemes"][name]["scheme"] == "bearer"
            assert {"401", "403", "429"} <= operation["responses"].keys()
            assert needed
            for scope, key in keys.items():
                answer = guarded.client.request(method, path.replace("{id}", "a"), headers=bearer(key))
                assert (answer.status_code == 403) is (scope not in needed), (method, path, scope)
                if answer.status_code == 403:
                    assert needed[0] in assert_problem(answer, 403, "authorization")["problem"]
                    assert f'scope="{needed[0]}"' in answer.headers["WWW-Authenticate"]
    assert none == len(PROBES)


def test_a_route_that_declares_no_scope_is_refused(guarded: World, make_key: MakeKey) -> None:
    @guarded.app.get("/forgotten")
    def forgotten() -> str:
        return SECRET

    key = make_key(*SCOPES)
    assert guarded.client.get("/forgotten").status_code == 401
    assert_problem(guarded.client.get("/forgotten", headers=bearer(key)), 403, "path")
    assert_problem(guarded.client.get("/nowhere", headers=bearer(key)), 404, "path")
    assert all(guarded.client.get(path, headers=bearer(key)).status_code == 200 for path in ("/docs", "/openapi.json"))


def test_a_web_socket_is_closed(guarded: World) -> None:
    with pytest.raises(WebSocketDisconnect) as error, guarded.client.websocket_connect("/v1/extract"):
        pass
    assert error.value.code == 1008


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {} x", "Bearer x{}", "Bearer " * 3000]
)
def test_other_credentials(guarded: World, make_key: MakeKey, value: str) -> None:
    header = {"Authorization": value.format(make_key("read"))}
    assert_problem(guarded.client.get("/v1/documents/a", headers=header), 401, "authorization")


def test_two_credentials_are_one_too_many(guarded: World, make_key: MakeKey) -> None:
    key = make_key("read")
    assert guarded.client.get("/v1/documents/a", headers={"authorization": f"bearer  {key}"}).status_code == 404
    twice = [("Authorization", f"Bearer {key}")] * 2
    assert guarded.client.get("/v1/documents/a", headers=twice).status_code == 401


def test_a_revoked_key_is_refused_from_the_next_request_on(guarded: World, make_key: MakeKey, keys_path: Path) -> None:
    key = make_key("read")
    assert guarded.client.get("/v1/documents/a", headers=bearer(key)).status_code == 404
    made = key_file.listed(keys_path)[-1]
    key_file.revoke(keys_path, made.id, made.created)
    problem = assert_problem(guarded.client.get("/v1/documents/a", headers=bearer(key)), 401, "authorization")
    assert "revoked" in problem["problem"]
    keys_path.write_text("{")
    answer = guarded.client.get("/v1/documents/a", headers=bearer(key))
    assert_problem(answer, 503, "authorization")
    assert int(answer.headers["Retry-After"]) > 0


def test_the_caller_is_known_to_what_comes_after(guarded: World, make_key: MakeKey) -> None:
    @guarded.app.get("/who", dependencies=[requires(None)])
    def who(request: Request) -> str:
        return str(request.state.caller.id)

    assert guarded.client.get("/who", headers=bearer(make_key("read", caller="ward-9"))).json() == "key:ward-9"


def test_a_caller_that_sends_too_much_waits_and_others_do_not(make_key: MakeKey, keys_path: Path) -> None:
    busy, other = make_key("read", caller="busy"), make_key("read", caller="other")
    second = make_key("read", caller="busy")
    world = World(api_keys=keys_path, rate="2/hour")
    with world.client as client:
        assert client.get("/v1/documents/a", headers=bearer(busy)).status_code == 404
        assert client.get("/v1/feedback", headers=bearer(second)).status_code == 403  # counts, too
        refused = client.get("/v1/documents/a", headers=bearer(busy))
        assert_problem(refused, 429, "caller")
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/v1/documents/a", headers=bearer(other)).status_code == 404
        assert client.get("/healthz", headers=bearer(busy)).status_code == 200


def test_a_caller_has_so_many_requests_at_once(make_key: MakeKey, keys_path: Path) -> None:
    busy, other = make_key("extract", caller="busy"), make_key("extract", caller="other")
    entered, leave = threading.Event(), threading.Event()

    class Held(World):
        async def extract(self, document: Document) -> Extraction:
            if document.id == "held":
                entered.set()
                await asyncio.to_thread(leave.wait)
            return await super().extract(document)

    world = Held(api_keys=keys_path, max_caller_requests=1, timeout_s=60.0)
    with world.client as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/extract", json={"id": "held", "text": "x"}, headers=bearer(busy))
        assert entered.wait(60)
        refused = client.post("/v1/extract", json={"text": SECRET}, headers=bearer(busy))
        assert client.post("/v1/extract", json={"text": "x"}, headers=bearer(other)).status_code == 200
        leave.set()
        assert first.result().status_code == 200
        assert client.post("/v1/extract", json={"text": "x"}, headers=bearer(busy)).status_code == 200
    assert_problem(refused, 429, "caller")
    assert refused.headers["Retry-After"] == "1"


def test_failures_of_an_address_are_limited_and_shut_nobody_out(make_key: MakeKey, keys_path: Path) -> None:
    key = make_key("read")
    world = World(api_keys=keys_path, failed_rate="2/hour")
    with world.client as client:
        wrong = [client.get("/v1/documents/a", headers=bearer(f"bbk_{i}")) for i in range(4)]
        assert [answer.status_code for answer in wrong] == [401, 401, 429, 429]
        assert int(wrong[-1].headers["Retry-After"]) > 0
        assert client.get("/v1/documents/a").status_code == 401
        assert client.get("/v1/documents/a", headers=bearer(key)).status_code == 404
    with TestClient(world.app, client=("192.0.2.7", 1)) as elsewhere:
        assert elsewhere.get("/v1/documents/a", headers=bearer("bbk_")).status_code == 401


@pytest.mark.parametrize(
    "count", [pytest.param(40, id="few"), pytest.param(MANY, marks=[pytest.mark.inputs, pytest.mark.slow], id="many")]
)
@pytest.mark.parametrize("authenticated", [True, False])
def test_no_request_that_the_description_allows_or_not_breaks_it(
    make_key: MakeKey, keys_path: Path, settings: Settings, authenticated: bool, count: int
) -> None:
    """Requests are made from the OpenAPI description: right ones, and ones with each part wrong."""
    key = bearer(make_key(*SCOPES))
    store = FeedbackStore.from_settings(settings)
    world = World(store, api_keys=keys_path, rate="1000000/second")
    schema = schemathesis.openapi.from_asgi("/openapi.json", world.app, headers=key)
    sent: Counter[str] = Counter()

    def checked(case: schemathesis.Case) -> None:
        if not authenticated:
            case.headers.pop("Authorization", None)
        answer = case.call(headers=key if authenticated else None)
        sent[case.path] += 1
        assert answer.status_code < 500, answer.text
        assert "Traceback" not in answer.text
        if not authenticated and (case.method, case.path) not in PROBES:
            assert answer.status_code == 401

    effort = hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @effort
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                checked(case)

            try:
                ask()
            except hypothesis.errors.Unsatisfiable:  # an operation without parameters has no wrong ones
                assert operation.path in {"/healthz", "/readyz"}
    assert len(sent) == len(world.app.openapi()["paths"])
    assert sum(sent.values()) > 10 * count
    store.close()
    if count == MANY:
        print(f"\nHTTP, {'authenticated' if authenticated else 'not authenticated'}: {sum(sent.values())} requests")

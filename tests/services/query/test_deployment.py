from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from services.query.deployment import _cause, _probe
from services.query.exposure import is_loopback
from services.query.routes.extract import Busy
from shared.errors import DocumentError, Overloaded, StoreError
from tests.support.marker import free_port


def far(error: Exception) -> RayTaskError:
    """The error as it arrives from another actor."""
    return RayTaskError("extract", "Traceback: zq17", error).as_instanceof_cause()


def test_the_documents_fault_arrives_as_it_was_raised() -> None:
    cause = _cause(far(DocumentError("types", "is empty", "leave it out")))
    assert isinstance(cause, DocumentError)
    assert str(cause) == "types: is empty; leave it out"
    assert not isinstance(cause, RayTaskError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StoreError("redis: gone", retryable=True), StoreError),
        (Overloaded("generation: full"), Busy),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), Busy),
    ],
)
def test_what_passes_is_told_apart(error: Exception, kind: type[Exception]) -> None:
    assert isinstance(_cause(far(error)), kind)
    assert isinstance(_cause(far(far(error))), kind)


def test_other_errors_lose_their_message() -> None:
    cause = _cause(far(KeyError("zq17")))
    assert type(cause) is RuntimeError
    assert str(cause) == "KeyError"


def test_probe() -> None:
    async def answers() -> bool:
        return True

    async def fails() -> None:
        raise KeyError("zq17")

    async def says() -> str:
        return "ingest: halted; go on by command"

    assert asyncio.run(_probe("store", "start it", answers())) is None
    assert asyncio.run(_probe("ingest", "start it", says())) == "ingest: halted; go on by command"
    assert asyncio.run(_probe("store", "start it", fails())) == "store: does not answer; start it"


_SERVE = """
import sys, ray
from ray import serve
from shared.runtime.ray_node import on_loopback

ray.init(**on_loopback(), num_cpus=2, log_to_driver=False)
serve.start(http_options={"host": sys.argv[1], "port": 0})
from services.query.deployment import _refuse_strangers
try:
    _refuse_strangers()
    print("started")
except ValueError as error:
    print("refused:", error)
finally:
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("host", "said"), [("127.0.0.1", "started"), ("0.0.0.0", "refused: http_host")])
def test_a_replica_knows_where_serve_listens(host: str, said: str) -> None:
    found = subprocess.run([sys.executable, "-c", _SERVE, host], capture_output=True, text=True, timeout=600)
    assert said in found.stdout, found.stderr


# A node that other machines reach, with its dashboard, as the head of a cluster; Serve listens on loopback.
_RAY = """
import json, sys, urllib.error, urllib.request
import ray
from ray import serve
from ray._private.services import get_node_ip_address

address = get_node_ip_address()
context = ray.init(
    address="local", _node_ip_address=address, num_cpus=2, log_to_driver=False, include_dashboard=True,
    dashboard_host=address, dashboard_port=int(sys.argv[1]),
)
serve.start(http_options={"host": "127.0.0.1", "port": 0})

def jobs(**headers):
    request = urllib.request.Request(f"http://{context.dashboard_url}/api/jobs/", headers=headers)
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code

from services.query.deployment import _refuse_strangers
found = {"address": address, "refused": "", "jobs": jobs()}
found["jobs with the token"] = jobs(Authorization="Bearer " + sys.argv[2])
found["jobs with another"] = jobs(Authorization="Bearer " + "0" * 64)
try:
    _refuse_strangers()
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_ray_beyond_loopback_asks_for_its_token_or_nothing_starts(mode: str) -> None:
    token = secrets.token_hex(32)
    own = os.environ | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    call = [sys.executable, "-c", _RAY, str(free_port()), token]
    done = subprocess.run(call, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray prints as well
    if is_loopback(found["address"]):
        pytest.skip("this machine has no other address")
    answers = [found["jobs"], found["jobs with the token"], found["jobs with another"]]
    if mode == "token":
        assert answers == [401, 200, 403]
        assert found["refused"] == ""
    else:
        assert answers == [200, 200, 200]  # what it is refused for
        assert found["refused"].startswith("ray: other machines can reach")

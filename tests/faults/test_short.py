"""A short choice of the faults, for `make test`: a replica and Redis are killed, versions come from another client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.rows import KCAT, judged, kcat, run
from tests.faults.system import System, started
from tests.faults.workload import Expected, amendments

pytestmark = pytest.mark.slow

DOCUMENTS = 60


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with started(tmp_path_factory.mktemp("faults")) as running:
        yield running


def test_a_replica_is_killed(system: System) -> None:
    assert run(system, "short: SIGKILL of ingest", lambda: system.kill_replica("ingest"), count=DOCUMENTS).right


def test_redis_dies(system: System) -> None:
    assert run(system, "short: SIGKILL of Redis", lambda: system.kill_server(system.redis), count=DOCUMENTS).right


@pytest.mark.skipif(KCAT is None, reason="kcat (librdkafka) is not installed")
def test_amendments_sent_by_kcat(system: System) -> None:
    expected = Expected()
    kcat(system, list(amendments(4)), expected)
    assert judged(system, "short: order and A-B-A", expected).right

from __future__ import annotations

import json
from dataclasses import asdict

from services.ingest.status import WAITING, Status


def test_it_can_be_sent() -> None:
    status = Status(1, 2, 3, True, 4, 5, 6, None, "kafka: away", {"t-0": 7})
    assert json.loads(json.dumps(asdict(status)))["committed"] == {"t-0": 7}


def test_one_that_waits_for_the_lease_has_no_problem() -> None:
    assert (WAITING.waiting, WAITING.lag, WAITING.problem) == (True, 0, None)

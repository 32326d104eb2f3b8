from __future__ import annotations

import pytest

from shared.messages import Extraction
from tests.support.cli import call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_without_a_running_application_the_remedy_is_named() -> None:
    assert "`biobracket up`" in failed(call("status"))


def test_documents_entities_and_lag_are_shown(stored: Extraction) -> None:
    call("produce", "-", given=b'{"id": "a", "text": "x"}')
    assert "documents 1, entities 1, lag 1" in call("status").stdout

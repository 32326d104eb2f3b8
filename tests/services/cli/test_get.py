from __future__ import annotations

import pytest

from shared.messages import Extraction
from shared.settings import Settings
from tests.support.cli import call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_without_a_running_application_the_remedy_is_named() -> None:
    assert "`biobracket up`" in failed(call("get", "a"))


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_HTTP_PORT", "many")
    assert "BIOBRACKET_HTTP_PORT" in failed(call("get", "a"))


def test_a_document_without_a_result(servers: Settings) -> None:
    assert "no result" in failed(call("get", "病历/1"))


def test_a_stored_result_is_shown(stored: Extraction) -> None:
    assert "右肺腺癌" in call("get", "病历/1").stdout
    assert Extraction.model_validate_json(call("get", "病历/1", "--json").stdout) == stored

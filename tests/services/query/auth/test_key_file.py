from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.query.auth import key_file
from services.query.auth.callers import AuthenticationError, Rejected, Unavailable
from services.query.auth.key_file import KeyRing
from services.query.auth.scopes import SCOPES, Scope

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@given(scopes=st.lists(st.sampled_from(SCOPES), min_size=1, unique=True), days=st.integers(0, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_key_is_accepted_until_it_expires(keys_path: Path, scopes: Sequence[Scope], days: int) -> None:
    key, made = key_file.create(keys_path, "ward-3", scopes, days, NOW)
    caller = KeyRing(keys_path, lambda: NOW).check(key)
    assert (caller.kind, caller.name, caller.scopes) == ("key", "ward-3", set(scopes))
    later = KeyRing(keys_path, lambda: NOW + timedelta(days=days))
    if days:
        with pytest.raises(Rejected, match="expired_key"):
            later.check(key)
    else:
        assert later.check(key) == caller
    assert key_file.listed(keys_path)[-1] == made


def test_the_file_holds_no_key_and_only_its_owner_reads_it(keys_path: Path) -> None:
    key, made = key_file.create(keys_path, "ward-3", ["read"], 0, NOW)
    key_file.create(keys_path, "ward-4", ["read"], 0, NOW)
    assert key.split("_", 2)[2] not in keys_path.read_text()
    assert made.id in keys_path.read_text()
    assert stat.S_IMODE(keys_path.stat().st_mode) == 0o600
    key_file.revoke(keys_path, made.id, NOW)
    assert stat.S_IMODE(keys_path.stat().st_mode) == 0o600
    assert {file.name for file in keys_path.parent.iterdir()} == {"api-keys.json", ".api-keys.json.lock"}


def test_a_ring_that_runs_follows_the_file(keys_path: Path) -> None:
    first, made = key_file.create(keys_path, "ward-3", ["read"], 0, NOW)
    ring = KeyRing(keys_path, lambda: NOW)
    second, _ = key_file.create(keys_path, "ward-3", ["extract"], 0, NOW)
    assert ring.check(second).scopes == {"extract"}
    revoked = key_file.revoke(keys_path, made.id, NOW)
    assert key_file.revoke(keys_path, made.id, NOW + timedelta(days=1)) == revoked
    with pytest.raises(Rejected, match="revoked_key"):
        ring.check(first)
    assert ring.check(second)
    content = keys_path.read_text()
    for broken in ("{", content.replace(made.id, "zz")):
        keys_path.write_text(broken)
        with pytest.raises(Unavailable):
            ring.check(second)
    keys_path.unlink()
    with pytest.raises(Unavailable):
        ring.check(second)
    keys_path.write_text(content)
    assert ring.check(second)


@given(place=st.integers(0, 60), letter=st.characters(codec="ascii"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_key_is_unknown(keys_path: Path, place: int, letter: str) -> None:
    key = key_file.create(keys_path, "ward-3", ["read"], 0, NOW)[0]
    place = min(place, len(key) - 1)
    other = key[:place] + letter + key[place + 1 :]
    if other != key:
        with pytest.raises(Rejected, match="unknown_key"):
            KeyRing(keys_path).check(other)
    with pytest.raises(Rejected, match="unknown_key"):
        KeyRing(keys_path).check(key[:place])


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "患者", "a" * 65, "a\n"])
def test_names_are_plain(keys_path: Path, name: str) -> None:
    with pytest.raises(AuthenticationError, match=r"^name: "):
        key_file.create(keys_path, name, ["read"], 0, NOW)
    assert not keys_path.exists()


def test_a_broken_file_is_refused_with_the_place_and_never_overwritten(keys_path: Path) -> None:
    key_file.create(keys_path, "ward-3", ["read"], 0, NOW)
    content = json.loads(keys_path.read_text())
    content["keys"][0]["salt"] = "zq17"
    keys_path.write_text(json.dumps(content))
    before = keys_path.read_bytes()
    for call in (
        lambda: KeyRing(keys_path),
        lambda: key_file.listed(keys_path),
        lambda: key_file.create(keys_path, "ward-4", ["read"], 0, NOW),
        lambda: key_file.revoke(keys_path, "0" * 12, NOW),
    ):
        with pytest.raises(AuthenticationError, match=r"BIOBRACKET_QUERY_API_KEYS.*keys\.0\.salt") as error:
            call()
        assert "zq17" not in str(error.value)
    assert keys_path.read_bytes() == before


def test_a_missing_file_names_the_command(keys_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="biobracket keys create"):
        KeyRing(keys_path)


def test_two_entries_of_one_id_are_refused(keys_path: Path) -> None:
    key_file.create(keys_path, "ward-3", ["read"], 0, NOW)
    content = json.loads(keys_path.read_text())
    with pytest.raises(AuthenticationError, match="same id"):
        key_file.parse(json.dumps({"v": 1, "keys": content["keys"] * 2}).encode())


def test_no_key_is_lost_between_commands(keys_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: key_file.create(keys_path, f"c{i}", ["read"], 0, NOW)[1].id, range(24)))
    assert {key.id for key in key_file.listed(keys_path)} == set(made)

"""Sealed values: what goes in comes out where it was put, and nothing else does."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends import vault as module
from shared.backends.vault import PLAIN, KeyedVault, SealError, key_of, vault
from shared.settings import Settings

VALUES = st.binary(max_size=300)
PLACES = st.text(max_size=40)
TEXT = b"right lung adenocarcinoma"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys") / "keys.json"
    module.create(made)
    return made


@pytest.fixture(scope="module")
def keyed(path: Path) -> KeyedVault:
    return KeyedVault(path)


@given(VALUES, PLACES)
def test_open_is_the_inverse_of_seal(keyed: KeyedVault, value: bytes, place: str) -> None:
    sealed = keyed.seal(value, place)
    assert keyed.open(sealed, place) == value
    assert keyed.seal(value, place) != sealed
    assert key_of(sealed) == "k1"
    assert keyed.current(sealed)
    assert len(value) < 8 or value not in sealed


@given(VALUES, PLACES, PLACES)
def test_a_value_does_not_open_at_another_place(keyed: KeyedVault, value: bytes, place: str, other: str) -> None:
    if place == other:
        return
    with pytest.raises(SealError, match="changed, or comes from another place") as refused:
        keyed.open(keyed.seal(value, place), other)
    assert not refused.value.retryable


@given(st.binary(min_size=1, max_size=100), st.data())
def test_no_byte_of_it_can_be_changed(keyed: KeyedVault, value: bytes, data: st.DataObject) -> None:
    sealed = bytearray(keyed.seal(value, "here"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealError, match=r"^store: ") as refused:
        keyed.open(bytes(sealed), "here")
    assert str(refused.value).isascii()


@given(st.data())
def test_what_was_cut_off_is_refused(keyed: KeyedVault, data: st.DataObject) -> None:
    sealed = keyed.seal(TEXT, "here")
    with pytest.raises(SealError):
        keyed.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))], "here")


@given(st.binary(max_size=200))
def test_anything_else_is_refused_without_quoting_it(keyed: KeyedVault, garbage: bytes) -> None:
    for value in (garbage, b"\xbb\x01" + garbage, TEXT):
        with pytest.raises(SealError) as refused:
            keyed.open(value, "here")
        assert "carcinoma" not in str(refused.value)


def test_the_key_is_named_where_it_is_missing(tmp_path: Path, keyed: KeyedVault, path: Path) -> None:
    content = json.loads(path.read_bytes())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content | {"current": "k7", "keys": {"k7": "0" * 64}}))
    sealed = KeyedVault(other).seal(TEXT, "here")
    with pytest.raises(SealError, match=r"the key k7, which the file of BIOBRACKET_ENCRYPTION_KEYS lacks") as refused:
        keyed.open(sealed, "here")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    with pytest.raises(SealError, match="set BIOBRACKET_ENCRYPTION_KEYS"):
        PLAIN.open(sealed, "here")
    # The same id, another key.
    other.write_text(json.dumps(content | {"keys": {"k1": "0" * 64}}))
    with pytest.raises(SealError, match="changed"):
        keyed.open(KeyedVault(other).seal(TEXT, "here"), "here")


def test_without_keys_everything_stays_as_it_is() -> None:
    assert vault(Settings()) is PLAIN
    assert PLAIN.open(PLAIN.seal(TEXT, "here"), "there") == TEXT
    assert PLAIN.member("document", "note-1") == "note-1"
    assert PLAIN.name("document", "note-1") == PLAIN.named("document", "note-1") == PLAIN.name("mention", "note-1")


def test_names_are_those_of_the_key_and_the_kind(keyed: KeyedVault, path: Path, tmp_path: Path) -> None:
    name = keyed.name("document", "note-1")
    assert name == KeyedVault(path).name("document", "note-1") == keyed.named("document", name)
    assert name == keyed.member("document", "note-1")
    assert len({name, keyed.name("mention", "note-1"), PLAIN.name("document", "note-1")}) == 3
    assert keyed.name("document", "\ud800")
    module.create(tmp_path / "other")
    other = KeyedVault(tmp_path / "other")
    assert other.name("document", "note-1") != name
    assert len({other.fingerprint, keyed.fingerprint, PLAIN.fingerprint}) == 3


def test_keys_change_while_values_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert module.create(path) == "k1"
    running = KeyedVault(path)
    old = running.seal(TEXT, "here")
    assert module.add(path) == "k2"
    assert key_of(running.seal(TEXT, "here")) == "k1"
    module.use(path, "k2")
    new = running.seal(TEXT, "here")
    assert key_of(new) == "k2"
    assert running.open(old, "here") == running.open(new, "here") == TEXT
    assert (running.current(old), running.current(new)) == (False, True)
    module.remove(path, "k1")
    assert running.open(new, "here") == TEXT
    with pytest.raises(SealError, match="k1"):
        running.open(old, "here")
    assert module.add(path) == "k3"
    # A file that cannot be used, or that names by another key, is not taken up.
    content = path.read_text()
    for broken in ("{", json.dumps(json.loads(content) | {"names": "0" * 64, "current": "k3"})):
        path.write_text(broken)
        assert key_of(running.seal(TEXT, "here")) == "k2"
    path.unlink()
    assert running.open(new, "here") == TEXT


def test_commands_refuse_what_would_lose_values(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    module.create(path)
    content = path.read_bytes()
    with pytest.raises(SealError, match="is there already"):
        module.create(path)
    for refused, id_ in ((module.use, "k2"), (module.remove, "k2"), (module.remove, "k1")):
        with pytest.raises(SealError, match=r"^id: "):
            refused(path, id_)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"current": "k1"}',
        '{"v": 1, "current": "k2", "keys": {"k1": "SECRET"}, "names": "SECRET"}',
        '{"v": 1, "current": "k2", "keys": {"k1": "' + "a" * 64 + '"}, "names": "' + "b" * 64 + '"}',
    ],
)
def test_a_file_of_something_else_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(SealError, match=str(path)) as refused:
        vault(Settings(encryption_keys=path))
    assert "SECRET" not in str(refused.value)
    assert "aaaa" not in str(refused.value)
    with pytest.raises(SealError, match="BIOBRACKET_ENCRYPTION_KEYS"):
        vault(Settings(encryption_keys=tmp_path / "nowhere"))


def test_keys_are_in_no_representation(path: Path) -> None:
    file = module.parse(path.read_bytes())
    assert not [key for key in (*file.keys.values(), file.names) if key in repr(file)]

"""Folders of models are read only as their digests say; nothing of them is run."""

from __future__ import annotations

import ast
import hashlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DigestError
from shared.model import digests
from shared.model.base_model import BaseModelError, base_folder, load_base
from shared.model.digests import SUMS, check_sums, sha256, write_sums
from shared.settings import Settings
from tests.support.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "adapter_config.json").write_text("{}")
    (made / "README.md").write_text("card")
    write_sums(made)
    return made


def test_coreutils_read_what_is_written(folder: Path) -> None:
    check_sums(folder)
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["adapter_config.json: OK", "adapter_model.safetensors: OK"]
    (folder / "README.md").write_text("another card")
    check_sums(folder)


def test_what_coreutils_write_is_read(folder: Path) -> None:
    made = subprocess.run("sha256sum *.safetensors *.json", shell=True, cwd=folder, capture_output=True, check=True)
    (folder / SUMS).write_bytes(made.stdout)
    check_sums(folder)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [
        (lambda f: flip(f / "adapter_model.safetensors"), "adapter_model.safetensors: not the file whose digest"),
        (lambda f: flip(f / "adapter_config.json"), "adapter_config.json: not the file whose digest"),
        (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json: named in SHA256SUMS, but"),
        (lambda f: (f / "scheme.json").write_text("{}"), "scheme.json: not named in SHA256SUMS; remove it"),
        (lambda f: (f / "more.safetensors").write_text(""), "more.safetensors: not named in SHA256SUMS; remove it"),
        (lambda f: (f / "adapter_model.bin").write_text(""), "adapter_model.bin: weights are read from safetensors"),
        (lambda f: (f / SUMS).unlink(), "SHA256SUMS: missing; copy the folder again .* sha256sum"),
        (lambda f: (f / SUMS).write_text("0" * 63 + "  a.json\n"), "SHA256SUMS: line 1 is no digest and name"),
        (lambda f: (f / SUMS).write_text("0" * 64 + "  ../a.json\n"), "SHA256SUMS: line 1 is no digest and name"),
        (lambda f: (f / SUMS).write_text("0" * 64 + "  ..\n"), "SHA256SUMS: line 1 is no digest and name"),
        (lambda f: (f / SUMS).write_bytes(b"\xff\xfe"), "SHA256SUMS: cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folder: Path, damage: Any, refusal: str) -> None:
    damage(folder)
    with pytest.raises(DigestError, match=refusal):
        check_sums(folder)


def test_a_file_made_later_gets_a_digest_and_blesses_no_other(folder: Path) -> None:
    flip(folder / "adapter_model.safetensors")
    (folder / "calibration.json").write_text("{}")
    write_sums(folder, "calibration.json")
    with pytest.raises(DigestError, match="adapter_model"):
        check_sums(folder)
    flip(folder / "adapter_model.safetensors")
    check_sums(folder)


def test_large_files_are_hashed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_LARGE", 4)
    large = folder / "adapter_model.safetensors"
    hashed: list[str] = []
    plain = digests._hashed
    monkeypatch.setattr(digests, "_hashed", lambda file: (hashed.append(file.name), plain(file))[1])
    cache = tmp_path / "cache"
    for _ in range(2):
        check_sums(folder, cache)
    assert hashed.count(large.name) == 1
    # Changed without a trace in its size or the time of its content, it is hashed again.
    times = large.stat()
    flip(large)
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DigestError, match=large.name):
        check_sums(folder, cache)
    # What cannot be read or written in the cache costs time, but changes no answer.
    flip(large)
    for broken in (b"", b"\xff", b"[]", b'{"x": 1}', f'{{"{large.resolve()}": ["0"]}}'.encode()):
        (cache / "digests.json").write_bytes(broken)
        check_sums(folder, cache)
    (tmp_path / "file").write_text("")
    assert sha256(large, tmp_path / "file" / "cache") == hashlib.sha256(b"weights").hexdigest()


def test_a_base_is_checked_if_it_names_its_digests(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), cache=tmp_path / "cache")
    load_base(settings)
    write_sums(base)
    load_base(settings)
    flip(base / "model.safetensors")
    with pytest.raises(DigestError, match=r"model\.safetensors: not the file"):
        base_folder(settings)


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return open, (str(self._file), "w")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(BaseModelError, match="in safetensors"):
        load_base(Settings(base_model=str(base)))
    assert not (tmp_path / "ran").exists()


def test_code_in_the_folder_of_a_base_is_not_run(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    config = base / "config.json"
    own = '"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, "model_type": "own",'
    config.write_text(config.read_text().replace("{", "{" + own, 1).replace('"model_type": "gemma3_text",', ""))
    (base / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_base(Settings(base_model=str(base)))
    assert not (tmp_path / "ran").exists()


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_call_loads_pickles_or_trusts_code() -> None:
    """In the whole source: `trust_remote_code` is nowhere, torch.load reads plain tensors, models are safetensors."""
    seen = []
    for file in (
        f for package in ("services", "shared", "training", "benchmarks") for f in (ROOT / package).rglob("*.py")
    ):
        for call in calls(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(call.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            place = f"{file.relative_to(ROOT)}:{call.lineno}"
            assert "trust_remote_code" not in given, place
            if name == "torch.load":
                assert given.get("weights_only") == "True", place
            if name in ("AutoModelForCausalLM.from_pretrained", "AutoModel.from_pretrained"):
                seen.append(place)
                assert given.get("use_safetensors") == "True" or "gguf_file" in given, place
    assert len(seen) >= 2


@pytest.mark.parametrize("name", ["gemma-3-270m-biobracket", "gemma-3-270m-biobracket-selector"])
def test_the_models_that_come_along_are_whole(name: str) -> None:
    check_sums(ROOT / "models" / name)


@pytest.mark.parametrize("name", ["患者 zq17.json", "a\x00.json", "a b.json", "x" * 129, "", "../a.json"])
def test_a_name_that_no_file_of_ours_has_is_refused_by_its_line(tmp_path, name):
    (tmp_path / SUMS).write_text(f"{'0' * 64}  {name}\n", encoding="utf-8")
    with pytest.raises(DigestError, match=r"SHA256SUMS: line 1 is no digest and name") as caught:
        check_sums(tmp_path)
    assert "zq17" not in str(caught.value)

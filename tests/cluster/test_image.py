"""The image that `make images` has left: what is in it, how large each part is, and that it runs by itself."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kubernetes import FOLDER

pytestmark = pytest.mark.cluster

# MiB of files. A build of torch for CUDA brings what is not counted here: five times as much as all of the rest.
MOST = {"base": 300, "packages": 2200, "models": 1700, "code": 150}
_CUDA = re.compile(r"/site-packages/(nvidia|triton|cuda|torch)/")


@pytest.fixture(scope="module")
def archive() -> Iterator[tarfile.TarFile]:
    file = Path(os.environ.get("IMAGE") or FOLDER / "images" / "biobracket.tar")
    if not file.is_file():
        pytest.fail(f"no {file}: run `make images`, or name the archive by IMAGE")
    with tarfile.open(file) as opened:
        yield opened


def manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    (found,) = read(archive, "manifest.json")
    return dict(found)


def read(archive: tarfile.TarFile, name: str) -> Any:
    content = archive.extractfile(name)
    assert content is not None
    return json.load(content)


def sizes(layer: Any) -> Counter[str]:
    """MiB by part."""
    found: Counter[str] = Counter()
    with tarfile.open(fileobj=layer) as files:
        for file in files:
            parts = {"opt/venv": "packages", "opt/models": "models", "app": "code"}
            part = next((parts[top] for top in parts if f"{file.name}/".startswith(f"{top}/")), "base")
            if file.isfile() and not _CUDA.search(f"/{file.name}"):
                found[part] += file.size
    return found


def test_each_part_is_a_layer_of_bounded_size(archive: tarfile.TarFile) -> None:
    layers = [archive.extractfile(name) for name in manifest(archive)["Layers"]]
    found = [sizes(layer) for layer in layers]
    for part in ("packages", "models", "code"):
        (own,) = [each for each in found if each[part] > 2**20]
        assert own.total() - own[part] < 2**20, f"{part} are in a layer with something else"
    total: Counter[str] = sum(found, Counter())
    print("\n" + ", ".join(f"{part} {total[part] / 2**20:.0f} MiB" for part in MOST))
    assert {part: size for part, size in total.items() if size / 2**20 > MOST[part]} == {}


def test_it_is_nobody_and_says_what_it_is(archive: tarfile.TarFile) -> None:
    config = read(archive, manifest(archive)["Config"])["config"]
    assert config["User"] == "1000"
    assert config["Labels"]["org.opencontainers.image.title"] == "biobracket"
    assert config["Entrypoint"] == ["biobracket"]


def test_the_weights_are_in_it(archive: tarfile.TarFile) -> None:
    """So that no pod makes them; whoever a pod runs as can read them."""
    found: dict[str, int] = {}
    for name in manifest(archive)["Layers"]:
        with tarfile.open(fileobj=archive.extractfile(name)) as files:
            found |= {file.name: file.mode for file in files if file.name.startswith("opt/models/")}
    assert [name for name in found if re.fullmatch(r"opt/models/int8-[\w-]+\.safetensors", name)]
    assert [name for name, mode in found.items() if not mode & 0o004] == []

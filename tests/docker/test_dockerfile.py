"""The Dockerfile: clean, and without what only development needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Of those for development, what the program itself needs through others: training's configurations, and Ray.
KEPT = {"PyYAML", "jsonschema"}


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_only_development_needs_is_not_in_the_image() -> None:
    (listed,) = re.findall(r"pip uninstall --yes ((?:[\w-]+|\\\n|\s)+)", TEXT.replace("\\\n", " "))
    names = {re.split(r"[<>=\[]", each)[0] for each in PROJECT["optional-dependencies"]["dev"]}
    assert set(listed.split("\n")[0].split()) == names - KEPT


def test_it_says_which_version_it_is() -> None:
    assert f'image.version="{PROJECT["version"]}"' in TEXT
    assert f'image.licenses="{PROJECT["license"]}"' in TEXT


def test_nobody_is_root_and_everything_written_is_in_a_volume() -> None:
    assert "\nUSER 1000\n" in TEXT
    assert "HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba" in TEXT


def test_what_root_made_can_be_read_by_the_user() -> None:
    """Files of 8-bit weights are made for their owner alone."""
    assert re.search(r"BIOBRACKET_CACHE=/opt/models python [^&]+&& chmod -R a\+rX /opt/models\n", TEXT)


def test_the_base_is_an_argument() -> None:
    assert set(re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)) == {"${BASE}"}

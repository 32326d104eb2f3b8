"""What documents name is there: files, anchors, settings, make targets, commands and their options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from services.cli import cli
from services.cli.settings import classes

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "CHANGELOG.md"  # names what was
DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "k8s/*.md", "models/*/*.md")
    for file in ROOT.glob(pattern)
)
CURRENT = [file for file in DOCUMENTS if file != HISTORY]
OF_MAKE = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
SETTINGS = {f"{c.model_config['env_prefix']}{name}".upper() for c in classes() for name in c.model_fields}
COMMANDS = typer.main.get_command(cli)

each_current = pytest.mark.parametrize("file", CURRENT, ids=lambda file: file.relative_to(ROOT).as_posix())


def anchors(file: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(file: Path) -> list[str]:
    """What follows `biobracket` in code marks and, after variables and the like, in indented command lines."""
    text = re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))
    return re.findall(
        r"(?:`|^    (?:kubectl .* exec .*|(?!kubectl)[^#\n]*?))\bbiobracket ([^`#\n|;]+)", text, re.MULTILINE
    )


def split(words: list[str]) -> tuple[list[str], set[str]]:
    """Command and subcommand at the beginning of a command line, and the long options in it."""
    names = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z-]*", word)]
    return names, {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"^    .*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (file.parent / path).resolve() if path else file
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@each_current
def test_files_are_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    named = re.findall(r"`((?:services|shared|training|tests|benchmarks|k8s|docker|docs|models)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_current
def test_settings_are_there(file: Path) -> None:
    assert set(re.findall(r"BIOBRACKET_\w+", file.read_text(encoding="utf-8"))) <= SETTINGS


@each_current
def test_make_targets_are_there(file: Path) -> None:
    assert (
        set(re.findall(r"(?:`|^    (?:\S+=\S+ )*)make ([a-z0-9-]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
        <= OF_MAKE
    )


@each_current
def test_commands_and_options_are_there(file: Path) -> None:
    for line in commands(file):
        names, options = split(line.split())
        command = COMMANDS
        for name in names:
            below = getattr(command, "commands", None)
            if below is None:
                break  # an argument
            assert name in below, line
            command = below[name]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert options <= known, line


def test_commands_are_found() -> None:
    assert {"up", "extract my.txt", "evaluate --corpus genia --split test"} <= {
        c.strip() for c in commands(ROOT / "README.md")
    }
    assert any(c.startswith("train calibration") for c in commands(ROOT / "docs" / "kubernetes.md"))

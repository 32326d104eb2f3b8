"""Where things are: every module has its test at the mirrored place, and every such test its module."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("biobracket", "services", "shared", "training", "benchmarks")
# Tests of a package as a whole.
PACKAGE = "test_package.py"
# An interface has no code of its own; fields of a service are held by tests/services/cli/test_settings.py.
WITHOUT = {"services/generation/engine.py", *(f"services/{name}/config.py" for name in (
    "generation", "ingest", "parsing", "pipeline", "query", "selection"
))}  # fmt: skip


def test_every_module_has_its_test() -> None:
    missing = []
    for source in SOURCES:
        for module in (ROOT / source).rglob("*.py"):
            place = module.relative_to(ROOT)
            test = ROOT / "tests" / place.with_name(f"test_{place.name}")
            if module.name != "__init__.py" and place.as_posix() not in WITHOUT and not test.is_file():
                missing.append(place.as_posix())
    assert missing == []


def test_every_test_has_its_module() -> None:
    lost = []
    for source in SOURCES:
        for test in (ROOT / "tests" / source).rglob("test_*.py"):
            place = test.relative_to(ROOT / "tests")
            module = ROOT / place.with_name(place.name.removeprefix("test_"))
            if test.name != PACKAGE and not module.is_file():
                lost.append(test.relative_to(ROOT).as_posix())
    assert lost == []

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from services.cli.console import clear_errors, document_progress, fail, load_settings, progress_bar, warn
from shared.errors import SelectorError
from shared.messages import Counts, Document, Extraction


def test_no_command_is_imported_with_it() -> None:
    code = (
        "import sys, types\n"
        "package = types.ModuleType('services.cli'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['services.cli'] = package\n"
        "import services.cli.console\n"
        "print(sorted(m for m in sys.modules if m.startswith('services.')))"
    )
    folder = str(Path(sys.modules["services.cli"].__path__[0]))
    run = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert run.stdout.strip() == "['services.cli', 'services.cli.console']", run.stderr


def test_messages_are_one_line_each_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("map: [bold] is no mark-up")
    with pytest.raises(typer.Exit) as ended:
        fail("port: is taken " + "x" * 200)
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["warning: map: [bold] is no mark-up", "error: port: is taken " + "x" * 200]


@pytest.mark.parametrize("error", [SelectorError("selector: none"), FileNotFoundError("adapter: none")])
def test_errors_that_name_a_remedy_end_the_command(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), clear_errors():
        raise error
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), clear_errors():
        raise KeyError("x")


def test_options_stand_above_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIOBRACKET_DATA", "elsewhere")
    monkeypatch.setenv("BIOBRACKET_HTTP_PORT", "9")
    assert load_settings().data == Path("elsewhere")
    given = load_settings(tmp_path, 17)
    assert (given.data, given.http_port) == (tmp_path, 17)


def test_progress_is_in_characters_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    documents = [Document(id="a", text="abc"), Document(id="b", text="de")]
    with document_progress(documents, "texts") as done, progress_bar() as progress:
        for document in documents:
            done(
                Extraction(
                    document_id=document.id,
                    text_sha256=document.sha256,
                    lang="en",
                    types=("protein",),
                    entities=(),
                    model_revision="0",
                    counts=Counts(characters=len(document.text)),
                )
            )
        assert progress.disable
    assert capsys.readouterr() == ("", "")

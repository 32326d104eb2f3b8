import shlex

import pytest

from benchmarks.hardware import hardware, make_command


@pytest.mark.parametrize("arguments", [[], ["--segments", "400"], ["--plot", "a b's.png"]])
def test_the_command_gives_the_same_arguments_again(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["engines.py", *arguments])
    make, target, *variables = shlex.split(make_command("engines"))
    assert (make, target) == ("make", "engines")
    given = dict(variable.split("=", 1) for variable in variables)
    assert shlex.split(given.get("ARGS", "")) == arguments


def test_hardware_says_what_timings_depend_on():
    found = hardware()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0

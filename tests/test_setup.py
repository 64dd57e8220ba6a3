"""The set-up: pinned versions, when .venv is made again, which Python is taken."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = [
    line.partition("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
]


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """tools/setup.py in a checkout of its own; `installed` lists the commands that it ran."""
    spec = importlib.util.spec_from_file_location("setup_of_tools", ROOT / "tools" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in module.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module.STAMP = tmp_path / ".venv" / "set-up-is-complete"
    module.installed = []

    def run(command, **_):
        module.installed.append([str(word) for word in command])
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.touch()

    monkeypatch.setattr(module.subprocess, "run", run)
    return module


def test_the_first_call_installs_torch_before_the_rest_by_the_constraints(setup, capsys):
    assert setup.main() == 0
    venv, torch, rest = setup.installed
    assert venv[1:3] == ["-m", "venv"]
    assert "torch" in torch and rest[-1].endswith("[dev,report,text]")
    assert all("--constraint" in command for command in (torch, rest))
    assert re.match(r"set-up: \d+\.\d s \(\.venv made", capsys.readouterr().out.splitlines()[-1])


def test_the_extras_have_an_environment_of_their_own(setup, capsys):
    setup.main()
    setup.installed.clear()
    assert setup.main("extras") == 0
    assert all(
        ".venv-extras" in command[0 if i else -1] for i, command in enumerate(setup.installed)
    )
    assert "hf,eval" in setup.installed[-1][-1] and "openai" in setup.installed[-1]
    assert ".venv-extras made" in capsys.readouterr().out
    assert (setup.ROOT / ".venv" / setup.COMPLETE).exists()
    setup.installed.clear()
    assert setup.main() == setup.main("extras") == 0 and setup.installed == []


def test_an_unknown_environment_is_refused(setup, capsys):
    assert setup.main("extra") == 2
    assert "found: tools/setup.py extra" in capsys.readouterr().err and setup.installed == []


def test_the_environment_of_the_extras_has_every_extra(setup):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = set(setup.EXTRAS[".venv-extras"].split(","))
    assert given | {"mlflow", "tensorboard"} == set(project["optional-dependencies"])


def test_a_second_call_reuses_the_environment(setup, capsys):
    setup.main()
    setup.installed.clear()
    assert setup.main() == 0
    assert setup.installed == []
    assert "reused" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "tools/setup.py"])
def test_a_changed_input_makes_it_again(setup, name):
    setup.main()
    setup.installed.clear()
    file = setup.ROOT / name
    file.write_text(file.read_text() + "\n# more\n")
    setup.main()
    assert len(setup.installed) == 3


def test_another_python_makes_it_again(setup, monkeypatch):
    setup.main()
    before = setup.key()
    monkeypatch.setattr(setup.sys, "version", "3.12.9 (somewhere)")
    assert setup.key() != before


def test_an_interrupted_set_up_is_made_again(setup):
    setup.main()
    setup.STAMP.unlink()
    setup.installed.clear()
    setup.main()
    assert len(setup.installed) == 3


def test_a_failed_install_is_reported_in_three_lines_and_leaves_no_stamp(
    setup, monkeypatch, capsys
):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(setup.subprocess, "run", fail)
    assert setup.main() == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["found", "expected", "fix"]
    assert not setup.STAMP.exists()


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (3, 13, 7), (3, 14, 2)])
def test_each_supported_python_is_taken_and_named(setup, monkeypatch, capsys, version):
    monkeypatch.setattr(setup.sys, "version_info", version)
    assert setup.main() == 0
    name = ".".join(map(str, version))
    assert capsys.readouterr().out.startswith(f"set-up: Python {name} ({sys.executable})")


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 15, 0), (2, 7, 18)])
def test_other_pythons_are_refused(setup, monkeypatch, capsys, version):
    monkeypatch.setattr(setup.sys, "version_info", version)
    assert setup.main() == 2
    found, expected, fix = capsys.readouterr().err.splitlines()
    assert found.startswith("found: Python " + ".".join(map(str, version)))
    assert expected == "expected: Python 3.11 to 3.14"
    assert fix.startswith("fix: ") and "PYTHON=" in fix
    assert setup.installed == []


def test_the_range_of_pythons_is_that_of_the_package(setup):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (major, oldest), (_, newest) = setup.OLDEST, setup.NEWEST
    assert project["requires-python"] == f">={major}.{oldest},<{major}.{newest + 1}"


def python_that_make_takes(folder, **found):
    """The interpreter that make takes, if those of `found` are on the path: {minor: usable}."""
    for minor, usable in found.items():
        script = folder / f"python3.{minor[1:]}" if minor != "python3" else folder / minor
        script.write_text("#!/bin/sh\n" + ("echo True" if usable else "exit 127") + "\n")
        script.chmod(0o755)
    command = [shutil.which("make"), "-n", "setup"]
    environment = {"PATH": str(folder)}
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert plan.returncode == 0, plan.stderr
    return plan.stdout.split()[0]


def test_make_takes_the_first_python_that_runs(tmp_path):
    assert python_that_make_takes(tmp_path) == "python3"  # which then says what is missing
    assert python_that_make_takes(tmp_path, python3=True) == "python3"
    assert python_that_make_takes(tmp_path, _14=True) == "python3.14"
    assert python_that_make_takes(tmp_path, _12=False, _13=True) == "python3.13"
    assert python_that_make_takes(tmp_path, _11=True) == "python3.11"


def test_torch_is_pinned_first_and_everything_once():
    assert PINS[0] == ("torch", "==", "2.13.0")
    names = [name.lower() for name, _, _ in PINS]
    assert len(set(names)) == len(names)
    assert all(version for _, _, version in PINS)


def test_every_dependency_is_pinned_at_or_above_its_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    pins = {name.lower().replace("_", "-"): version for name, _, version in PINS}
    ours = [requirement for requirement in wanted if requirement.startswith("thinkers[")]
    for requirement in ours:  # an extra that takes in others
        named = re.fullmatch(r"thinkers\[([\w,]+)\]", requirement)[1].split(",")
        assert set(named) <= set(project["optional-dependencies"])
    for requirement in set(wanted) - set(ours):
        name, _, bound = re.match(r"([\w-]+)(\[\w+\])?>=([\d.]+)", requirement).groups()
        pinned = pins[name.lower()]
        assert [int(x) for x in pinned.split(".")] >= [int(x) for x in bound.split(".")], name


@pytest.mark.parametrize(
    "target", ["demo", "test", "test-extras", "docs", "test-long", "test-gpu", "lint", "format"]
)
def test_every_target_sets_up_first(target):
    command = ["make", "-n", target, f"PYTHON={sys.executable}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    plan = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert plan.returncode == 0, plan.stderr
    assert "tools/setup.py" in plan.stdout.splitlines()[0]


def test_ci_runs_what_a_contributor_types():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [x for x in script.read_text().splitlines() if not x.startswith("#")]
    assert len(commands) == 1 and commands[0].endswith("make test && make test-extras")

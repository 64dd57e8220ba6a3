"""The README: its example runs, its commands parse, its links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

from thinkers.cli import main
from thinkers.cli.parser import command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
WHOLE_LINES = README.replace("\\\n", "")
COMMANDS = re.findall(r"^(thinkers .*?)(?: +#.*)?$", WHOLE_LINES, re.MULTILINE)


def test_the_example_stands_in_the_readme_is_short_and_runs(tmp_path, monkeypatch, capsys):
    file = ROOT / "examples" / "first.py"
    assert file.read_text() in README
    assert len([line for line in file.read_text().splitlines() if line]) <= 15
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(file))
    out = capsys.readouterr().out
    assert "16 steps:" in out and "12+34=" in out and "[2, 8, 48, 128]" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_name_flags_that_exist(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("some words\n" * 99)
    words = command.replace('"', "").split()[1:]
    own, settings = main.split(words)
    options = command_line()[0].parse_args(own)
    if own[0] == "train" and options.recipe:
        assert main.main([*words, "--print_config"]) == 0


def test_there_are_commands_of_every_verb():
    assert {command.split()[1] for command in COMMANDS} == set(command_line()[1])


def test_links_lead_to_files():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"

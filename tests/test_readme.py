"""The pages: the README's example runs, commands parse, links and file names exist."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from thinkers import errors, registry
from thinkers.cli import main
from thinkers.cli.parser import command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(
            r"^(thinkers .*?)(?: +[#>].*)?$", page.read_text().replace("\\\n", ""), re.MULTILINE
        )
    }
)


EXAMPLE = ROOT / "examples" / "first.py"


def test_the_example_of_the_readme_is_short_and_runs(tmp_path, monkeypatch, capsys):
    text = EXAMPLE.read_text()
    assert text in README
    assert len([line for line in text.splitlines() if line]) <= 20
    short = text.replace("num_updates=300, batch_size=64", "num_updates=3, batch_size=8")
    assert short != text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.py").write_text(short)
    found = runpy.run_path("first.py")
    out = capsys.readouterr().out
    assert re.search(r"^48\+69=.*\n(\d steps: [\d.]+\n){2}.*\n.*\n\Z", out, re.MULTILINE), out
    assert 0 <= found["run"].scores["exact"] < 0.9


@pytest.mark.slow  # a quarter of a minute
def test_the_example_of_the_readme_ends_in_a_right_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(EXAMPLE))
    out = capsys.readouterr().out
    assert "48+69=117\n" in out and out.endswith("\n7\n")
    one, two = (float(x) for x in re.findall(r"^\d steps: (.*)$", out, re.MULTILINE))
    assert two > 0.9 > 2 * one
    assert found["run"].scores["exact"] > 0.9


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_pages_name_flags_that_exist(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("THINKERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("input.txt").write_text("some words\n" * 99)
    words = shlex.split(command)[1:]
    own, settings = main.split(words)
    options = command_line()[0].parse_args(own)
    recipe = getattr(options, "recipe", None)
    files = [*getattr(options, "config", []), *getattr(options, "import_module", [])]
    for name in (recipe or "").split("/"):
        if name in registry.OF_EXTRAS:
            pytest.importorskip(registry.OF_EXTRAS[name][0])
    if options.verb == "train" and recipe and not options.help and not files:
        # The settings of the flags are checked, nothing is read and nothing is trained.
        own = ["train", recipe, *settings, "--print_config"]
        assert main.main(own) == 0


def test_parts_of_pages_that_repeat_the_code_are_its(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["docs_tables.py", "--check"])
    monkeypatch.syspath_prepend(ROOT / "tools")
    tables = runpy.run_path(str(ROOT / "tools" / "docs_tables.py"))
    assert tables["main"]() == 0, capsys.readouterr().err


def test_the_pages_show_every_command():
    assert {command.split()[1] for command in COMMANDS} == set(command_line()[1])


def test_links_lead_to_files():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_links_to_headings_lead_to_headings():
    for page in PAGES:
        for name, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            target = page.parent / name if name else page
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in headings}
            assert heading in slugs, f"{page.name}: {name}#{heading}"


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#:]+)", README))
    of_the_site = re.compile(r"```\{include\} \.\./")  # pages that show a file of the root there
    own = [page for page in PAGES[1:] if not of_the_site.match(page.read_text())]
    assert {page.relative_to(ROOT).as_posix() for page in own} <= linked


def test_files_of_the_package_that_pages_name_exist():
    rooms = "|".join(p.name for p in (ROOT / "thinkers").iterdir() if p.is_dir())
    for page in PAGES:
        for name in re.findall(rf"`(?:thinkers/)?((?:{rooms})/\w+\.py)`", page.read_text()):
            assert (ROOT / "thinkers" / name).exists(), f"{page.name}: {name}"
        files = re.findall(r"\b((?:benchmarks|tests|tools|examples)/[\w/]+\.py)", page.read_text())
        for name in files:
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_page_of_errors_has_every_class_and_its_exit_code():
    page = (ROOT / "docs" / "errors.md").read_text()
    listed = set(re.findall(r"^\| (\d)\S* .*?\| `(\w+)` \|", page, re.MULTILINE))
    classes = {
        name: str(x.exit_code)
        for name, x in vars(errors).items()
        if isinstance(x, type) and issubclass(x, errors.ThinkersError) and name != "Interrupted"
    }
    for name, code in classes.items():
        assert f"`{name}`" in page and code in {listed_code for listed_code, _ in listed}, name
    assert all(classes.get(name, code) == code for code, name in listed)
    assert "130, 143" in page and "`Interrupted`" in page

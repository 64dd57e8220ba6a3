"""Pages of the documentation that are written from the code, and the site that holds them."""

import importlib.util
import subprocess
import sys

import pytest
from paths import ROOT

DOCSTRING = """Add one.

    y = x + 1

where x|y is `a|b`.

Args:
    x: A number.

    With a second paragraph.
"""


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        spec = importlib.util.spec_from_file_location(
            "reference_pages", ROOT / "tools" / "reference_pages.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_equations_become_verbatim_and_sections_stay(pages):
    text = pages.markdown(DOCSTRING)
    assert "```text\ny = x + 1\n```" in text
    assert text.count("```") == 2 and "    x: A number." in text
    lines = DOCSTRING.splitlines()
    pages.as_rest(None, "function", "add", None, None, lines)
    at = lines.index("::")
    assert lines[at + 2] == "    y = x + 1"
    assert lines.count("::") == 1 and r"where x\|y is `a|b`." in lines


def test_every_model_has_a_card_with_all_its_settings(pages):
    import thinkers

    text = pages.models_page()
    for name, kind in thinkers.MODELS.items():
        assert f"\n## {name}\n" in text
        settings = pages.settings_of(kind.Config)
        assert {"vocab_size", "dim"} <= {row[0].strip("`") for row in settings}
    assert "Width of the vectors between layers." in text


def test_every_command_has_its_place(pages):
    from thinkers.cli.parser import command_line

    commands = pages.commands_page()
    assert all(f"## thinkers {name}\n" in commands for name in command_line()[1])


@pytest.mark.extras
def test_every_public_name_has_its_place(pages):
    import thinkers

    pytest.importorskip("transformers")
    found = dict(pages.api_pages())
    homes = [*thinkers._HOMES.values(), *thinkers._HOMES_OF_EXTRAS.values()]
    names = [name for names in homes for name in names]
    assert "retrofit" in names and all(f"\n## {name}\n" in found["thinkers"] for name in names)
    assert "\n## ThinkersForCausalLM\n" in found["thinkers.hf"]


@pytest.mark.extras
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert {"index.html", "memory.html", "security.html"} <= {x.name for x in tmp_path.iterdir()}

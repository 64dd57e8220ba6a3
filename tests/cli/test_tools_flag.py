"""`--tools` of generate, evaluate and inspect."""

import pytest

from thinkers.cli.main import main

SIZES = ["--model.dim=16", "--model.num_heads=2", "--training.evaluate_examples=5"]
STEPS = ["--training.num_updates=1", "--training.batch_size=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "calculator"
    assert main(["train", "arithmetic/calculator", f"--out={place}", *SIZES, *STEPS]) == 0
    return str(place)


def test_generate_computes_what_stands_in_brackets(run, capsys):
    words = ["generate", run, "--prompt=3-79*83=[79*83]"]
    assert main(words) == 0
    assert "6557" not in capsys.readouterr().out
    assert main([*words, "--tools=calculator"]) == 0
    assert "6557" in capsys.readouterr().out


def test_evaluate_uses_the_tools_of_the_rows(run, capsys):
    words = ["evaluate", run, "--num_steps=1,2", "--num_examples=4"]
    for flags in ([], ["--tools=calculator"], ["--tools=none"]):
        assert main([*words, *flags]) == 0
        assert capsys.readouterr().out.split()[:3] == ["steps", "exact", "per_token"]


@pytest.mark.parametrize(
    "words, found",
    [
        (["generate", "--prompt=3-2*5", "--tools=clock"], "found: the tool 'clock'"),
        (["generate", "--prompt=3-2*5", "--tools=store"], "found: the tool 'store' for Arithmetic"),
        (["evaluate", "--tools=calculater"], "expected: "),
        (["inspect", "--ablate", "--tools=calculator"], "found: --tools without a prompt"),
    ],
)
def test_what_is_no_tool_is_refused(run, words, found, capsys):
    assert main([words[0], run, *words[1:]]) == 2
    error = capsys.readouterr().err
    assert found in error and "fix: " in error


def test_inspect_shows_the_row_with_results(run, capsys):
    assert main(["inspect", run, "--prompt=3-2*5=[_2*_5]", "--tools=calculator"]) == 0
    assert "10" in capsys.readouterr().out

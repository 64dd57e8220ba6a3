"""What commands print: text of models and names of users, escaped for the terminal."""

import pytest

import thinkers
from thinkers.cli import commands, main

NASTY = "a\x1b]0;x\x07b\rc\x9bd\u202ee\tf\n"
SHOWN = r"a\x1b]0;x\x07b\rc\x9bd\u202ee" + "\tf\n"
TINY = [
    "--model.dim=8",
    "--model.num_heads=2",
    "--training.num_updates=2",
    "--training.batch_size=5",
    "--training.evaluate_examples=7",
    "--training.device=cpu",
]


def test_samples_are_escaped_as_they_are_generated(capsys):
    pieces = [[NASTY[:9], "x"], [NASTY[9:], "\x1by\n"]]
    commands.print_samples(iter(pieces), "\x9bprompt ")
    assert capsys.readouterr().out == f"\\x9bprompt {SHOWN}\n---\n\\x9bprompt x\\x1by\n\n"


def test_answers_and_lists_are_escaped(monkeypatch, capsys):
    class Nasty(thinkers.models.decoder.Decoder):
        __doc__ = f"{NASTY}"

    monkeypatch.setitem(thinkers.MODELS, "\x1bnasty", Nasty)
    assert main.main(["list", "models"]) == 0
    out = capsys.readouterr().out
    assert "\\x1bnasty" in out and SHOWN.strip() in out and "\x1b" not in out


@pytest.mark.parametrize("name", ["a\x1b]0;x\x07", "b\nfix: c", "d\u202ee", "f\rg"])
def test_the_name_of_a_run_is_escaped(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["train", "add/decoder", *TINY, "--out", name]) == 0
    assert main.main(["train", "add/decoder", *TINY, "--out", name]) == 2
    assert main.main(["evaluate", name, "--num_examples=3"]) == 0
    assert main.main(["generate", name, "--prompt=1+2="]) == 0
    shown = capsys.readouterr()
    for text in shown.out, shown.err:
        assert text.replace("\n", "").isprintable(), ascii(text)
    assert len(shown.err.splitlines()) <= 3

"""The calculator in texts: generate and stream, across the windows of a long text."""

import pytest
import torch

import thinkers
from thinkers.errors import UsageError
from thinkers.models import build_model
from thinkers.tasks import build_task

LETTERS = "0123456789+-*[] ab."


@pytest.fixture
def run(tmp_path):
    """A character model that writes `]` after the prompt, then `.` for ever."""
    file = tmp_path / "text.txt"
    file.write_text(LETTERS * 20)
    task = build_task("text", path=str(file), context=12, vocabulary="character")
    torch.manual_seed(0)
    sizes = dict(dim=16, num_layers=1, num_heads=2, max_length=12)
    return build_model("decoder", vocab_size=task.vocab_size, **sizes), task


def writes(run, text):
    """Make the model choose the letters of `text`, one each pass; the last one repeats."""
    model, task = run
    tokens = task.encode(text)

    def choose(module, given, logits):
        token = tokens.pop(0) if len(tokens) > 1 else tokens[0]
        return torch.eye(task.vocab_size)[token].expand(logits.shape) * 100

    return model.head.register_forward_hook(choose)


def test_a_result_is_written_into_the_text_only_if_the_tool_is_named(run):
    for tools, expected in (((), "a[12*34]......."), (("calculator",), "a[12*34]408....")):
        hook = writes(run, "].")
        found = thinkers.generate(run, "a[12*34", 8, tools=tools, num_samples=2)
        assert found == [expected, expected]
        hook.remove()


def test_a_call_may_pass_the_end_of_a_window(run):
    text = "a[9 * -9].b"
    hook = writes(run, text + "b" * 4 + "[7-0012]a.")
    (found,) = thinkers.generate(run, ".", 40, tools=["calculator"])
    hook.remove()
    # A pass is made in the place of each forced token too, whose letter is not written.
    assert found.startswith(".a[9 * -9]-81") and "[7-0012]-5" in found


def test_what_is_no_call_is_text(run):
    hook = writes(run, "[ab] [1] [1+] []b")
    (found,) = thinkers.generate(run, "b", 20, tools=["calculator"])
    hook.remove()
    assert found == "b[ab] [1] [1+] []bbbb"


def test_a_result_that_does_not_fit_is_an_error(run):
    hook = writes(run, "].")
    with pytest.raises(UsageError, match="a result of 3 tokens .*, with 2 of 3 new tokens left"):
        thinkers.generate(run, "[12*34", 3, tools=["calculator"])
    hook.remove()


def test_texts_without_the_characters_of_calls_have_no_calculator(run, tmp_path):
    file = tmp_path / "other.txt"
    file.write_text("abcdefgh" * 40)
    plain = build_task("text", path=str(file), context=12, vocabulary="character")
    with pytest.raises(UsageError, match="'calculator' for Text\nexpected: .*none with these"):
        thinkers.generate((run[0], plain), "ab", tools=("calculator",))
    assert build_task("text", path=str(file), context=12, vocabulary="byte").tools
    with pytest.raises(UsageError, match="the tool calculator for the scores of Text"):
        thinkers.evaluate(run, 1, 4, tools=["calculator"])

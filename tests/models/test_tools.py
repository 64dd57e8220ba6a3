"""Tools: forced tokens in every model, against a slow reading of whole rows; bounds and errors."""

from dataclasses import dataclass, field, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import NAMES, ids, tiny

from thinkers.errors import UsageError
from thinkers.models import MODELS
from thinkers.models.generation import stream
from thinkers.models.tools import Calls, Tool, cut_results

PROMPTS, NEW = torch.tensor([5, 2, 7, 4]), 20


@dataclass
class Doubling:
    """After `[ a b ]` come b a, its tokens in reverse order, a row-dependent one, and 3."""

    opening: int = 1
    closing: int = 2
    ending: int | None = None
    longest_call: int = 4
    longest_result: int = 6
    num_rows: int | None = None
    name: str = "doubling"
    asked: list = field(default_factory=list)

    def result(self, call, row):
        self.asked.append((list(call), row))
        return [*reversed(call), row % 4, 3] if call else []


def forced_by_whole_rows(tool, row, number, length):
    """Return {place: token} that results force in a row, from the whole row up to each place."""
    found = {}
    for place in range(length, len(row)):
        past, at = row[:place], 0
        while at < len(past):
            opens = next((i for i in range(at, len(past)) if past[i] == tool.opening), None)
            if opens is None or tool.ending in past[at : opens + 1]:
                break
            body, end = [], opens + 1
            while end < len(past) and past[end] not in (tool.opening, tool.closing, tool.ending):
                body.append(past[end])
                end += 1
            if end == len(past):
                break
            at = end
            if past[end] == tool.closing and len(body) <= tool.longest_call:
                result = tool.result(body, number)
                if place <= end + len(result):
                    found[place] = result[place - end - 1]
                at = end + 1 + len(result)
    return found


def prompts_of(model):
    width = int(PROMPTS.max())
    return ids(len(PROMPTS), width, high=model.config.vocab_size, seed=3)


def causal_models():
    for name in NAMES:
        yield pytest.param(name, {}, None, id=name)
        if "halting" in {setting.name for setting in fields(MODELS[name].Config)}:
            yield pytest.param(name, {"halting": True}, 0.5, id=f"{name}-halting")


@pytest.mark.parametrize("name, own, halt", list(causal_models()))
def test_forced_tokens_with_a_cache_are_those_of_whole_rows(name, own, halt):
    model = tiny(name, own, vocab_size=6).double()
    tokens, tool, options = prompts_of(model), Doubling(), {"halt": halt} if halt else {}
    logits, out = {}, {}
    for use_cache in (True, False):
        with cut_results():
            out[use_cache], logits[use_cache] = model.generate(
                tokens,
                NEW,
                prompt_lengths=PROMPTS,
                temperature=20.0,
                generator=torch.Generator().manual_seed(0),
                use_cache=use_cache,
                return_logits=True,
                tools=[tool],
                **options,
            )
    assert torch.equal(out[True], out[False])
    most = logits[False].abs().max()
    assert (logits[True] - logits[False]).abs().max() <= 1e-10 * most
    places, not_chosen = [], 0
    for number, length in enumerate(PROMPTS.tolist()):
        row = out[True][number, tokens.shape[1] - length :]
        due = forced_by_whole_rows(Doubling(), row.tolist(), number, length)
        assert all(row[place] == token for place, token in due.items())
        places.append(set(due))
        alone = model(row[None, :-1], prompt_lengths=PROMPTS[number : number + 1], **options)
        difference = alone.logits[0, length - 1 :] - logits[True][number]
        assert difference.abs().max() <= 1e-10 * most
        not_chosen += sum(int(row[p] != alone.logits[0, p - 1].argmax()) for p in due)
    assert len({frozenset(x) for x in places}) >= 3, "rows force tokens at different places"
    assert not_chosen and {row for _, row in tool.asked} >= {n for n, x in enumerate(places) if x}


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_is_answered_as_in_a_batch(name):
    model = tiny(name, vocab_size=6).double()
    tokens = torch.cat([prompts_of(model), torch.tensor([[1], [1], [3], [1]])], 1)

    class AnyEnd(Doubling):
        """Ends a call with what the model writes first, so that greedy rows have calls."""

    lengths = PROMPTS + 1
    first = model.answer(tokens, lengths, 1)[:, 0].tolist()
    tool = AnyEnd(closing=first[0] if first[0] != 1 else 2)
    with cut_results():
        both = model.answer(tokens, lengths, 12, tools=[tool])
    for number, length in enumerate(lengths.tolist()):

        class Numbered(AnyEnd):
            def result(self, call, row, number=number):
                return super().result(call, number)

        own = Numbered(closing=tool.closing)
        with cut_results():
            alone = model.answer(
                tokens[number : number + 1, -length:], lengths[number : number + 1], 12, tools=[own]
            )
        assert torch.equal(alone[0], both[number])


def calls(rows, room=20, **own):
    return Calls([Doubling(**own)], rows, 13, room)


def written(machine, *columns):
    """The tokens of rows whose model chooses these columns."""
    return [machine.write(torch.tensor(column))[0].tolist() for column in columns]


def test_a_result_is_written_after_its_call():
    machine = calls([[0]])
    row = written(machine, [1], [7], [8], [2], [9], [9], [9], [9], [9])
    assert [x for (x,) in row] == [1, 7, 8, 2, 8, 7, 0, 3, 9]


def test_rows_force_at_different_times_and_leave_on_their_own():
    machine = calls([[1], [4], [1, 5, 2]])
    assert written(machine, [7, 7, 7], [2, 1, 7]) == [[7, 7, 5], [2, 1, 2]]
    machine.select(torch.tensor([0, 2]))
    assert written(machine, [6, 6], [6, 6]) == [[7, 3], [0, 6]]
    tokens, forced = machine.write(torch.tensor([6, 6]))
    assert tokens.tolist() == [3, 6] and forced.tolist() == [True, False]


def test_a_prompt_is_read_as_if_the_model_had_written_it():
    assert written(calls([[1, 7]]), [2], [9], [9]) == [[2], [7], [0]]
    assert written(calls([[1, 7, 2]]), [9], [9], [9], [9]) == [[7], [0], [3], [9]]
    assert written(calls([[1, 7, 2, 5]]), [9], [9], [9]) == [[0], [3], [9]]


@pytest.mark.parametrize(
    "row",
    [
        [2, 9],  # a call was never begun
        [1, 2, 9],  # the tool gives nothing for it
        [1, 7, 7, 7, 7, 7, 2, 9],  # longer than longest_call
        [0, 1, 7, 2, 9],  # after the end of the answer
        [1, 7, 0, 2, 9],
    ],
)
def test_what_is_no_call_has_no_result(row):
    machine = calls([[4]], ending=0)
    assert [x for (x,) in written(machine, *([x] for x in row))] == row


def test_a_second_opening_begins_the_call_anew():
    assert written(calls([[1, 7, 1, 8]]), [2], [9], [9]) == [[2], [8], [0]]


def test_a_result_begins_no_call():
    machine = calls([[1, 2]])  # nothing to reverse
    assert written(machine, [1], [1], [7], [2], [9]) == [[1], [1], [7], [2], [7]]

    class Opening(Doubling):
        def result(self, call, row):
            return [1, 5, 2, 0]

    machine = Calls([Opening(ending=0)], [[1, 7]], 13, 20)
    assert written(machine, *[[x] for x in (2, 9, 9, 9, 9, 1, 7, 2, 9)])[-4:] == [
        [1],
        [7],
        [2],
        [1],
    ]


def test_the_longest_call_has_a_result():
    assert written(calls([[1, 7, 7, 7, 8]]), [2], [9]) == [[2], [8]]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_forced_stop_token_ends_no_row(use_cache):
    model, tokens = tiny("decoder"), torch.tensor([[1, 7, 2], [4, 5, 6]])
    settings = dict(pad_token=-1, tools=[Doubling()], use_cache=use_cache)
    new = model.generate(tokens, 4, **settings)[:, 3:]
    assert new[0, :3].tolist() == [7, 0, 3]
    stopped = model.generate(tokens, 4, stop_token=3, **settings)[0, 3:]
    assert torch.equal(stopped, new[0])
    stop = int(new[0, 3])
    assert stop not in (7, 0, 3)
    stopped = model.generate(tokens, 9, stop_token=stop, **settings)[0, 3:]
    assert stopped.tolist() == [7, 0, 3, stop] + 5 * [-1]


def test_results_count_in_max_new_tokens_and_must_fit():
    model = tiny("decoder")
    tokens = torch.tensor([[1, 7, 8, 2]])
    assert model.generate(tokens, 4, tools=[Doubling()])[0, 4:].tolist() == [8, 7, 0, 3]
    with pytest.raises(UsageError) as caught:
        model.generate(tokens, 3, tools=[Doubling()])
    assert str(caught.value) == (
        "found: a result of 4 tokens of the tool doubling in row 0, with 3 of 3 new tokens left\n"
        "expected: results that fit: they count in max_new_tokens, which max_length bounds\n"
        "fix: pass a larger max_new_tokens, or a shorter prompt"
    )
    with cut_results():
        assert model.generate(tokens, 3, tools=[Doubling()])[0, 4:].tolist() == [8, 7, 0]
    with pytest.raises(UsageError, match="with 3 of 3"):
        model.generate(tokens, 3, tools=[Doubling()])


@pytest.mark.misuse
def test_tools_that_break_their_bounds_are_refused():
    class Long(Doubling):
        def result(self, call, row):
            return [3] * 7

    class Foreign(Doubling):
        def result(self, call, row):
            return [99]

    model, tokens = tiny("decoder"), torch.tensor([[1, 7, 2]])
    with pytest.raises(UsageError, match="a result of 7 tokens of the tool doubling\nexpected: at"):
        model.generate(tokens, 9, tools=[Long()])
    with pytest.raises(UsageError, match="token 0 of a result of the tool doubling must be"):
        model.generate(tokens, 9, tools=[Foreign()])
    for tools, wrong in (
        ("calculator", "found: tools 'calculator'\nexpected: a list"),
        (["calculator"], "found: the tool 'calculator'\n"),
        ([Doubling(), Doubling(name="other")], "two tools, doubling and other"),
        ([Doubling(opening=99)], "opening of the tool doubling must be"),
        ([Doubling(ending=99)], "ending of the tool doubling must be"),
        ([Doubling(opening=2)], "with the tokens opening 2, closing 2\n"),
        ([Doubling(ending=1)], "with the tokens opening 1, closing 2, ending 1\n"),
        ([Doubling(longest_call=None)], "longest_call of the tool doubling must be"),
        ([Doubling(longest_result="6")], "longest_result of the tool doubling must be"),
        ([Doubling(num_rows=1.0)], "num_rows of the tool doubling must be"),
        ([Doubling(num_rows=2)], "1 rows and the tool doubling with data of 2"),
    ):
        with pytest.raises(UsageError, match=wrong):
            model.generate(tokens, 9, tools=tools)


@pytest.mark.misuse
@pytest.mark.parametrize("result", [None, 5, "34", [1.5], [True], [None], [[3]]])
def test_a_result_that_is_no_sequence_of_tokens_is_refused(result):
    class Wrong(Doubling):
        def result(self, call, row):
            return result

    with pytest.raises(UsageError, match="result.* of the tool doubling"):
        tiny("decoder").generate(torch.tensor([[1, 7, 2]]), 9, tools=[Wrong()])


@pytest.mark.misuse
def test_an_error_within_a_tool_is_explained_and_those_that_explain_themselves_pass():
    class Fails(Doubling):
        def result(self, call, row):
            raise self.error

    model, tokens, tool = tiny("decoder"), torch.tensor([[1, 7, 2]]), Fails()
    for tool.error in (KeyError("x"), ValueError("bad"), ZeroDivisionError()):
        with pytest.raises(
            UsageError, match=r"raised by the tool doubling for the call \[7\] of row 0"
        ):
            model.generate(tokens, 9, tools=[tool])
    for tool.error in (
        UsageError("mine"),
        MemoryError(),
        OSError(28, "No space"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(tool.error)) as raised:
            model.generate(tokens, 9, tools=[tool])
        assert raised.value is tool.error


def test_a_model_that_reads_the_future_calls_no_tools():
    model = tiny("thoughtsformer", {"causal": False})
    with pytest.raises(UsageError, match="calling tools needs a causal model"):
        model.answer(torch.tensor([[1, 7]]), torch.tensor([2]), 1, tools=[Doubling()])


def test_answers_that_are_written_at_once_call_no_tools():
    model, tokens = tiny("thinker", {"output": "parallel"}), torch.tensor([[1, 7]])
    with pytest.raises(UsageError, match="write all tokens of an answer at once"):
        model.answer(tokens, torch.tensor([2]), 3, tools=[Doubling()])
    assert model.answer(tokens, torch.tensor([2]), 3, tools=[]).shape == (1, 3)


def test_without_tools_nothing_changes_and_nothing_is_asked():
    model, tool = tiny("decoder"), Doubling()
    tokens = torch.tensor([[1, 7, 2]])
    assert torch.equal(model.generate(tokens, 5), model.generate(tokens, 5, tools=()))
    assert next(stream(model, tokens, 5)).forced is None and not tool.asked
    assert isinstance(tool, Tool)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=8),
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.sampled_from([None, 4]),
)
def test_any_row_is_forced_as_whole_rows_are(prompt, chosen, ending):
    tool = Doubling(ending=ending)
    with cut_results():
        machine = Calls([tool], [prompt], 13, len(chosen))
    row = list(prompt)
    for token in chosen:
        new, forced = machine.write(torch.tensor([token]))
        row.append(int(new))
        due = forced_by_whole_rows(tool, row, 0, len(row) - 1)
        assert bool(forced) == bool(due) and row[-1] == due.get(len(row) - 1, token)

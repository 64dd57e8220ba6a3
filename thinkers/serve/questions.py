"""Rows of questions: prompts of a task with answers, which it gives in one batch."""

from collections.abc import Generator, Hashable, Sequence

from thinkers.errors import UsageError
from thinkers.evaluation.generate import fit_prompt, respond_all, steps_for
from thinkers.models.base import Model
from thinkers.models.halt import Halt
from thinkers.serve.protocol import Completion, RequestError, refused
from thinkers.serve.rows import Listener, Row, before_stops
from thinkers.serve.texts import checked_rule
from thinkers.tasks import Task
from thinkers.tasks.answers import AnswerTask
from thinkers.tasks.base import Prompt, Response


class QuestionRow(Row):
    """A question that is answered: all of its choices are equal.

    Args:
        prompt: The question as it was typed.
        read: The question as the task reads it.
        room: The most tokens of its answer.
        steps: Thinking steps.
        asked: The request, for `max_tokens` and `stop`.
    """

    def __init__(
        self,
        indices: Sequence[int],
        prompt: str,
        read: Prompt,
        prompt_tokens: int,
        room: int,
        steps: int,
        halt: Halt,
        asked: Completion,
        listener: Listener,
    ):
        super().__init__(indices, prompt_tokens, listener, asked.stream)
        self.prompt, self.read, self.room = prompt, read, room
        self.steps, self.halt, self.asked = steps, halt, asked

    def answer(self, task: Task, response: Response) -> None:
        """Send an answer, up to `max_tokens` and to a text of `stop`, and end the row."""
        tokens, is_complete = until_end(task, response.answer)
        limit = self.asked.max_tokens
        if limit is not None and limit < len(tokens):
            tokens, is_complete = tokens[:limit], False
        question, text = separated(task, self.prompt, self.read, tokens)
        shown = before_stops(text, self.asked.stop)
        if shown != text:
            tokens = self._until_stop(task, tokens, shown)
        taken = [self.steps] * len(tokens) if response.steps is None else response.steps
        taken = taken[: len(tokens)]
        self.send(question + shown if self.asked.echo else shown.strip())
        reason = "stop" if is_complete or shown != text else "length"
        self.end(reason, len(tokens), sum(taken) / max(1, len(taken)))

    def _until_stop(self, task: Task, tokens: list[int], shown: str) -> list[int]:
        """Return the tokens of an answer up to the one that completes a text of `stop`."""
        for count in range(1, len(tokens)):
            text = separated(task, self.prompt, self.read, tokens[:count])[1]
            if text != shown and before_stops(text, self.asked.stop) == shown:
                return tokens[:count]
        return tokens


class Questions:
    """The rows of a run on questions, and batches of them."""

    usual_tokens: int | None = None
    """The `max_tokens` of a request that leaves it out: an answer is written whole."""

    def __init__(self, model: Model, task: Task):
        self.model, self.task = model, task

    def rows(self, asked: Completion, listener: Listener) -> list[QuestionRow]:
        """Return the rows of a request, one for each prompt.

        Raises:
            RequestError: A value is not one that this task and model can honour.
        """
        for name, value, neutral in (
            ("temperature", asked.temperature, 0),
            ("top_p", asked.top_p, 1),
        ):
            if value is not None and value != neutral:
                expected = f"{name} {neutral}, or none: a question is answered by likeliest tokens"
                fix = f"leave {name} out"
                raise RequestError(400, f"{name} {value}", expected, fix, param=name)
        return [self._row(asked, place, listener) for place in range(len(asked.prompts))]

    def _row(self, asked: Completion, place: int, listener: Listener) -> QuestionRow:
        prompt = asked.prompts[place]
        _, halt = checked_rule(self.model, asked)
        try:
            read, room = fit_prompt(self.model, self.task, prompt)
            if room < 1:
                limit = self.model.config.max_length - 1
                found, expected = f"a prompt of {len(read.tokens)} tokens", f"at most {limit}"
                raise RequestError(400, found, expected, "shorten it", param="prompt")
            steps = self.model.check_steps(steps_for(self.model, read, asked.num_steps))
        except UsageError as error:
            raise refused(error, "prompt") from None
        indices = range(place * asked.n, (place + 1) * asked.n)
        size = len(self.task.without_start(read.tokens))
        return QuestionRow(indices, prompt, read, size, room, steps, halt, asked, listener)

    def key(self, row: QuestionRow) -> Hashable:
        """Return a value that is equal for rows which may share a batch."""
        return row.steps, row.halt, row.room

    def run(self, rows: Sequence[QuestionRow]) -> Generator[None, None, None]:
        """Answer a batch of questions; a task answers whole questions, so that none leaves it."""
        first, read = rows[0], [row.read for row in rows]
        found = respond_all(self.model, self.task, read, first.room, first.steps, first.halt)
        for row, response in zip(rows, found, strict=True):
            if not row.is_gone:
                row.answer(self.task, response)
        yield


def until_end(task: Task, answer: list[int]) -> tuple[list[int], bool]:
    """Return an answer up to its end token, and True if it has one or needs none."""
    if not isinstance(task, AnswerTask) or task.max_answer_length() == 1:
        return answer, True
    if task.end_token not in answer:
        return answer, False
    return answer[: answer.index(task.end_token) + 1], True


def separated(task: Task, prompt: str, read: Prompt, answer: Sequence[int]) -> tuple[str, str]:
    """Return a question and its answer as `thinkers.answer` writes them, one after the other.

    An answer that the prompt begins is returned whole: its text depends on all of its tokens.
    """
    question = task.decode(read.tokens[: -read.begun]) if read.begun else prompt
    before, whole = task.with_answer(question, []), task.with_answer(prompt, answer)
    return before, whole.removeprefix(before)

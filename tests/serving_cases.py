"""Runs that are served in tests, and what the library answers by itself to the same requests."""

from pathlib import Path

import torch
from model_cases import tiny

import thinkers
from thinkers.serve.batching import Scheduler
from thinkers.serve.protocol import Completion
from thinkers.serve.questions import Questions
from thinkers.serve.rows import Ended, Failed, Piece
from thinkers.serve.texts import Texts
from thinkers.tasks import build_task
from thinkers.tasks.text import Text

LETTERS = "the cat sät on — 猫"


def text_run(folder: Path, name="decoder", own=None, vocabulary="byte", **settings):
    """A model in float64 and a task on text; in float64 no two tokens are equally likely."""
    file = folder / "text.txt"
    file.write_text((LETTERS + ". ") * 40)
    task = build_task("text", path=str(file), context=32, vocabulary=vocabulary, bpe_size=270)
    sizes = {"vocab_size": task.vocab_size, "max_length": 32}
    return tiny(name, own, **{**sizes, **settings}).double(), task


def run_of(task_name, name="looped", own=None, **settings):
    """A model in float64 and a task with answers."""
    task = build_task(task_name, **settings)
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length + 8}
    return tiny(name, own, **sizes).double(), task


def asked(prompt, **fields):
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    return Completion("m", prompts, **fields)


class Answers:
    """The choices of one request, from the events of its rows."""

    def __init__(self):
        self.pieces, self.ends, self.errors = {}, {}, []

    def listen(self, event):
        if isinstance(event, Piece):
            self.pieces.setdefault(event.index, []).append(event.text)
        elif isinstance(event, Ended):
            assert event.index not in self.ends
            self.ends[event.index] = event
        elif isinstance(event, Failed):
            self.errors.append(event.error)

    def text(self, index=0):
        return "".join(self.pieces.get(index, []))


def answer_all(run, requests, **own):
    """Answer requests that all wait at once, in this thread; return the answers and the batches."""
    engine = (Texts if isinstance(run[1], Text) else Questions)(*run)
    scheduler, batches = Scheduler(engine, **own), []
    begin = engine.run
    engine.run = lambda rows: batches.append(len(rows)) or begin(rows)
    answers = [Answers() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        scheduler.submit(engine.rows(request, answer.listen))
    while scheduler.counts() != (0, 0):
        scheduler._run_next()
    return answers, batches


def alone(run, request, choice=0):
    """The text after a prompt, as `thinkers.generate` writes it by itself."""
    prompt = request.prompts[choice // request.n]
    seed = (request.seed or 0) + choice % request.n
    sampling = dict(temperature=request.temperature, top_p=request.top_p, seed=seed)
    steps = request.num_steps
    with torch.random.fork_rng(devices=()):
        found = thinkers.generate(
            run, prompt, request.max_tokens, steps, halt=request.halt, **sampling
        )
    return found[0].removeprefix(prompt)

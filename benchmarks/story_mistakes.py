"""Accuracy on stories of kind 2, the place of a thing, by group of question.

python benchmarks/story_mistakes.py
python benchmarks/story_mistakes.py runs/babi-looped-0

A baseline that ignores which thing is asked for answers for the thing that was taken or dropped
last. Questions are grouped by whether that is the thing asked for. With a run that was trained on
kind 2, the accuracy of its model is printed too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import thinkers
from thinkers.runs.result import open_with_task
from thinkers.tasks import babi_format, babi_words
from thinkers.tasks.babi import Babi

GROUPS = ("the thing asked for was touched last", "the other thing was touched last")
DROPS = {text.split()[1] for text in babi_words.DROPS}


def where(facts: list[list[str]], thing: str) -> str:
    """Return the place of a thing: where it was dropped, or where the person is who took it."""
    last = max(i for i, fact in enumerate(facts) if fact[-1] == thing)
    who, deed = facts[last][:2]
    until = last if deed in DROPS else len(facts)
    return next(
        x[-1] for x in reversed(facts[:until]) if x[0] == who and x[-1] in babi_words.PLACES
    )


def grouped_questions(story: babi_format.Story) -> Iterator[tuple[int, bool]]:
    """Yield for each question its group, and True if the baseline answers it right."""
    facts: list[list[str]] = []
    for line in story:
        words = line.text.rstrip(".?").split()
        if line.answer is None:
            facts.append(words)
            continue
        things = [fact[-1] for fact in facts if fact[-1] in babi_words.THINGS]
        assert where(facts, words[-1]) == line.answer, "another answer than the story's"
        yield int(things[-1] != words[-1]), where(facts, things[-1]) == line.answer


def main() -> int:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    task = open_with_task(folder)[1] if folder else Babi(Babi.Config(kinds=(2,)))
    if not isinstance(task, Babi) or 2 not in task.config.kinds or task.config.path:
        sys.exit(f"{folder} was not trained on generated stories of kind 2; pass a run that was")
    kind = task.config.kinds.index(2)
    found = [x for story in task.stories("test")[kind] for x in grouped_questions(story)]
    show(
        "baseline that ignores the thing",
        [group for group, _ in found],
        [right for _, right in found],
    )
    if folder:
        model = thinkers.load(folder)
        with torch.no_grad():
            batches = task.evaluation_batches("test", len(task.examples("test")))
            right = [x for batch in batches for x in model.loss(batch).correct.tolist()]
        # Evaluation examples are shuffled: restore the order of `found`, by story and length.
        pairs = zip(task.examples("test"), right, strict=True)
        own = sorted((x.story, len(x.prompt), ok) for x, ok in pairs if x.bucket[0] == kind)
        show(str(model.name), [group for group, _ in found], [ok for *_, ok in own])
    return 0


def show(name: str, groups: list[int], right: list[bool]) -> None:
    print(f"{name}: {sum(right) / len(right):.3f} of {len(right)}")
    for number, text in enumerate(GROUPS):
        some = [ok for group, ok in zip(groups, right, strict=True) if group == number]
        share = f"{sum(some) / len(some):.3f}" if some else "-"
        print(f"  {text:<52} {share} of {len(some)}")


if __name__ == "__main__":
    raise SystemExit(main())

"""Accuracy on stories of kind 2, the place of a thing, by group of question.

python benchmarks/story_mistakes.py
python benchmarks/story_mistakes.py runs/babi-looped-0

A baseline that ignores which thing is asked for answers for the thing that was taken or dropped
last; one that ignores drops answers with the present place of the person who took or dropped the
thing asked for. Questions are grouped by whether the thing asked for was touched last. With a run
that was trained on kind 2, the accuracy of its model is printed too.
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


def where(facts: list[list[str]], thing: str, is_left: bool = True) -> str:
    """Return the place of a thing: where it was dropped, or where the person is who took it.

    Args:
        is_left: False takes it to be where the person is who dropped it, too.
    """
    last = max(i for i, fact in enumerate(facts) if fact[-1] == thing)
    who, deed = facts[last][:2]
    until = last if is_left and deed in DROPS else len(facts)
    return next(
        x[-1] for x in reversed(facts[:until]) if x[0] == who and x[-1] in babi_words.PLACES
    )


def grouped_questions(story: babi_format.Story) -> Iterator[tuple[int, bool, bool]]:
    """Yield for each question its group, and True for each baseline that answers it right."""
    facts: list[list[str]] = []
    for line in story:
        words = line.text.rstrip(".?").split()
        if line.answer is None:
            facts.append(words)
            continue
        things = [fact[-1] for fact in facts if fact[-1] in babi_words.THINGS]
        assert where(facts, words[-1]) == line.answer, "another answer than the story's"
        by_last = where(facts, things[-1]) == line.answer
        by_person = where(facts, words[-1], is_left=False) == line.answer
        yield int(things[-1] != words[-1]), by_last, by_person


def main() -> int:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    task = open_with_task(folder)[1] if folder else Babi(Babi.Config(kinds=(2,)))
    if not isinstance(task, Babi) or 2 not in task.config.kinds or task.config.path:
        sys.exit(f"{folder} was not trained on generated stories of kind 2; pass a run that was")
    kind = task.config.kinds.index(2)
    found = [x for story in task.stories("test")[kind] for x in grouped_questions(story)]
    groups, by_last, by_person = (list(x) for x in zip(*found, strict=True))
    show("baseline that ignores the thing", groups, by_last)
    show("baseline that ignores drops", groups, by_person)
    if folder:
        model = thinkers.load(folder)
        with torch.no_grad():
            batches = task.evaluation_batches("test", len(task.examples("test")))
            right = [x for batch in batches for x in model.loss(batch).correct.tolist()]
        # Evaluation examples are shuffled: restore the order of `found`, by story and length.
        pairs = zip(task.examples("test"), right, strict=True)
        own = sorted((x.story, len(x.prompt), ok) for x, ok in pairs if x.bucket[0] == kind)
        show(str(model.name), groups, [ok for *_, ok in own])
    return 0


def show(name: str, groups: list[int], right: list[bool]) -> None:
    print(f"{name}: {sum(right) / len(right):.3f} of {len(right)}")
    for number, text in enumerate(GROUPS):
        some = [ok for group, ok in zip(groups, right, strict=True) if group == number]
        share = f"{sum(some) / len(some):.3f}" if some else "-"
        print(f"  {text:<52} {share} of {len(some)}")


if __name__ == "__main__":
    raise SystemExit(main())

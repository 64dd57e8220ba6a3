"""Write generated stories in the format of the bAbI tasks: the first stage of dvc.yaml."""

import argparse
from pathlib import Path

from thinkers.tasks import babi_worlds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", type=int, choices=sorted(babi_worlds.KINDS), default=1)
    parser.add_argument("--num_stories", type=int, default=500)
    parser.add_argument("--num_held_out", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("stories"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    counts = {"train": options.num_stories, "test": options.num_held_out}
    for split, count in counts.items():
        stories = (
            babi_worlds.generate_story(options.kind, split, number) for number in range(count)
        )
        file = options.out / f"qa{options.kind}_stories_{split}.txt"
        file.write_text("".join(stories), encoding="utf-8")


if __name__ == "__main__":
    main()

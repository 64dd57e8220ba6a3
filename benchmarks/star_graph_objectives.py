"""Exact accuracy on star graphs of objectives other than plans of tokens, trained as the recipes.

    nohup python benchmarks/star_graph_objectives.py > runs/objectives.log &
    python benchmarks/star_graph_objectives.py summed none --seeds 1

Started again, it resumes runs from their checkpoints. One thread.

Machine: accuracies, which another machine's roundings change as another seed does. Nothing is
asked. Measured: docs/star_graph.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from harness import one_thread, parser

import thinkers
from thinkers.config.overrides import override
from thinkers.models.multi_token import MultiToken


def multi_token() -> thinkers.Config:
    """Return the recipe star_graph/decoder with heads for the next four tokens on five layers."""
    recipe = thinkers.RECIPES["star_graph/decoder"]()
    settings = {**dataclasses.asdict(recipe.model), "num_layers": 5, "num_future": 4}
    return dataclasses.replace(recipe, model=MultiToken.Config(**settings), recipe="")


DEEPSIGHT = thinkers.RECIPES["star_graph/deepsight"]
SUMMED = ["--model.plan_weight=1", "--model.horizon_weights=decay"]
OBJECTIVES = {
    "summed": (DEEPSIGHT, ["--model.plan_loss=mse", *SUMMED]),
    "future": (
        DEEPSIGHT,
        ["--model.plan_loss=cosine", "--model.plan_mix=future", "--model.plan_weight=10"],
    ),
    "none": (DEEPSIGHT, ["--model.plan_loss=none"]),
    "heads": (multi_token, []),
}
"""{name: (recipe, flags)}. summed: the planning loss of DeepSight's author, with norms that cannot
collapse. future: the future alone, with equal weights. none: no planning loss. heads: later tokens
predicted from the last layer of a decoder."""


def main() -> None:
    options = parse()
    one_thread()
    for seed in range(options.seeds):
        for name in options.objectives or OBJECTIVES:
            recipe, flags = OBJECTIVES[name]
            shared = f"--training.seed={seed} --training.num_updates={options.num_updates}"
            flags = [*shared.split(), "--training.device=cpu", *flags]
            config = override(recipe(), flags=flags)
            folder = options.out / f"{name}-{seed}"
            resumed = (folder / "config.json").exists()
            run = thinkers.resume(folder) if resumed else thinkers.train(config, out=folder)
            (row,) = thinkers.evaluate(run, num_examples=options.num_examples)
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
            lines = [line for line in lines if "next_token" in line]
            last = sum(line["next_token"] for line in lines[-20:]) / len(lines[-20:])
            minutes = lines[-1]["minutes"]
            print(
                f"{name}, seed {seed}: exact {row['exact']:.4f}, next token {last:.4f} in "
                f"training, {lines[-1]['update']} updates, {minutes:.1f} minutes",
                flush=True,
            )


def parse() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("objectives", nargs="*", choices=[*OBJECTIVES, []], help="default: all")
    arguments.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    arguments.add_argument("--num_updates", type=int, default=24_000, help="as star_graph/decoder")
    arguments.add_argument("--num_examples", type=int, default=2000, help="held-out graphs")
    arguments.add_argument("--out", type=Path, default=Path("runs/objectives"), help="run folders")
    return arguments.parse_args()


if __name__ == "__main__":
    main()

"""What else than plans of tokens was tried on star graphs, each trained as the recipes are.

    nohup python benchmarks/star_graph_objectives.py > runs/objectives.log &
    python benchmarks/star_graph_objectives.py summed none --seeds 1

Runs go on from their checkpoints when it is started again. One thread.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

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
"""summed: the planning loss of DeepSight's author, with norms that cannot collapse. future: the
future alone, every distance alike. heads: tokens further on, read from the top of a decoder."""


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in options.objectives or OBJECTIVES:
            recipe, flags = OBJECTIVES[name]
            shared = f"--training.seed={seed} --training.num_updates={options.num_updates}"
            flags = [*shared.split(), "--training.device=cpu", *flags]
            config = override(recipe(), flags=flags)
            folder = options.runs / f"{name}-{seed}"
            resumed = (folder / "config.json").exists()
            run = thinkers.resume(folder) if resumed else thinkers.train(config, out=folder)
            (row,) = thinkers.evaluate(run, num_examples=options.examples)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objectives", nargs="*", choices=[*OBJECTIVES, []], help="all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_updates", type=int, default=24_000, help="as star_graph/decoder")
    parser.add_argument("--examples", type=int, default=2000, help="held-out graphs")
    parser.add_argument("--runs", type=Path, default=Path("runs/objectives"))
    return parser.parse_args()


if __name__ == "__main__":
    main()

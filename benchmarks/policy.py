"""A model that chooses its next block, on mixed questions: accuracy, operations, controls.

    nohup python benchmarks/policy.py > runs/policy.log &
    python benchmarks/policy.py --cases policy --seeds 1
    python benchmarks/policy.py --page docs

Each case begins with the recipe mixed/thinker, trained once for each seed, and trains it by
`thinkers.reinforce`; `quotient` and `free` are controls of the reward, `shuffled` is the model of
`policy` whose policy reads the latents of other rows. A fixed schedule runs PROCESS 1, 2 .. times
on all questions; the best is that of the model of the recipe or of the model with the policy,
whichever has more right answers. All numbers are of 10,000 held-out questions. It can be stopped
and started again: finished runs are kept, others resume. One thread for each run. `--page FOLDER`
writes policy.json and the figure of the schedules.

Machine: scores, which another machine's roundings change as another seed does; CPU minutes.
Asked and measured: docs/policy.md.
"""

import json
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import case_parser, measured, one_thread, run_jobs
from state_tracking import train
from torch import Tensor

import thinkers
from thinkers import recipes
from thinkers.files import write_file
from thinkers.models.generation import eval_mode
from thinkers.models.thinker_policy import BLOCKS, NONE, Policy
from thinkers.models.thinker_policy_flops import of_all_steps
from thinkers.policies.rollout import roll_out
from thinkers.prng import mix_tensor
from thinkers.report import html
from thinkers.training.reinforce import configuration

QUESTIONS, ROWS = 10_000, 250
RECIPE = "mixed/thinker"
CASES: dict[str, dict[str, Any]] = {
    "policy": {},
    "free": {"cost_weight": 0.0, "entropy": 0.0},
    "quotient": {"reward": "quotient"},
}
CONFIDENCE = 1.959964
"""Standard errors on each side of a mean that 95 % of normal means stay within."""


def main() -> None:
    options = case_parser(__doc__, list(CASES), "runs/policy").parse_args()
    if options.page is not None:
        return write_results(options.out, options.page)
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.cases or list(CASES)
    seeds = range(options.seeds)
    run_jobs(run_base, [(seed, options.out) for seed in seeds], options.workers)
    jobs = [(name, seed, options.out) for seed in seeds for name in names]
    run_jobs(run_job, jobs, options.workers)


def run_base(job: tuple[int, Path]) -> str:
    """Train one seed of the recipe, with which all cases begin; return a line."""
    seed, out = job
    one_thread()
    config = recipes.RECIPES[RECIPE]()
    config = replace(config, training=replace(config.training, seed=seed))
    run = train(config, out / f"base-{seed}")
    return f"{RECIPE} seed {seed}: {run.scores}"


def run_job(job: tuple[str, int, Path]) -> str:
    """Train and evaluate one seed of a case, unless its result is there; return a line."""
    name, seed, out = job
    one_thread()
    found = measured(out / f"{name}-{seed}.json", lambda: measure(name, seed, out))
    shown = {x: found[x] for x in ("exact", "best_fixed", "saved", "difference", "minutes")}
    return f"{name} seed {seed}: {shown}"


def measure(name: str, seed: int, out: Path) -> dict[str, Any]:
    base, start = out / f"base-{seed}", time.process_time()
    folder = out / f"{name}-{seed}"
    chosen = configuration(base, (), CASES[name])
    run = train(chosen, folder)
    minutes = (time.process_time() - start) / 60
    model, task = thinkers.open_run(run)
    schedules = {
        "recipe": fixed_schedules(*thinkers.open_run(base)),
        "own": fixed_schedules(model, task),
    }
    found = judge(model, task, schedules)
    if name == "policy":
        shuffled = judge(with_shuffled_inputs(model), task, schedules)
        found["shuffled"] = {x: shuffled[x] for x in ("exact", "saved", "difference", "by_kind")}
    return found | {"minutes": minutes, "curve": learning_curve(folder)}


Fixed = tuple[list[float], list[Tensor], list[Tensor]]
"""Accuracy, right answers and operations of fixed numbers of steps, from 1."""


def judge(model: Any, task: Any, schedules: dict[str, Fixed]) -> dict[str, Any]:
    """Compare a policy with the best of fixed schedules, question by question."""
    rights, costs, kinds, actions = [], [], [], []
    with eval_mode(model):
        for batch in questions(task):
            found = roll_out(model, batch)
            rights.append(found.is_right[:, -1])
            costs.append(found.flops)
            actions += found.actions.tolist()
            kinds.append(torch.from_numpy(task.kinds(batch)))
    right, cost, kind = torch.cat(rights).double(), torch.cat(costs).double(), torch.cat(kinds)
    every = [(accuracy, of, k) for of in schedules for k, accuracy in enumerate(schedules[of][0])]
    _, best_of, best = max(every, key=lambda x: (x[0], -x[2]))  # the fewest steps at ties
    _, fixed, flops = schedules[best_of]
    difference = right - fixed[best]
    error = CONFIDENCE * float(difference.std()) / math.sqrt(len(right))
    mean = float(difference.mean())
    return {
        "exact": float(right.mean()),
        "flops": float(cost.mean()),
        "fixed": {of: accuracy for of, (accuracy, _, _) in schedules.items()},
        "fixed_flops": [float(x.mean()) for x in flops],
        "best_fixed": [best_of, best + 1],
        "difference": [mean, mean - error, mean + error],
        "saved": 1 - float(cost.mean() / flops[best].mean()),
        "by_kind": [of_kind(right, actions, kind == k) for k in kind.unique().tolist()],
    }


def questions(task: Any) -> Any:
    return task.evaluation_batches("test", QUESTIONS)


def fixed_schedules(model: Any, task: Any) -> Fixed:
    """Answer all questions after each fixed number of PROCESS steps."""
    accuracy, rights, flops = [], [], []
    with eval_mode(model):
        for k in range(1, model.config.num_steps + 1):
            right, cost = [], []
            for batch in questions(task):
                logits = model(
                    batch.tokens,
                    num_steps=k,
                    lengths=batch.lengths,
                    prompt_lengths=batch.prompt_lengths,
                ).logits
                rows = torch.arange(len(batch)), batch.lengths - 1
                right.append(logits[rows].argmax(-1) == batch.targets[rows])
                ones = torch.ones(len(batch), dtype=torch.int64)
                cost.append(of_all_steps(model, k, batch.prompt_lengths, ones))
            rights.append(torch.cat(right).double())
            flops.append(torch.cat(cost).double())
            accuracy.append(float(rights[-1].mean()))
    return accuracy, rights, flops


def of_kind(right: Tensor, actions: list[list[int]], rows: Tensor) -> dict[str, Any]:
    """Return accuracy, mean blocks and the most frequent schedules of some questions."""
    own = [tuple(actions[i]) for i in rows.nonzero()[:, 0].tolist()]
    names = Counter(" ".join(BLOCKS[x] for x in row if x != NONE) for row in own)
    taken = [sum(BLOCKS[x] != "output" for x in row if x != NONE) for row in own]
    blocks = Counter(BLOCKS[x] for row in own for x in row if x != NONE)
    return {
        "questions": len(own),
        "exact": float(right[rows].mean()),
        "mean_blocks": sum(taken) / len(taken),
        "blocks": {name: blocks[name] / len(own) for name in BLOCKS},
        "schedules": [[name, count / len(own)] for name, count in names.most_common(3)],
    }


def with_shuffled_inputs(model: Any) -> Any:
    """Return the model with a policy that reads the latents of other rows of the batch."""

    class Shuffled(torch.nn.Module):
        def __init__(self, policy: Policy):
            super().__init__()
            self.scores = policy.blocks

        def forward(self, states: Tensor) -> Tensor:
            # A permutation for each number of rows, the same in every run.
            order = mix_tensor(torch.arange(len(states)) + states.shape[0]).argsort()
            return self.scores(states[order])

    model.policy.blocks = Shuffled(model.policy)
    return model


def learning_curve(folder: Path) -> list[list[float]]:
    """Return [update, reward, saved] of the policy updates that were logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[x["update"], x["reward"], x["saved"]] for x in lines if "reward" in x]


def write_results(out: Path, page: Path) -> None:
    """Write policy.json, the results of all cases by seed, and the figure of the schedules."""
    found: dict[str, dict[str, Any]] = {}
    for name in CASES:
        files = sorted(out.glob(f"{name}-[0-9].json"))
        if files:
            found[name] = {file.stem[-1]: json.loads(file.read_text()) for file in files}
    if "policy" in found:
        html.write_png(draw(found["policy"]), page / "policy.png")
    write_file(page / "policy.json", (json.dumps(found, indent=1) + "\n").encode())


def draw(seeds: dict[str, dict[str, Any]]) -> Any:
    """Draw the blocks that each kind of question chose, and the accuracy against the operations."""
    drawn = html.figure(figsize=(11.0, 3.8))
    left, right = drawn.subplots(1, 2)
    kinds = range(len(next(iter(seeds.values()))["by_kind"]))
    below = torch.zeros(len(kinds))
    for block in ("process", "read", "reflect"):
        each = [[seed["by_kind"][k]["blocks"][block] for k in kinds] for seed in seeds.values()]
        means = torch.tensor(each).mean(0)
        left.bar(kinds, means, bottom=below, label=block.upper(), width=0.7)
        below = below + means
    left.plot(kinds, [max(1, k) for k in kinds], "k_", markersize=16, label="due")
    left.set_xticks(kinds, ["list", *(str(k) for k in kinds[1:])])
    left.set_xlabel("swaps of the question")
    left.set_ylabel("blocks, mean over questions")
    left.legend(fontsize=8)
    for number, seed in seeds.items():
        full = seed["fixed_flops"][-1]
        costs = [x / full for x in seed["fixed_flops"]]
        (line,) = right.plot(costs, seed["fixed"]["own"], "o-", markersize=4, alpha=0.5)
        label = f"policy, seed {number}"
        right.plot(seed["flops"] / full, seed["exact"], "*", ms=12, c=line.get_color(), label=label)
    right.set_xlabel("FLOPs of an answer, share of 8 steps")
    right.set_ylabel("right answers")
    right.legend(fontsize=8, title="lines: 1 to 8 fixed steps", title_fontsize=8, loc=4)
    return drawn


if __name__ == "__main__":
    main()

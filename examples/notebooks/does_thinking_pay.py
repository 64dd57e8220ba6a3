# %% [markdown]
# # Does thinking pay?
#
# A model that thinks and a decoder of equal size are trained with equal FLOPs, with three seeds
# each, and compared on the same held-out rows. One to two minutes on one CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %% [markdown]
# ## A comparison
#
# Task: update a row of 12 cells up to four times by rule 110, where a cell becomes a function of
# itself and the two cells to its left. Each update needs the one before it. `looped` applies the
# same layer again at each thinking step, `decoder` has two layers. `compare` chooses widths by
# which both have the same number of parameters, and numbers of updates by which both trainings
# cost the same; intervals are over seeds and examples.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

import thinkers
from thinkers import tasks

comparison = thinkers.compare(
    "automaton",
    ["decoder", "looped"],
    budget=9e10,
    seeds=3,
    settings={
        "task.width": 12,
        "task.max_updates": 4,
        "task.num_counts": 4,
        "model.dim": 32,
        "training.batch_size": 64,
        "training.optimizer": "muon",
        "training.muon_lr": 0.02,
    },
    num_examples=500,
    out="runs/does_thinking_pay",
)
comparison

# %% [markdown]
# ## Where the difference comes from
#
# The share of right rows by number of updates, each with as many thinking steps. Training rows
# had at most four.

# %%
UPDATES = range(1, 7)


def by_updates(name, seed):
    """Score one run on held-out rows of each number of updates."""
    model, task = thinkers.open_run(comparison.folder / "runs" / f"{name}-{seed}")
    scores = []
    for count in UPDATES:
        rows = replace(task.config, min_updates=count, max_updates=count)
        steps = count if name == "looped" else None
        score = tasks.from_config(rows, task.seed).score(model, "test", 200, steps)
        scores.append(score["exact"])
    return scores


figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
means = {}
for name in ("looped", "decoder"):
    seeds = [by_updates(name, seed) for seed in range(3)]
    means[name] = [sum(column) / 3 for column in zip(*seeds, strict=True)]
    (line,) = axes.plot(UPDATES, means[name], "o-", label=name)
    for scores in seeds:
        axes.plot(UPDATES, scores, color=line.get_color(), alpha=0.3)
axes.axvline(4.5, color="gray", linestyle=":")  # to the right: more updates than in training
axes.set(xlabel="updates", ylabel="right rows")
axes.legend()
for name, scores in means.items():
    print(f"{name:8}", " ".join(f"{score:.2f}" for score in scores))

# %% [markdown]
# Thin lines are the seeds. The decoder is right for one and two updates, which its two layers
# suffice for, and wrong for about half of the rows of four. The looped model repeats the update
# that it learned. How often it can, beyond the four times of its training, differs by seed.
#
# ## What this does not say
#
# The task was chosen because each update needs the one before it. With equal training FLOPs the
# looped model takes fewer updates in training and spends more on an answer, as shown below. On
# sums of three digits no model differed clearly from a plain decoder: the page *Where thinking
# pays* of the documentation has all results, those too.

# %%
for name, runs in comparison.results.items():
    record = runs[0].record
    cost = record["answer_flops"][str(record["num_steps"])]
    print(f"{name}: {record['updates']} updates in training, {cost:,.0f} FLOPs for a row")

# %% [markdown]
# # Look inside a thought
#
# What does a model compute at each thinking step, where does it look, and does its answer depend
# on it? Half a minute on one CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %% [markdown]
# ## A model whose right thoughts are known
#
# Task: update a row of 16 cells k times by rule 110, where a cell becomes a function of itself
# and the two cells to its left. `looped` applies the same layer again at each thinking step. It
# is trained on up to 4 updates, with as many steps as updates, and only the cells after the
# *last* one are graded: nothing says what to think in between.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import thinkers

STEPS = 4
config = thinkers.RECIPES["automaton/looped"]()
config = replace(
    config,
    task=replace(config.task, width=16, max_updates=STEPS),
    model=replace(config.model, dim=32, num_steps=STEPS, hidden=None, vocab_size=None),
    training=replace(config.training, num_updates=400, batch_size=64, lr=5e-3),
)
run = thinkers.train(config, out="runs/inside")
model, task = thinkers.open_run(run)

# %% [markdown]
# ## Its thoughts, read out
#
# `read_out` turns the states after each step into predictions, as if the model had stopped there.
# Each row of the pictures is one step; black cells are ones.

# %%
cells = "0010110001101011"
prompt = torch.tensor([task.encode(f"{STEPS}:{cells}")])
thought = model(prompt, num_steps=2 * STEPS, keep_states=True)
read = model.read_out(thought.states)[0, :, -len(cells) :, :2].argmax(-1)


def updated(row):
    """Apply rule 110 to the bits of a row, in causal form."""
    left = [0, 0, *row]
    return [110 >> (4 * left[i] + 2 * left[i + 1] + left[i + 2]) & 1 for i in range(len(row))]


rows = [[int(cell) for cell in cells]]
for _ in range(2 * STEPS):
    rows.append(updated(rows[-1]))
true = torch.tensor(rows[1:])

figure, panels = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
for axes, picture, title in zip(panels, (true, read), ("rule 110", "the model"), strict=True):
    axes.imshow(picture, cmap="binary", vmin=0, vmax=1, extent=(0, 16, 8.5, 0.5), aspect="auto")
    axes.axhline(STEPS + 0.5, color="tab:red")  # below it: more steps than in training
    axes.set(title=title, xlabel="cell")
panels[0].set_ylabel("updates, thinking steps")
right = (read == true).float().mean(1)
print("right cells after each step:", [round(float(share), 2) for share in right])

# %% [markdown]
# Each thought is the row after one more update, and the loop also works beyond the four steps of
# its training, below the red line.
#
# ## Where it looks
#
# `inspect` records predictions, states and attention of one prompt. With `out` it also writes a
# page to click through. The rule needs a cell and the two to its left: most of the attention of a
# cell is there.

# %%
seen = thinkers.inspect(run, f"{STEPS}:{cells}", out="runs/inside/report.html")
(weights,) = seen.attention.values()  # (step, position, position it reads)
own = weights[1][-len(cells) :, -len(cells) :]
near = sum(float(own.diagonal(-back)[2:].mean()) for back in range(3))
figure, axes = plt.subplots(figsize=(4, 3.4), layout="constrained")
axes.imshow(own, cmap="viridis")
axes.set(title="attention at step 2", xlabel="cell that is read", ylabel="cell that reads")
print(f"share of the attention on the cell and the two before it: {near:.2f}")

# %% [markdown]
# ## Does the answer depend on it?
#
# What can be read out of a state need not be used. `ablate` replaces the states between the steps
# and measures what is lost, with a paired 99 % interval over the examples.

# %%
ablation = thinkers.ablate(run, num_examples=300)
scores = {"its own": ablation.score} | {x.replacement: x.score for x in ablation.effects}
for replacement, score in scores.items():
    print(f"{replacement:>18}: {score:.3f} of the rows are right")

# %% [markdown]
# Without their thoughts rows are wrong, except those of one update, a quarter, which have no
# thought between input and answer. Rows of two updates have only one thought, so that shuffling the
# thoughts changes nothing for them.

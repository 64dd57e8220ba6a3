# %% [markdown]
# # A model that knows when it is done
#
# A gate after each thinking step decides, for each token, whether that token needs another one.
# Easy tokens then cost less than hard ones. About a minute on one CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %% [markdown]
# ## Training with a gate
#
# A ball lies under the first of three cups. Each token swaps two cups, and after each of them the
# model says where the ball is. A looped model follows one more swap with each thinking step, so
# that the answer after swap i can be known from step i on, and the gate learns to open then. The
# recipe `cups/halting` has five cups and up to 16 swaps; three cups and up to 8 swaps are learned
# in a fraction of the time.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

import thinkers

STEPS = 8
config = thinkers.RECIPES["cups/halting"]()
config = replace(
    config,
    task=replace(config.task, num_cups=3, min_length=4, max_length=STEPS),
    model=replace(config.model, num_steps=STEPS, dim=32, hidden=None, vocab_size=None),
    training=replace(config.training, num_updates=600, lr=5e-3),
)
run = thinkers.train(config, out="runs/halting")

# %% [markdown]
# ## What it saves
#
# `halt` is a threshold: a token stops after the first step at which its gate is above it, and at
# 1 never. The mean number of steps is over tokens, and FLOPs are counted as they were done: a
# token that has halted costs none.

# %%
results = {}
for threshold in (0.5, 1.0):
    (row,) = thinkers.evaluate(run, num_steps=STEPS, num_examples=500, halt=threshold)
    results[threshold] = row
    print(
        f"halt {threshold}: {row['exact']:.3f} right, {row['mean_steps']:.2f} of {STEPS} steps, "
        f"{row['flops_share']:.0%} of the FLOPs"
    )

# %% [markdown]
# ## One row
#
# `taken` has the steps of each token: swap i needs i of them, and takes no more.

# %%
prompt = "12 23 13 12 23 12 13 23"
seen = thinkers.inspect(run, prompt, num_steps=STEPS, halt=0.5)
taken = seen.taken.tolist()[1:]  # without the start token

figure, axes = plt.subplots(figsize=(5, 2.6), layout="constrained")
axes.bar(range(1, STEPS + 1), taken)
axes.set_xticks(range(1, STEPS + 1), prompt.split())
axes.set(xlabel="swap", ylabel="thinking steps", yticks=range(STEPS + 1))
print(thinkers.answer(run, prompt, halt=0.5))
print("steps of each swap:", taken)

# %% [markdown]
# # First steps
#
# Train a model that thinks before it answers, ask it a question, and look at its answer after
# each thinking step. Half a minute on one CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %% [markdown]
# Models, tasks and recipes are plain dicts.

# %%
from dataclasses import replace

import torch

import thinkers

print("models: ", ", ".join(thinkers.MODELS))
print("tasks:  ", ", ".join(thinkers.TASKS))
print("recipes:", len(thinkers.RECIPES))

# %% [markdown]
# A recipe is a function that returns a configuration of model, task and training; any of its
# settings can be replaced. In a `thoughtsformer` each position appends a chain of thoughts,
# vectors that it reads itself, and predicts the next token from the last of them. Here it learns
# sums of up to two digits.

# %%
config = thinkers.RECIPES["add/thoughtsformer"]()
config = replace(
    config,
    task=replace(config.task, max_digits=2),
    training=replace(config.training, num_updates=300, batch_size=64, optimizer="muon", lr=0.02),
)
run = thinkers.train(config, out="runs/first_steps")
run

# %% [markdown]
# The scores above and below are of sums that were held out of training. A prompt is text:

# %%
answer = thinkers.answer(run, "48+69=")
answer

# %% [markdown]
# The number of thinking steps is an argument of every call. This model was trained with two; with
# one it has no chance to read its own thought.

# %%
scores = {row["num_steps"]: row["exact"] for row in thinkers.evaluate(run, num_steps=[1, 2])}
for steps, exact in scores.items():
    print(f"{steps} thinking steps: {exact:.1%} of the sums are right")

# %% [markdown]
# A model is a PyTorch module. `keep_states` keeps the state of each position after each step, and
# `read_out` gives the logits that the model would have written from it. Below is the answer of a
# whole row, digit by digit: the digits of a sum are written from the last to the first.

# %%
model, task = thinkers.open_run(run)
row = torch.tensor([task.encode("48+69=117")])
thought = model(row, num_steps=2, keep_states=True)
tokens = model.read_out(thought.states)[0].argmax(-1)  # (step, position)
start = len(task.encode("48+69=")) - 1  # the digit after "=" is predicted at "="
by_step = [task.decode(step[start : start + 3].tolist()) for step in tokens]
for step, digits in enumerate(by_step, 1):
    print(f"after step {step}: {digits}")

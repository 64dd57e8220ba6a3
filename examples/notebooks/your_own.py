# %% [markdown]
# # Your own task, model and input
#
# A task is a class with an alphabet and one random example; a model extends another, or is
# written from nothing; an input is a module. Nothing in the package changes. Half a minute on one
# CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %%
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import thinkers
from thinkers.models.looped import Looped
from thinkers.nn.layers import Head
from thinkers.nn.processor import Input
from thinkers.tasks import AnswerTask
from thinkers.testing import check_model

# %% [markdown]
# ## A task: find the largest digit of a row
#
# Batches, held-out examples, grading and text in and out follow from these few lines.

# %%


class Largest(AnswerTask):
    """Find the largest digit of a row: `39170=9`."""

    symbols = "0123456789="  # character i is token i; the end, padding and start tokens follow
    prompt_end = "="

    @dataclass(frozen=True, kw_only=True)
    class Config:
        num_digits: int = 5

    def __init__(self, config=None, seed=0):
        super().__init__(config, seed)
        self.max_length = self.config.num_digits + len("=9") + 2  # and the start and end tokens

    def max_answer_length(self):
        return 2  # one digit and the end token

    def example(self, rng):
        digits = "".join(rng.choice("0123456789") for _ in range(self.config.num_digits))
        return f"{digits}=", max(digits)


thinkers.TASKS["largest"] = Largest

task = thinkers.build_task("largest")
print([task.decode(row) for row in task.batch(0, 4).tokens.tolist()])

# %% [markdown]
# ## A model: a looped transformer with bounded logits
#
# Only what differs from `looped` is written: no logit is beyond 20, as in Gemma 2 (Gemma Team
# 2024). `check_model` then tests what every model of the library promises: answers with a cache
# equal those without, alone and in a batch, losses of parts of a batch add up, FLOPs are what
# torch counts, and more.

# %%


class CappedHead(Head):
    def forward(self, x, embedding):
        return 20 * torch.tanh(super().forward(x, embedding) / 20)


class Capped(Looped):
    """Looped transformer with bounded logits: z <- 20 tanh(z / 20)."""

    def __init__(self, config):
        super().__init__(config)
        self.head = CappedHead(self.embedding, config.tie_head)


thinkers.MODELS["capped"] = Capped
check_model(Capped(Capped.Config(vocab_size=11, dim=16, max_length=32, num_steps=2, max_steps=4)))

training = thinkers.Training(num_updates=250, batch_size=64, lr=3e-3)
sizes = dict(dim=32, num_layers=1, num_steps=2)
config = thinkers.Config.fit(Capped, Largest.Config(), training, **sizes)
run = thinkers.train(config, out="runs/your_own")
answer = thinkers.answer(run, "39170=")
answer

# %% [markdown]
# Everything else takes them by their names, such as `thinkers.compare("largest", ["decoder",
# "capped"])`.
#
# ## An input: points in the plane
#
# The blocks of a thinker read vectors, wherever these come from: here eight points in no order.
# In which quadrant is the one farthest from the origin?

# %%


class Points(Input):
    """Points of the plane, (b, m, 2), as m vectors per row."""

    def __init__(self, dim):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, points):
        return self.layers(points)


class Quadrants(nn.Module):
    """Latents that read points, step by step, and are read out as one of four classes."""

    def __init__(self, dim=32, num_latents=4):
        super().__init__()
        self.points, self.process = Points(dim), thinkers.Process(dim, num_heads=4, hidden=64)
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.head = nn.Linear(dim, 4)

    def forward(self, points, num_steps):
        read = thinkers.Read(self.process, self.points)
        latents = self.latents.expand(len(points), -1, -1)
        for _ in range(num_steps):
            latents = read(latents, points)
        return self.head(latents.mean(1))


def sample(rows, generator):
    points = torch.randn(rows, 8, 2, generator=generator)
    farthest = points[torch.arange(rows), points.norm(dim=-1).argmax(1)]
    x, y = farthest.unbind(-1)
    return points, 2 * (x > 0).long() + (y > 0).long()


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
network = Quadrants()
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
for _ in range(300):
    points, quadrant = sample(64, generator)
    optimizer.zero_grad()
    F.cross_entropy(network(points, num_steps=2), quadrant).backward()
    optimizer.step()

points, quadrant = sample(1000, generator)
with torch.no_grad():
    right = float((network(points, num_steps=2).argmax(-1) == quadrant).float().mean())
print(f"right for {right:.1%} of new sets of points; a guess is right for 25 %")

# %% [markdown]
# More on each: the pages *Your own task*, *Your own model* and *Your own input* of the
# documentation.

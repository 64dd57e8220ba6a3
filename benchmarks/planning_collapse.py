"""Information about the future in the plans of a DeepSight, beside its planning loss.

    python benchmarks/planning_collapse.py --text shakespeare.txt [--forms published ours]

A planning loss can get small without a plan, by shrinking what it compares. DeepSight is trained on
the characters of a text (3 + 3 layers, width 60, 3 heads, context 64, horizon 6) with the published
form of the loss, with ours, with the future alone as target, and with none, as the baseline: there
all information about the future comes from predicting the next character. Every `--every` updates a
line reports, on the held-out tenth of the text (see benchmarks/foresight.py):

    next     loss of the next character
    plan     planning loss
    share    planning loss / loss of the mean target
    linear   the same of a linear predictor without a plan
    known    R^2 of that predictor for the future
    beyond   share of its error that the plan removes
    gains    mean gains of the norms of the plan and of the target

Machine: losses and shares, which another machine's roundings change as another seed does. Nothing
is asked. Measured: docs/deepsight.md.
"""

import time
from pathlib import Path

import torch
from foresight import foresight
from harness import one_thread, parser

from thinkers import Batch, build_model
from thinkers.models import Model
from thinkers.models.deepsight_loss import PlanLoss

LENGTH, ROWS = 64, 16
SIZE = {"dim": 60, "num_layers": 3, "num_heads": 3, "max_length": LENGTH, "horizon": 6}
FORMS = {
    "published": {"variant": "published"},
    "ours": {},
    "future": {"plan_loss": "cosine", "plan_mix": "future"},
    "none": {"plan_loss": "none"},
}


def draw(text: torch.Tensor, number: int, seed: int) -> Batch:
    """Draw windows of the text by the seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - LENGTH - 1, (number,), generator=generator)
    windows = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return Batch(windows[:, :-1], windows[:, 1:])


def report(model: Model, held_out: list[Batch], update: int) -> None:
    """Print one line of losses and probes."""
    model.eval()
    with torch.no_grad():
        losses = [model.loss(batch) for batch in held_out]
    mean = {
        name: sum(float(loss.parts[name]) for loss in losses) / len(losses)
        for name in losses[0].parts
    }
    measured = model
    if model.plan_loss is None:
        measured = probe(model)
    found = foresight(measured, held_out)
    model.train()
    print(
        f"  {update:5d}   next {mean['next_token']:.3f}   plan {mean.get('plan', 0):8.5f}"
        f"   share {found['plan']:.3f}   linear {found['plan_known']:.3f}"
        f"   known {found['future_known']:.3f}   beyond {found['future_beyond']:.3f}"
        f"   gains {found['gain_encoder']:.3f} {found['gain_target']:.3f}",
        flush=True,
    )


def probe(model: Model) -> Model:
    """The same model with the planning loss that it was not trained with, to measure it."""
    other = build_model("deepsight", vocab_size=model.config.vocab_size, **SIZE)
    other.load_state_dict(model.state_dict(), strict=False)
    assert isinstance(other.plan_loss, PlanLoss)
    return other.eval()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--text", type=Path, required=True)
    arguments.add_argument("--num_updates", type=int, default=1200)
    arguments.add_argument("--every", type=int, default=300)
    arguments.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = arguments.parse_args()
    one_thread()
    characters = options.text.read_text()
    alphabet = {c: i for i, c in enumerate(sorted(set(characters)))}
    text = torch.tensor([alphabet[c] for c in characters])
    split = 9 * len(text) // 10
    held_out = [draw(text[split:], ROWS, seed=10**6 + i) for i in range(40)]
    for name in options.forms:
        print(name)
        torch.manual_seed(0)
        model = build_model("deepsight", vocab_size=len(alphabet), **{**SIZE, **FORMS[name]})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        start = time.process_time()
        for update in range(options.num_updates + 1):
            if update % options.every == 0:
                report(model, held_out, update)
            optimizer.zero_grad()
            model.loss(draw(text[:split], ROWS, seed=update)).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"  {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Does a small planning loss mean that anything was planned? The published form and ours.

python benchmarks/planning_collapse.py --text shakespeare.txt

Trains on the characters of a text: 3 + 3 layers, width 60, 3 heads, context 64, horizon 6, and
reports on held-out text, every so many updates, what `benchmarks/foresight.py` measures:
the planning loss on its own terms and as a share of that of the mean target, the same share of a
linear predictor that plans nothing, how much of the future the plan holds beyond that predictor,
and the mean gains of the planning norms. The third model has no planning loss: what its encoder
knows of the future comes from predicting the next character alone.
"""

import argparse
import time
from pathlib import Path

import torch
from foresight import foresight

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
    """Windows of the text, chosen by the seed."""
    drawn = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - LENGTH - 1, (number,), generator=drawn)
    windows = text[starts[:, None] + torch.arange(LENGTH + 1)]
    return Batch(windows[:, :-1], windows[:, 1:])


def report(model: Model, held_out: list[Batch], update: int) -> None:
    """One line of what there is to know."""
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
    """The same model, measured by the planning loss that it was not trained with."""
    other = build_model("deepsight", vocab_size=model.config.vocab_size, **SIZE)
    other.load_state_dict(model.state_dict(), strict=False)
    assert isinstance(other.plan_loss, PlanLoss)
    return other.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--every", type=int, default=300)
    parser.add_argument("--forms", default=",".join(FORMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    characters = options.text.read_text()
    alphabet = {c: i for i, c in enumerate(sorted(set(characters)))}
    text = torch.tensor([alphabet[c] for c in characters])
    split = 9 * len(text) // 10
    held_out = [draw(text[split:], ROWS, seed=10**6 + i) for i in range(40)]
    for name, form in FORMS.items():
        if name not in options.forms.split(","):
            continue
        print(name)
        torch.manual_seed(0)
        model = build_model("deepsight", vocab_size=len(alphabet), **{**SIZE, **form})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        start = time.process_time()
        for update in range(options.updates + 1):
            if update % options.every == 0:
                report(model, held_out, update)
            optimizer.zero_grad()
            model.loss(draw(text[:split], ROWS, seed=update)).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"  {time.process_time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()

"""Train a model in a loop of your own by Accelerate, on one device or many.

pip install accelerate
python examples/accelerate_training.py     # or accelerate launch
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import thinkers


class LossOf(nn.Module):
    """The loss as a forward pass, which several devices need to exchange gradients."""

    def __init__(self, model: thinkers.Model):
        super().__init__()
        self.model = model

    def forward(self, batch: thinkers.Batch) -> torch.Tensor:
        return self.model.loss(batch).total


def train(model: thinkers.Model, loader: DataLoader, lr: float = 5e-3) -> list[float]:
    """Train the model in place on the batches of a loader; return the loss of each update."""
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    loss_of, optimizer, loader = accelerator.prepare(LossOf(model), optimizer, loader)
    losses = []
    for batch in loader:
        loss = loss_of(batch)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    task = thinkers.build_task("copy", max_length=3)  # "314=" is answered by "314"
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    model = thinkers.build_model("looped", **sizes, dim=32, num_layers=1, num_steps=2)
    data = [task.batch(i, 1) for i in range(8000)]  # a data set: Batches of one row each
    loader = DataLoader(data, batch_size=32, shuffle=True, collate_fn=thinkers.collate)
    losses = train(model, loader)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(task.score(model, num_examples=500))  # on held-out rows
    model.save("models/by_accelerate")  # thinkers.load reads it

"""Train a model by Lightning: the loop, devices and ranks are its own, model and task are ours.

pip install lightning
python examples/lightning_training.py
"""

import lightning
import torch
from torch.utils.data import DataLoader

import thinkers


class Training(lightning.LightningModule):
    """The loss of a model, and its optimiser."""

    def __init__(self, model: thinkers.Model, lr: float = 5e-3):
        super().__init__()
        self.model, self.lr = model, lr

    def training_step(self, batch: thinkers.Batch, index: int) -> torch.Tensor:
        loss = self.model.loss(batch)
        correct = loss.correct.float().mean()
        self.log_dict({"loss": loss.total, "correct": correct}, batch_size=len(batch))
        return loss.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), self.lr)


def train(model: thinkers.Model, loader: DataLoader, num_epochs: int = 1) -> Training:
    """Train the model in place on the batches of a loader."""
    training = Training(model)
    trainer = lightning.Trainer(max_epochs=num_epochs, logger=False, enable_checkpointing=False)
    trainer.fit(training, loader)
    return training


if __name__ == "__main__":
    task = thinkers.build_task("copy", max_length=3)  # "314=" is answered by "314"
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    model = thinkers.build_model("looped", **sizes, dim=32, num_layers=1, num_steps=2)
    data = [task.batch(i, 1) for i in range(8000)]  # a data set: Batches of one row each
    loader = DataLoader(data, batch_size=32, shuffle=True, collate_fn=thinkers.collate)
    train(model, loader)
    print(task.score(model, num_examples=500))  # on held-out rows
    model.save("models/by_lightning")  # thinkers.load reads it

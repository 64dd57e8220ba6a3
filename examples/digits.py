"""Teach a thinker to read handwritten digits: an input of images, a model that has it, and a task.

pip install scikit-learn
python examples/digits.py
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.datasets import load_digits

import thinkers
from thinkers.prng import row_keys
from thinkers.tasks.answers import answer_batch
from thinkers.tasks.base import SPLITS

PLACES = {"train": slice(0, 1197), "valid": slice(1197, 1397), "test": slice(1397, 1797)}
"""Places of the 1,797 images, in a random order, that each split has."""


class ImageThinker(thinkers.MODELS["thinker"]):
    """A thinker whose latents read an image of 8 x 8 pixels besides the prompt."""

    def __init__(self, config):
        super().__init__(config)
        self.inputs["image"] = thinkers.ImageInput(size=8, patch=2, channels=1, dim=config.dim)


class Digits(thinkers.tasks.AnswerTask):
    """Name the digit of an image: `?` is answered by `7`."""

    symbols = "0123456789?"
    prompt_end = "?"
    max_length = 4  # start token, question mark, digit and end token

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config=None, seed=0):
        super().__init__(config, seed)
        pixels, self.digits = load_digits(return_X_y=True)
        self.images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
        self.order = np.random.default_rng(1).permutation(len(pixels))  # the same for all seeds

    def max_answer_length(self):
        return 2

    def batch(self, update, batch_size, split="train"):
        keys = row_keys(self.seed, SPLITS.index(split), np.array([update]), batch_size)[0]
        chosen = self.order[PLACES[split]]
        return self._rows(chosen[keys % np.uint64(len(chosen))], keys.view(np.int64))

    def evaluation_batches(self, split, num_examples):
        """Yield each image of a split once."""
        chosen = self.order[PLACES[split]][:num_examples]
        yield self._rows(chosen, chosen)

    def groups(self, split="test", num_examples=2000):
        return None  # the prompts are equal, the images are not

    def _rows(self, chosen, keys):
        prompt = self.encode("?")
        answers = [[int(self.digits[i]), self.end_token] for i in chosen]  # digit i is token i
        rows = answer_batch([(prompt, answer) for answer in answers], keys, self.pad_token)
        return replace(rows, extra={"image": self.images[chosen]})


thinkers.MODELS["image_thinker"] = ImageThinker
thinkers.TASKS["digits"] = Digits


def config(num_updates=400, seed=0, **own):
    """Return the configuration of a run of 20 seconds of one CPU core."""
    muon = {"optimizer": "muon", "lr": 0.02, "weight_decay": 0.1, "min_lr_ratio": 0.01}
    training = thinkers.Training(num_updates=num_updates, batch_size=64, seed=seed, **muon)
    settings = {"dim": 48, "num_latents": 4, "num_layers": 1, "num_steps": 3}
    settings |= {"step_loss": "every", "tie_head": False} | own
    return thinkers.Config.fit(ImageThinker, Digits.Config(), training, **settings)


if __name__ == "__main__":
    run = thinkers.train(config(), out="runs/digits")
    for row in thinkers.evaluate(run, num_steps=[1, 2, 3, 6]):
        print(row["num_steps"], "steps:", row["exact"])  # of 400 images that were not trained on
    model, task = thinkers.open_run(run)
    prompts = torch.tensor([task.encode("?")] * 4)
    chosen = task.order[PLACES["test"]][:4]
    images = {"image": task.images[chosen]}
    answers = model.answer(prompts, torch.full((4,), 2), 1, extra=images)
    print([task.decode(row) for row in answers], task.digits[chosen])

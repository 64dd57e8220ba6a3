"""answer(run, prompt): what a trained model says to one prompt."""

from pathlib import Path

import torch

from thinkers import checkpoints, runs, tasks
from thinkers.config import Config, problem
from thinkers.distributed import find_device


def answer(run: str | Path, prompt: str, num_steps: int | None = None) -> str:
    """The prompt and the answer of the run in this folder, in the words of its task.

    Args:
        num_steps: How many steps to think; None is what the model usually takes.
    """
    config = Config.from_dict(runs.read_record(Path(run))["config"])
    task = tasks.from_config(config.task, config.training.seed)
    tokens = task.encode(prompt)
    if not tokens:
        raise problem("an empty prompt", "a question such as 12+34=", "write one")
    model = checkpoints.load(run).to(find_device("auto")).eval()
    device = next(model.parameters()).device
    room = model.config.max_length - len(tokens)
    longest = task.answer_length()
    room = room if longest is None else min(room, longest)
    if room < 1:
        longest = model.config.max_length - 1
        raise problem(f"a prompt of {len(tokens)} tokens", f"at most {longest}", "shorten it")
    row = torch.tensor([tokens], device=device)
    lengths = torch.tensor([len(tokens)], device=device)
    with torch.no_grad():
        said = model.answer(row, lengths, room, num_steps)
    return prompt + task.decode(said[0].tolist())

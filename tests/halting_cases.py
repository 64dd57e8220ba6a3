"""Small models with gates that open at different steps."""

import torch
from model_cases import NAMES, tiny

from thinkers.errors import UsageError

SETTINGS = {"halting": True, "num_layers": 1, "num_steps": 4, "max_steps": 8}


def halting(task=None, name="looped", **own):
    """A small model whose random gate opens after different steps of different tokens."""
    sizes = {}
    if task is not None:
        sizes = {"vocab_size": task.vocab_size, "max_length": max(40, task.max_length)}
    model = tiny(name, {**SETTINGS, **sizes, **own}).double()
    open_gate(model)
    return model


def open_gate(model):
    with torch.no_grad():
        model.gate.weight.mul_(40)
        model.gate.bias.fill_(-1.0)


def waiting(task):
    """A small model that was to learn to wait, and waits for different numbers of steps."""
    own = {"step_loss": "wait", "wait_token": task.wait_token, "halting": False}
    sizes = {"vocab_size": task.vocab_size, "max_length": task.max_length}
    settings = {**SETTINGS, **own, **sizes, "num_coda_layers": 0, "tie_head": False}
    model = tiny("looped", settings).double()
    with torch.no_grad():
        model.head.weight[task.wait_token].mul_(4)
    return model


def _has_gate(name):
    try:
        return tiny(name, {"halting": True}).halts_by == ("gate",)
    except (UsageError, TypeError):
        return False


GATED = [name for name in NAMES if _has_gate(name)]
"""Models that can have a gate."""

"""Rows of tokens with padding on any side, and the same rows padded on the right."""

import torch

IGNORED = -100
"""The label of a position that is not graded."""


class Rows:
    """Rows of real tokens moved to the left, as the models read them.

    Args:
        tokens: Token ids (b, t); the padding is on the left, on the right or on both sides.
        mask: 1 at real tokens; None means all.
    """

    def __init__(self, tokens, mask, error):
        self.tokens, self.lengths, self.first, self.real = tokens, None, None, None
        if mask is None or bool((mask == 1).all()):
            return
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        self.real = real = (mask != 0).to(tokens.device)
        self.lengths = real.sum(1)
        self.first = real.int().argmax(1)[:, None]
        ends = self.first + self.lengths[:, None]
        if not bool((real == ((columns >= self.first) & (columns < ends))).all() and ends.all()):
            raise error(
                "an attention_mask with a row that is empty, or has padding between its tokens",
                "padding before and after the real tokens of each row",
                "pass the attention_mask of the tokenizer: without one, generate takes every "
                "pad_token_id in the prompt for padding",
            )
        self.tokens = self.take(tokens)

    def all_lengths(self):
        """Return the number of real tokens of each row."""
        b, t = self.tokens.shape
        full = torch.full((b,), t, dtype=torch.int64, device=self.tokens.device)
        return full if self.lengths is None else self.lengths

    def take(self, x):
        """Move the columns of x (b, t) to the left as those of the tokens."""
        if self.first is None:
            return x
        columns = torch.arange(x.shape[1], device=x.device)
        return x.gather(1, (columns + self.first).clamp(max=x.shape[1] - 1))

    def put(self, x):
        """Move x (b, t, c) back to the columns of the caller."""
        if self.first is None:
            return x
        columns = torch.arange(x.shape[1], device=x.device)
        index = (columns - self.first).clamp(min=0)[..., None]
        return x.gather(1, index.expand(-1, -1, x.shape[-1]))

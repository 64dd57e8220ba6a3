"""ImageInput: images as vectors, one for each patch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thinkers.checks import check_int
from thinkers.errors import UsageError
from thinkers.nn.processor import Input


class ImageInput(Input):
    """Image: W patch_i + b + learned position_i, for each of the patches that tile it.

    That of the Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929).

    Args:
        size: Height and width of the images.
        patch: Height and width of a patch, a divisor of `size`.
        channels: 1 for grey, 3 for colours.
    """

    def __init__(self, size: int, patch: int, channels: int, dim: int):
        super().__init__()
        for name, value in (("size", size), ("patch", patch), ("channels", channels), ("dim", dim)):
            check_int(name, value, 1)
        if size % patch:
            raise UsageError(f"patch must divide the size {size} of images, got {patch}")
        self.size, self.patch, self.channels = size, patch, channels
        self.embedding = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.empty((size // patch) ** 2, dim))
        nn.init.normal_(self.position, std=dim**-0.5)

    def forward(self, images: Float[Tensor, "b k s s"]) -> Float[Tensor, "b m c"]:  # type: ignore[override]
        """Embed images, channels first: m = (size / patch)^2 vectors, row by row.

        Raises:
            UsageError: They have another size.
        """
        expected = [self.channels, self.size, self.size]
        if list(images.shape[1:]) != expected:
            shape = ", ".join(map(str, expected))
            raise UsageError(f"images must have shape (b, {shape}), got {list(images.shape)}")
        return self.embedding(images).flatten(2).transpose(1, 2) + self.position

    def count(self, images: Tensor) -> int:
        return len(self.position)

    def flops(self, images: Tensor) -> int:
        vectors, width = self.position.shape
        return 2 * len(images) * vectors * width * self.channels * self.patch**2

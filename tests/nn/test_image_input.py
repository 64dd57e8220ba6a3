"""Images become vectors of their patches, as they are defined."""

import pytest
import torch
from torch.nn import functional as F

import thinkers
from thinkers.errors import UsageError


@pytest.mark.parametrize("size, patch, channels", [(8, 2, 1), (9, 3, 2), (5, 1, 3), (4, 4, 1)])
def test_each_vector_is_a_product_of_its_patch(size, patch, channels):
    source = thinkers.ImageInput(size, patch, channels, 7).double()
    images = torch.randn(3, channels, size, size, dtype=torch.float64)
    side = size // patch
    expected = []
    for row in range(side):
        for column in range(side):
            rows, columns = (slice(x * patch, (x + 1) * patch) for x in (row, column))
            pixels = images[:, :, rows, columns].flatten(1)
            weight, bias = source.embedding.weight.flatten(1), source.embedding.bias
            expected.append(F.linear(pixels, weight, bias) + source.position[len(expected)])
    torch.testing.assert_close(source(images), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    assert source.count(images) == side**2
    assert source.flops(images) == 2 * 3 * side**2 * 7 * channels * patch**2


@pytest.mark.misuse
def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match="patch must divide the size 8 of images, got 3"):
        thinkers.ImageInput(8, 3, 1, 4)
    with pytest.raises(UsageError, match="channels must be an integer at least 1, got 0"):
        thinkers.ImageInput(8, 2, 0, 4)
    with pytest.raises(UsageError, match=r"shape \(b, 1, 8, 8\), got \[2, 3, 8, 8\]"):
        thinkers.ImageInput(8, 2, 1, 4)(torch.zeros(2, 3, 8, 8))

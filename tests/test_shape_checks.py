"""The checks of annotated shapes: none is left out but those that have the same outcome."""

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int
from shape_checks import jaxtyped, sizes_by_number
from torch import Tensor

checked = jaxtyped(typechecker=beartype)


@checked
def picked(x: Float[Tensor, "b t"], row: int = 0, way: str = "") -> Float[Tensor, " t"]:
    return x[row] if not way else x[:, row]


@checked
def counted(x: Float[Tensor, "b 3"], y: Int[Tensor, "#b t"] | None = None) -> tuple[Tensor, ...]:
    return (x,)


def test_a_wrong_argument_or_result_is_found_after_right_ones():
    for size in (4, 5, 5):
        assert picked(torch.zeros(2, size)).shape == (size,)
    for call in (
        lambda: picked(torch.zeros(2, 5), way="column"),
        lambda: picked(torch.zeros(2, 5), 0, way="column"),
        lambda: picked(torch.zeros(2, 5).double().long()),
        lambda: picked(torch.zeros(2, 5), torch.tensor(1)),
        lambda: picked(torch.zeros(2, 5), way=None),
        lambda: picked(torch.zeros(1, 2, 5)),
        lambda: counted(torch.zeros(2, 4)),
        lambda: counted(torch.zeros(3, 2)),
    ):
        counted(torch.zeros(2, 3)), counted(torch.zeros(3, 3))
        for _ in range(2):  # what was refused is refused again
            with pytest.raises(jaxtyping.TypeCheckError):
                call()


def test_equal_sizes_are_told_from_unequal_ones():
    assert picked(torch.zeros(3, 3), way="column").shape == (3,)
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        picked(torch.zeros(4, 3), way="column")
    assert picked(torch.zeros(4, 4), way="column").shape == (4,)


def test_numbers_and_sizes_that_are_broadcast_are_told_apart():
    counted(torch.zeros(5, 3), torch.zeros(5, 2).long())
    counted(torch.zeros(5, 3), torch.zeros(1, 2).long())
    with pytest.raises(jaxtyping.TypeCheckError):
        counted(torch.zeros(5, 3), torch.zeros(4, 2).long())
    assert sizes_by_number(counted) == {1, 3} and sizes_by_number(picked) == {1}


def test_sizes_that_are_computed_with_are_all_told_apart():
    @checked
    def shorter(x: Float[Tensor, "b t"], n: int) -> Float[Tensor, "b t-1"]:
        return x[:, n:]

    assert sizes_by_number(shorter) is None
    for t in (5, 7):
        assert shorter(torch.zeros(2, t), 1).shape == (2, t - 1)
        with pytest.raises(jaxtyping.TypeCheckError):
            shorter(torch.zeros(2, t), 2)


def test_a_form_that_has_passed_is_not_checked_again():
    checks = []

    def typechecker(fn):
        def check(*args, **kwargs):
            checks.append(args)
            return fn(*args, **kwargs)

        return check

    @jaxtyped(typechecker=typechecker)
    def same(x: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        return x

    numbers = []
    for sizes in ((2, 5), (2, 5), (3, 7), (4, 4), (5, 5), (5, 1)):
        assert same(torch.zeros(sizes)).shape == sizes
        numbers.append(len(checks))
    assert numbers == [2, 2, 2, 4, 4, 6]  # of the arguments, and of these with the result

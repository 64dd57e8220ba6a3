"""Recipes on products and chains in three forms: direct, with registers, and written.

In each form a looped model and a decoder have equal sizes and equal training FLOPs, within 3 %. All
forms of a task have equal training FLOPs too, but for `multiply/written`, which has fewer, and
`arithmetic/direct`, which has lessons.

    direct     12*34=408
    registers  the thinking steps hold the intermediate results, which are graded and never written
    written    12*34=48,36,408
"""

from dataclasses import replace
from typing import Any

from thinkers.config.experiment import Config
from thinkers.config.training import Training
from thinkers.models.decoder import Decoder
from thinkers.models.looped import Looped
from thinkers.recipes.numbers import fit, training_settings
from thinkers.tasks.arithmetic import Arithmetic, Multiply

PRODUCTS = Multiply.Config(min_digits=2, max_digits=2)
LARGE_PRODUCTS = Multiply.Config(min_digits=3, max_digits=3)
CHAINS = Arithmetic.Config(
    max_digits=2, min_operators=2, max_operators=2, blanks=True, product_share=0.55
)
"""Of the rows of training 30 % have two products and 50 % one, of held-out rows 11 and 44 %."""
LESSONS = Arithmetic.Config(
    max_digits=2, min_operators=2, max_operators=2, curriculum=True, threshold=0.8, window=1000
)


def multiply_direct() -> Config:
    """Multiply numbers of 2 digits by a layer that is run four times, without help."""
    return _looped(PRODUCTS, 2050)


def multiply_direct_decoder() -> Config:
    """Multiply numbers of 2 digits by the two layers of a decoder, without help."""
    return _decoder(PRODUCTS, 5250)


def multiply_looped() -> Config:
    """Multiply numbers of 2 digits; registers hold the products of digits, which are graded.

    The answer is graded after the third and the fourth step. Not every seed learns to add the
    products.
    """
    return _looped(replace(PRODUCTS, registers="graded"), 1200, step_loss="due")


def multiply_decoder() -> Config:
    """Multiply numbers of 2 digits by a decoder with the same graded registers."""
    return _decoder(replace(PRODUCTS, registers="graded"), 3150)


def multiply_free() -> Config:
    """Multiply numbers of 2 digits with registers that are not graded: the control."""
    return _looped(replace(PRODUCTS, registers="free"), 1200, step_loss="due")


def multiply_written() -> Config:
    """Multiply numbers of 2 digits by writing the products of digits before the answer."""
    return _looped(replace(PRODUCTS, scratch=True), 1600, num_steps=2)


def multiply_written_decoder() -> Config:
    """Multiply numbers of 2 digits by a decoder that writes the products of digits."""
    return _decoder(replace(PRODUCTS, scratch=True), 2417)


def large_direct() -> Config:
    """Multiply numbers of 3 digits by a layer that is run four times, without help."""
    return _looped(LARGE_PRODUCTS, 9030)


def large_direct_decoder() -> Config:
    """Multiply numbers of 3 digits by the two layers of a decoder, without help."""
    return _decoder(LARGE_PRODUCTS, 23000)


def large_looped() -> Config:
    """Multiply numbers of 3 digits; registers hold the products of digits, which are graded."""
    return _looped(replace(LARGE_PRODUCTS, registers="graded"), 3750, num_steps=5, step_loss="due")


def large_decoder() -> Config:
    """Multiply numbers of 3 digits by a decoder with the same graded registers."""
    return _decoder(replace(LARGE_PRODUCTS, registers="graded"), 11900)


def large_free() -> Config:
    """Multiply numbers of 3 digits with registers that are not graded: the control."""
    return _looped(replace(LARGE_PRODUCTS, registers="free"), 3750, num_steps=5, step_loss="due")


def large_written() -> Config:
    """Multiply numbers of 3 digits by writing the products of digits before the answer."""
    return _looped(replace(LARGE_PRODUCTS, scratch=True), 7380, num_steps=2)


def large_written_decoder() -> Config:
    """Multiply numbers of 3 digits by a decoder that writes the products of digits."""
    return _decoder(replace(LARGE_PRODUCTS, scratch=True), 11140)


def arithmetic_direct() -> Config:
    """Compute chains of two operators (+ - *) on numbers up to 99, by a curriculum from 9 on.

    The curriculum and the narrow model helped; docs/measured.md has the attempts that did not.
    """
    return fit(Looped, LESSONS, _lessons(18000), num_layers=1, num_steps=4)


def arithmetic_direct_decoder() -> Config:
    """Compute chains of two operators by the three layers of a decoder, with the same lessons."""
    return fit(Decoder, LESSONS, _lessons(37280), num_layers=3, hidden=184)


def arithmetic_looped() -> Config:
    """Compute chains of two operators; registers hold the intermediate results, graded."""
    return _looped(replace(CHAINS, registers="graded"), 1575, num_steps=7, step_loss="due")


def arithmetic_decoder() -> Config:
    """Compute chains of two operators by a decoder with the same graded registers."""
    return _decoder(replace(CHAINS, registers="graded"), 6740)


def arithmetic_free() -> Config:
    """Compute chains of two operators with registers that are not graded: the control."""
    return _looped(replace(CHAINS, registers="free"), 1575, num_steps=7, step_loss="due")


def arithmetic_written() -> Config:
    """Compute chains of two operators by writing the intermediate results before the answer."""
    return _looped(replace(CHAINS, scratch=True), 3020, num_steps=3)


def arithmetic_written_decoder() -> Config:
    """Compute chains of two operators by a decoder that writes the intermediate results."""
    return _decoder(replace(CHAINS, scratch=True), 6130)


def _lessons(num_updates: int) -> Training:
    return training_settings(num_updates, lr=3e-3, batch_size=64)


def _looped(task: Any, num_updates: int, **own: Any) -> Config:
    settings = dict(num_layers=1, num_coda_layers=0, num_steps=4) | own
    return fit(Looped, task, training_settings(num_updates, lr=4e-3), **settings)


def _decoder(task: Any, num_updates: int) -> Config:
    training = training_settings(num_updates, lr=3e-3)
    return fit(Decoder, task, training, num_layers=2, hidden=192)

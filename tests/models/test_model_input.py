"""Keywords of `forward` that not every model takes: refused by name, or without effect."""

import pytest
import torch
from model_cases import NAMES, ids, tiny

from thinkers.errors import UsageError
from thinkers.models import Model
from thinkers.models.decoder import Decoder
from thinkers.models.model_input import OPTIONS

REFUSED = {
    "halt": (0.5, r"(?s)halt 0.5 for {name} without a gate.*expected.*leave halt out"),
    "policy": (True, r"(?s)policy for {name} without one.*expected.*leave policy out"),
    "positions": (torch.arange(5)[None], r"(?s)positions for {name}, which .*leave positions out"),
    "extra": ({"image": torch.zeros(1, 2)}, r"(?s)extra with image for {name}.*leave extra out"),
    "memory": ([None], r"(?s)a memory for {name} without one.*expected.*leave memory out"),
}


class FirstEdition(Decoder):
    """A decoder with the keywords of the first edition alone."""

    takes_positions = False

    def forward(
        self, tokens, *, num_steps=None, lengths=None, prompt_lengths=None, keep_states=False
    ):
        return super().forward(tokens, num_steps=num_steps, lengths=lengths)


def test_every_keyword_has_a_message_here():
    assert set(REFUSED) == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", [*NAMES, "first edition"])
def test_what_a_model_cannot_do_is_refused_by_name_and_what_asks_for_nothing_is_left_out(
    name, option
):
    plain = tiny("decoder" if name == "first edition" else name)
    model = FirstEdition(plain.config) if name == "first edition" else plain
    tokens, (asked, message) = ids(1, 5), REFUSED[option]
    if option == "positions" and model.takes_positions:
        assert model(tokens, positions=asked).logits.shape[1] == 5
    else:
        with pytest.raises(UsageError, match=message.format(name=model.name)):
            model(tokens, **{option: asked})
    with torch.no_grad():
        assert torch.equal(model(tokens, **OPTIONS).logits, model(tokens).logits)


def test_other_keywords_and_values_are_still_errors():
    model: Model = tiny("looped")
    with pytest.raises(TypeError, match="polices"):
        model(ids(1, 5), polices=True)
    with pytest.raises(UsageError, match="policy must be True or False, got None"):
        model(ids(1, 5), policy=None)
    with pytest.raises(UsageError, match="halt 0.5 with policy"):
        model(ids(1, 5), policy=True, halt=0.5)

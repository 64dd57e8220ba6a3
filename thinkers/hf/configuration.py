"""The configuration of a model of the library, in the form of Hugging Face."""

from transformers import PreTrainedConfig


class ThinkersConfig(PreTrainedConfig):
    """Configuration of a model of the library.

    Args:
        model: Its name there.
        settings: The settings that the library builds it with.
    """

    model_type = "thinkers"

    def __init__(self, model="decoder", settings=None, **given):
        self.model, self.settings = model, dict(settings or {})
        names = {"vocab_size": "vocab_size", "hidden_size": "dim"}
        names |= {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
        names |= {"max_position_embeddings": "max_length"}
        for name, own in names.items():
            if own in self.settings:
                given[name] = self.settings[own]
        # A tied head is one matrix in these models: there is nothing to tie again.
        given.setdefault("tie_word_embeddings", False)
        super().__init__(**given)

"""Models of the library for Hugging Face, whose Auto classes find them once this is imported."""

from thinkers.optional import require

require("transformers", "hf", "thinkers.hf")

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from thinkers.hf.configuration import ThinkersConfig  # noqa: E402
from thinkers.hf.modeling import ThinkersForCausalLM, from_model  # noqa: E402
from thinkers.hf.tokenizer import tokenizer_of  # noqa: E402

AutoConfig.register("thinkers", ThinkersConfig)
AutoModelForCausalLM.register(ThinkersConfig, ThinkersForCausalLM)

__all__ = ["ThinkersConfig", "ThinkersForCausalLM", "from_model", "tokenizer_of"]

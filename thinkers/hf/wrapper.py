"""A model with `prefill` and `extend` as a causal language model of Hugging Face."""

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from thinkers.hf.configuration import ThinkersConfig
from thinkers.hf.rows import IGNORED, Rows

NOT_SUPPORTED = ("assistant_model", "cache_implementation", "prefill_chunk_size", "inputs_embeds")
"""Arguments of `generate` that only caches and inputs of Hugging Face's own models have."""


class Thinking:
    """One call of `generate`: how it thinks, and what its first forward pass finds.

    Args:
        num_steps: Thinking steps; None means those of the configuration.
        halt: The rule by which tokens halt before; None means by none.
    """

    def __init__(self, num_steps=None, halt=None):
        self.num_steps, self.halt = num_steps, halt
        self.max_length = self.prompts = self.width = None


class ThinkersCache:
    """The cache of a model, in the form that `generate` passes on.

    Args:
        inner: The model's own cache.
        num_steps: The thinking steps of all its tokens.
        seen: Columns that it holds, padding included.
    """

    is_compileable = is_croppable = False
    is_linear = (False,)

    def __init__(self, inner, num_steps, seen):
        self.inner, self.num_steps, self.seen = inner, num_steps, seen

    def get_seq_length(self, layer_idx=0):
        return self.seen

    def reorder_cache(self, beam_idx):
        """Keep these rows: the beams that go on."""
        self.inner.select(beam_idx)


class Wrapper(PreTrainedModel, GenerationMixin):
    """A causal language model that thinks `num_thinking_steps` steps before each token.

    A subclass defines `build`. Rows may be padded on the left; padding is never read.
    """

    config_class = ThinkersConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = False  # the loss is a mean over the batch: a Trainer averages such means
    _is_stateful = True  # tokens cannot be taken back from the cache

    def __init__(self, config):
        super().__init__(config)
        # Hugging Face reads no setting of its own from a saved configuration that has this flag.
        self.generation_config._from_model_config = False
        self._is_loaded = torch.get_default_device().type == "meta"
        self.model = self.build(config)
        self._no_split_modules = [type(self.model).__name__]
        self.post_init()

    def build(self, config):
        """Build the model with `prefill` and `extend`, its weights drawn."""
        raise NotImplementedError

    @staticmethod
    def error(found, expected, fix):
        """Return the error of a call: the value found, the rule, the fix."""
        return ValueError(f"found: {found}\nexpected: {expected}\nfix: {fix}")

    def _init_weights(self, module):
        """Check what `from_pretrained` loaded, and compute what is in no file.

        It builds models without memory, and fills what it does not find in the file at random.
        """
        if not self._is_loaded:
            return
        saved = {**module._parameters, **module._buffers}
        for name, x in saved.items():
            is_saved = x is not None and name not in module._non_persistent_buffers_set
            if is_saved and not getattr(x, "_is_hf_initialized", False):
                part = next(own for own, x in self.named_modules() if x is module)
                raise self.error(
                    f"no {part}.{name} of shape {list(x.shape)} in the file of weights",
                    "the weights of the whole model, in the shapes of its configuration",
                    "export the model again",
                )
        self.fill_buffers(module)

    def fill_buffers(self, module):
        """Compute the buffers of a module that are not saved; here there are none."""

    def get_input_embeddings(self):
        rows = self.config.vocab_size
        parts = (x for x in self.model.modules() if isinstance(x, torch.nn.Embedding))
        return next(x for x in parts if x.num_embeddings == rows)

    def set_input_embeddings(self, value):
        raise self.error(
            "other embeddings", "those of the model", "train a model with this vocabulary"
        )

    def get_output_embeddings(self):
        return None  # with a tied head there is one matrix, which Hugging Face need not tie again

    def resize_token_embeddings(self, *given, **named):
        if not given and not named:
            return self.get_input_embeddings()
        return self.set_input_embeddings(None)

    # One pass

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        cache=None,
        past_key_values=None,
        labels=None,
        num_thinking_steps=None,
        halt=None,
        use_cache=None,
        logits_to_keep=0,
        output_hidden_states=None,
        return_dict=True,
        thinking=None,
        **others,
    ):
        """Compute the logits (b, t, v) of the next tokens.

        Args:
            labels: Targets as the input, -100 where there is none; they are moved by one here.
            num_thinking_steps: Steps before each token; None means those of the configuration.
            halt: Let tokens halt before, by their gate above this number, or "answered".
            output_hidden_states: Also return the states (b, t, c) after each step.
            thinking: The call of `generate` that this pass belongs to.
        """
        self.refuse(others)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            output = self.extended(input_ids, cache, num_thinking_steps)
        elif thinking is not None:
            rows = Rows(input_ids, attention_mask, self.error)
            output = self.begun(rows, thinking, use_cache, output_hidden_states)
        else:
            rows = Rows(input_ids, attention_mask, self.error)
            steps = self.check_steps(num_thinking_steps)
            output = self.whole(rows, steps, labels, halt, use_cache, output_hidden_states)
            if isinstance(logits_to_keep, int):
                logits_to_keep = slice(-logits_to_keep if logits_to_keep else None, None)
            if output.logits is not None:
                output.logits = output.logits[:, logits_to_keep]
        return output if return_dict else output.to_tuple()

    def refuse(self, others):
        """Raise an error if an argument of Hugging Face's own models asks for something."""
        for name, value in others.items():
            if name != "num_items_in_batch" and value is not None and value is not False:
                raise self.error(
                    f"the argument {name}",
                    "input_ids, attention_mask, labels, cache, num_thinking_steps, halt, "
                    "use_cache, logits_to_keep and output_hidden_states",
                    "leave it out; positions follow from the attention_mask",
                )

    def check_steps(self, asked):
        """Return the thinking steps of a call: as asked, else those of the configuration."""
        try:
            return self.model.check_steps(asked)
        except ValueError as error:  # it names the argument of the model
            rule = str(error).partition(" must be ")[2].rpartition(", got ")[0]
            fix = "change num_thinking_steps, or leave it out"
            raise self.error(f"num_thinking_steps {asked!r}", rule, fix) from None

    def whole(self, rows, steps, labels, halt, use_cache, keep_states):
        """Compute the logits of whole rows, and with labels the loss."""
        loss, options = None, {} if halt is None else {"halt": self.check_halt(halt)}
        if labels is not None:
            labels = labels if rows.real is None else labels.where(rows.real, IGNORED)
            targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
            loss = self.loss(rows, rows.take(targets), steps)
            if self.training:
                return CausalLMOutputWithPast(loss)
        thought = self.model(
            rows.tokens,
            num_steps=steps,
            lengths=rows.lengths,
            keep_states=bool(keep_states),
            **options,
        )
        states = None
        if keep_states:
            states = tuple(rows.put(x) for x in thought.states.unbind(1))
        kept = None
        if use_cache:
            kept = self.cache_of_text(rows, steps, options)
        return CausalLMOutputWithPast(loss, rows.put(thought.logits), kept, states)

    def loss(self, rows, targets, steps):
        """Return the loss of left-aligned rows with these targets (b, t)."""
        raise NotImplementedError

    def cache_of_text(self, rows, steps, options):
        """Return the cache of rows that are read as text, for calls outside of `generate`."""
        if rows.lengths is not None:
            raise self.error(
                "use_cache with padding outside of generate",
                "rows of one length, or a call of generate, which reads padded prompts",
                "call generate, or leave use_cache out",
            )
        capacity, lengths = self.model.config.max_length, rows.all_lengths()
        _, inner = self.model.prefill(rows.tokens, lengths, steps, False, capacity, **options)
        return ThinkersCache(inner, steps, rows.tokens.shape[1])

    def extended(self, tokens, cache, num_thinking_steps=None):
        """Append tokens (b, n) to the rows of a cache."""
        if num_thinking_steps not in (None, cache.num_steps):
            raise self.error(
                f"num_thinking_steps {num_thinking_steps} with a cache of {cache.num_steps}",
                "one number for all tokens of a row",
                "begin the row anew",
            )
        self.model.check_tokens(tokens)
        with torch.no_grad():
            logits = [self.model.extend(new, cache.inner) for new in tokens.unbind(1)]
        cache.seen += tokens.shape[1]
        return CausalLMOutputWithPast(None, torch.stack(logits, 1), cache)

    # Generation

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # it would have as many slots as layers, for any number of steps

    def check_halt(self, halt):
        """Return the rule by which tokens halt, or raise an error."""
        if halt == "policy" and isinstance(halt, str):
            raise self.error("halt policy", "a number in 0 .. 1, or answered", "leave it out")
        return halt

    def generate(
        self,
        inputs=None,
        generation_config=None,
        *given,
        num_thinking_steps=None,
        halt=None,
        **named,
    ):
        """Continue prompts, padded on the left, as `GenerationMixin.generate` does.

        Args:
            num_thinking_steps: Steps before each token; None means those of the generation
                configuration, and without one of the model's.
            halt: Let tokens halt before, by their gate above this number, or "answered".
        """
        if not self.model.causal:
            raise self.error(
                "generate of a model that reads the future",
                "a causal model",
                "call forward, which predicts at the end of the row",
            )
        for name in NOT_SUPPORTED:
            if named.get(name) is not None:
                raise self.error(
                    f"the argument {name} of generate",
                    "the model's own cache, of token ids",
                    "leave it out",
                )
        # A setting of both names in the generation configuration would take them out of the call.
        config = generation_config or self.generation_config
        if num_thinking_steps is None:
            num_thinking_steps = getattr(config, "num_thinking_steps", None)
        halt = getattr(config, "halt", None) if halt is None else halt
        steps = self.check_steps(num_thinking_steps)
        thinking = Thinking(steps, None if halt is None else self.check_halt(halt))
        return super().generate(inputs, generation_config, *given, thinking=thinking, **named)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *others):
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise self.error(
                f"cache_implementation {generation_config.cache_implementation}",
                "the model's own cache",
                "leave it out",
            )
        if model_kwargs.get("thinking") is not None:
            model_kwargs["thinking"].max_length = generation_config.max_length

    def prepare_inputs_for_generation(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        past_key_values=None,
        use_cache=True,
        thinking=None,
        output_hidden_states=None,
        **kwargs,
    ):
        cache = past_key_values if cache is None else cache
        if thinking is not None and thinking.width is not None:
            # Rows that have ended are filled with pad_token_id, which may not be in the vocabulary.
            written = torch.arange(input_ids.shape[1], device=input_ids.device) >= thinking.width
            unknown = input_ids >= self.config.vocab_size
            input_ids = input_ids.masked_fill(written & unknown, 0)
        if cache is not None:
            new = max(1, input_ids.shape[1] - cache.seen)
            return {"input_ids": input_ids[:, -new:], "cache": cache, "use_cache": True}
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "thinking": thinking,
            "output_hidden_states": output_hidden_states,
            "output_attentions": kwargs.get("output_attentions"),  # which forward refuses
        }

    def begun(self, rows, thinking, use_cache, keep_states):
        """Compute the logits after the last token of each row of a call of `generate`."""
        if keep_states:
            raise self.error(
                "output_hidden_states of generate",
                "a call of forward, which returns the states after each step",
                "call the model on the whole row",
            )
        (b, t), lengths = rows.tokens.shape, rows.all_lengths()
        steps = self.check_steps(thinking.num_steps)
        options = {} if thinking.halt is None else {"halt": thinking.halt}
        longest = int(lengths.max())
        if thinking.prompts is None:
            self.check_prompts(rows, thinking, longest)
        tokens = self.model.check_tokens(rows.tokens[:, :longest], lengths)
        if use_cache:
            capacity = longest + (thinking.max_length or self.model.config.max_length) - t
            with torch.no_grad():
                logits, inner = self.model.prefill(
                    tokens, lengths, steps, True, capacity, **options
                )
            return CausalLMOutputWithPast(None, logits[:, None], ThinkersCache(inner, steps, t))
        prompts = thinking.prompts
        thought = self.model(
            tokens, num_steps=steps, lengths=lengths, prompt_lengths=prompts, **options
        )
        last = thought.logits[torch.arange(b, device=tokens.device), lengths - 1]
        return CausalLMOutputWithPast(None, last[:, None])

    def check_prompts(self, rows, thinking, longest):
        """Keep the lengths of the prompts, or raise an error if their answers have no room."""
        t = rows.tokens.shape[1]
        thinking.prompts, thinking.width = rows.all_lengths(), t
        if rows.first is not None and bool((rows.first[:, 0] + rows.lengths < t).any()):
            raise self.error(
                "a prompt with padding at its end",
                "padding before the prompt",
                'set tokenizer.padding_side = "left"',
            )
        limit, room = self.model.config.max_length, (thinking.max_length or t) - t
        if longest + room > limit:
            raise self.error(
                f"a prompt of {longest} tokens and {room} new ones",
                f"at most {limit} together, the max_length of the model",
                "ask for fewer with max_new_tokens, or shorten the prompt",
            )

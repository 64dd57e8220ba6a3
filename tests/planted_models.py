"""Defects of operations, layers, models and halting."""

from planted import Defect

OPS = [
    Defect(
        *("ops", "ops/masks.py", "near is one time step too short"),
        "newest, oldest = q // size * size, (q // size - window) * size",
        "newest, oldest = q // size * size, (q // size - window + 1) * size",
        ("ops/test_masks.py::test_reasoning_near_and_far_divide_the_older_reasoning_tokens",),
    ),
    Defect(
        *("ops", "ops/masks.py", "the span of sections begins at the first query"),
        "Banded(same, lambda first, end: (first // size * size, end))",
        "Banded(same, lambda first, end: (first, end))",
        ("ops/test_stop_grad.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
    Defect(
        *("ops", "ops/cpu_sdpa.py", "a row with a hidden diagonal counts as empty"),
        "expand(*visible.shape[:2], t).cummax(-1).values",
        "expand(*visible.shape[:2], t)",
        ("ops/test_stop_grad.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
    Defect(
        *("ops", "ops/cpu_sdpa.py", "a negative scale leaves dq with the wrong sign"),
        "return dq if sign == 1 else dq * sign, dk, dv",
        "return dq, dk, dv",
        ("ops/test_stop_grad.py::test_any_shape_and_layout_agrees_with_dense",),
    ),
    Defect(
        *("ops", "ops/dispatch.py", "factors by head leave the sum over shared keys"),
        'return "key" if h == 1 or k.shape[1] == q.shape[1] else "pair"',
        'return "key"',
        ("ops/test_stop_grad.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
    Defect(
        *("ops", "ops/chain.py", "sums of an earlier backward pass are kept"),
        "if self._grads is None or self._pass_id != current:",
        "if self._grads is None:",
        (
            "ops/test_chain.py::test_a_chain_survives_retained_partial_and_interrupted_backward_passes",
        ),
    ),
    Defect(
        *("ops", "ops/thought.py", "dk of thoughts is scaled twice"),
        "_add_outer_products_(chain_grads[0], ds, q)",
        "_add_outer_products_(chain_grads[0], ds * call.scale, q)",
        ("ops/test_thought.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
    Defect(
        *("ops", "ops/thought.py", "thoughts take the padding of the first positions"),
        "of_thoughts = padding[:, padding.shape[1] - q.shape[2] :, None]",
        "of_thoughts = padding[:, : q.shape[2], None]",
        ("ops/test_thought.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
    Defect(
        *("ops", "ops/tiles.py", "factors are cut from the wrong key on"),
        "factor = factor[..., start - self.start : end - self.start]",
        "factor = factor[..., start - first : end - first]",
        ("ops/test_stop_grad.py::test_agrees_with_dense_in_value_and_gradient",),
    ),
]

MODELS = [
    Defect(
        *("nn", "nn/kv_cache.py", "the first slot of padding is read"),
        "padding = (slots >= positions) & (slots < self.used)",
        "padding = (slots > positions) & (slots < self.used)",
        ("nn/test_kv_cache.py",),
    ),
    Defect(
        *("nn", "nn/kv_cache.py", "rows that stay keep the padding of others"),
        "self.hidden = self.hidden[rows]",
        "self.hidden = self.hidden[: len(rows)]",
        ("nn/test_kv_cache.py",),
    ),
    Defect(
        *("nn", "nn/latent_store.py", "one step too many is read"),
        "max(0, num_latents - steps)",
        "max(0, num_latents - steps - 1)",
        ("nn/test_processor.py::test_a_store_equals_concatenation_in_value_and_gradient",),
    ),
    Defect(
        *("nn", "nn/latent_store.py", "the last latents are not detached"),
        "self._frozen = (latents[0][1], latents[-1][2])",
        "self._frozen = (latents[0][1], latents[-1][1])",
        ("nn/test_processor.py::test_a_store_equals_concatenation_in_value_and_gradient",),
    ),
    Defect(
        *("nn", "nn/layers.py", "heads are rotated backwards"),
        "torch.cat([-second, first], -1) * sin",
        "torch.cat([second, -first], -1) * sin",
        ("nn/test_layers.py::test_rotation_is_multiplication_by_a_complex_number",),
    ),
    Defect(
        *("nn", "nn/window.py", "a cache sees one position less"),
        "seen = (self.positions[:, : self.used] - new).abs() <= self.window",
        "seen = (self.positions[:, : self.used] - new).abs() < self.window",
        ("models/test_positions.py::test_a_cache_gives_what_whole_rows_give",),
    ),
    Defect(
        *("models", "models/looped.py", "one step too few learns"),
        "step >= steps - limit",
        "step > steps - limit",
        ("models/test_looped.py::test_looped_differentiates_its_last_steps_alone",),
    ),
    Defect(
        *("models", "models/thoughtsformer.py", "later steps are one position ahead"),
        "positions = cache.lengths[:, None] - 1",
        "positions = cache.lengths[:, None]",
        ("models/test_models.py::test_every_model_has_every_property_in_float64[thoughtsformer]",),
    ),
    Defect(
        *("models", "models/thought_cache.py", "rows that stay keep the padding of others"),
        "self.bias, self.lengths = self.bias[rows], self.lengths[rows]",
        "self.bias, self.lengths = self.bias[: len(rows)], self.lengths[rows]",
        ("models/test_models.py::test_every_model_has_every_property_in_float64[thoughtsformer]",),
    ),
    Defect(
        *("models", "models/multi_token.py", "positions behind the row are graded"),
        "targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)",
        "targets = F.pad(targets[:, 1:], (0, 1), value=0)",
        ("models/test_multi_token.py::test_each_head_is_graded_on_the_token_so_far_ahead",),
    ),
    Defect(
        *("models", "models/deepsight_loss.py", "the end of the horizon is left out"),
        "min(self.horizon, x.shape[1] - 1) + 1):",
        "min(self.horizon, x.shape[1] - 1)):",
        ("models/test_deepsight.py::test_targets_of_plans_are_their_equations",),
    ),
    Defect(
        *("models", "models/deepsight_loss.py", "plans learn from the loss of embeddings"),
        "self.encoder_norm(plan.detach())",
        "self.encoder_norm(plan)",
        ("models/test_deepsight.py::test_the_embedding_loss_trains_the_embeddings_alone",),
    ),
    Defect(
        *("models", "models/batch.py", "targets at padding are graded"),
        "targets=graded_targets(batch),",
        "targets=batch.targets,",
        ("models/test_models.py::test_every_model_has_every_property_in_float64[decoder]",),
    ),
    Defect(
        *("models", "models/step_loss.py", "steps from the due one on weigh too little"),
        "(number >= first).double() / (steps + 1 - first)",
        "(number >= first).double() / steps",
        ("models/test_step_loss.py::test_each_target_is_graded_after_the_steps_of_its_kind",),
    ),
    Defect(
        *("models", "models/generation.py", "the token that reaches top_p is left out"),
        "probs.cumsum(-1) - probs >= top_p",
        "probs.cumsum(-1) >= top_p",
        ("models/test_generation.py::test_drawing_is_a_function_of_the_generator_alone",),
    ),
    Defect(
        *("models", "models/pause.py", "a filler sees the one after it"),
        "ahead = slots > slots[-self.size :, None]",
        "ahead = slots > slots[-self.size :, None] + 1",
        ("models/test_pause.py::test_a_long_text_is_continued_through_every_slot_of_the_cache",),
    ),
    Defect(
        *("models", "models/thinker.py", "queries of later tokens are not shifted"),
        "offsets = torch.arange(tokens.shape[1], device=tokens.device) + cache.offset",
        "offsets = torch.arange(tokens.shape[1], device=tokens.device)",
        ("models/test_models.py::test_every_model_has_every_property_in_float64[thinker]",),
    ),
    Defect(
        *("models", "models/thinker_reading.py", "a latent behind the end of a block is read"),
        "torch.arange(like.shape[2], device=like.device) >= sizes[:, None]",
        "torch.arange(like.shape[2], device=like.device) > sizes[:, None]",
        (
            "models/test_thinker_memory.py::test_blocks_of_lower_levels_are_hidden_behind_their_own_latents",
        ),
    ),
]

HALTING = [
    Defect(
        *("halting", "nn/live_tokens.py", "the last step of a cache stays empty"),
        "if self.begun + 1 < num_steps:",
        "if self.begun + 2 < num_steps:",
        (
            "nn/test_live_tokens.py::"
            "test_steps_that_no_token_took_have_the_keys_of_the_last_that_one_took",
        ),
    ),
    Defect(
        *("halting", "nn/live_tokens.py", "halted tokens keep the keys of the first step"),
        "self._slots(step, step + 1).copy_(self._slots(step - 1, step))",
        "self._slots(step, step + 1).copy_(self._slots(0, 1))",
        (
            "models/test_looped_halting.py::test_rows_halt_by_token_as_defined_together_alone_and_token_by_token",
        ),
    ),
    Defect(
        *("halting", "nn/live_tokens.py", "a halted state still changes in training"),
        "return new.where(self.live[..., None], old)",
        "return new",
        ("models/test_looped_halting.py::test_the_loss_is_that_of_the_definition",),
    ),
    Defect(
        *("halting", "models/halting_model.py", "a saturated gate halts at a threshold of 1"),
        "return self.gate(states)[..., 0].sigmoid() > halt",
        "return self.gate(states)[..., 0].sigmoid() >= halt",
        (
            "models/test_looped_halting.py::"
            "test_no_threshold_is_the_model_without_a_gate_and_1_never_halts",
        ),
    ),
    Defect(
        *("halting", "models/halting_model.py", "the gate is graded by the mean over all steps"),
        "return (losses * live / taken[:, None]).sum() / max(1, count)",
        "return (losses * live / gates.shape[1]).sum() / max(1, count)",
        ("models/test_looped_halting.py::test_the_loss_is_that_of_the_definition",),
    ),
    Defect(
        *("halting", "models/thinker_cache.py", "rows that stay tell the steps of others"),
        "self.taken = self.taken[rows]",
        "self.taken = self.taken[: len(rows)]",
        (
            "models/test_thinker_halting.py::"
            "test_rows_that_leave_while_writing_change_nothing_for_the_others",
        ),
    ),
    Defect(
        *("halting", "models/thinker_halting.py", "rows tell one step less than they took"),
        "taken.index_fill(0, rows, step + 1)",
        "taken.index_fill(0, rows, step)",
        (
            "models/test_thinker_halting.py::test_sections_halt_as_defined_together_alone_and_token_by_token",
        ),
    ),
]

DEFECTS = [*OPS, *MODELS, *HALTING]

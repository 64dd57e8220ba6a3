"""Defects of training, memory, runs, serving, and of what is concluded from scores."""

from planted import Defect

TRAINING = [
    Defect(
        *("training", "training/step.py", "micro-batches are divided by their own counts"),
        "self.model.loss(batch, num_steps=num_steps, counts=counts)",
        "self.model.loss(batch, num_steps=num_steps, counts=None)",
        ("training/test_loop.py::test_gradients_of_micro_batches_add_up_to_that_of_the_batch",),
    ),
    Defect(
        *("training", "training/step.py", "every micro-batch is the first"),
        "mine.rows(slice(micro * size, (micro + 1) * size))",
        "mine.rows(slice(0, size))",
        ("training/test_loop.py::test_gradients_of_micro_batches_add_up_to_that_of_the_batch",),
    ),
    Defect(
        *("training", "training/step.py", "dropout is the same in every update"),
        "seed_generators(ranks.device, settings.seed, state.update, ranks.rank, micro)",
        "seed_generators(ranks.device, settings.seed, 0, ranks.rank, micro)",
        (
            "training/test_settings.py::test_what_a_pass_draws_is_a_function_of_the_seed_the_update_and_the_micro_batch",
        ),
    ),
    Defect(
        *("training", "training/step.py", "the average follows the weights at once"),
        "decay = min(decay, state.update / (9 + state.update))",
        "decay = 1 - min(decay, state.update / (9 + state.update))",
        ("training/test_loop.py::test_the_resulting_model_is_the_moving_average",),
    ),
    Defect(
        *("training", "training/state.py", "the result has the weights of the last update"),
        "return sharding.whole(self.model if self.average is None else self.average)",
        "return sharding.whole(self.model)",
        ("training/test_loop.py::test_the_resulting_model_is_the_moving_average",),
    ),
    Defect(
        *("training", "training/state.py", "a resumed run forgets its best score"),
        'values["minutes"], values["flops"], values["best"]',
        'values["minutes"], values["flops"], None',
        (
            "training/test_loop.py::test_resuming_from_any_checkpoint_equals_an_uninterrupted_run_bit_for_bit[ema]",
        ),
    ),
    Defect(
        *("training", "training/optim.py", "the schedule counts the warm-up twice"),
        "done = min(1.0, (update - settings.warmup_updates) / span)",
        "done = min(1.0, update / span)",
        ("training/test_settings.py::test_the_learning_rate_is_a_function_of_the_update",),
    ),
    Defect(
        *("training", "training/optim.py", "norms, biases and embeddings decay"),
        "(rest, 0.0)]",
        "(rest, settings.weight_decay)]",
        ("training/test_settings.py::test_norms_biases_and_embeddings_are_not_decayed",),
    ),
]

MEMORY = [
    Defect(
        *("memory", "memory/lists.py", "of equal scores the higher id is first"),
        "order = np.lexsort((ids, -scores))[:wanted]",
        "order = np.lexsort((-ids, -scores))[:wanted]",
        ("memory/test_lists.py::test_equal_keys_are_found_by_lower_id",),
    ),
    Defect(
        *("memory", "memory/lists.py", "one list too few is searched"),
        "int(np.searchsorted(sizes[closest].cumsum(), wanted)) + 1",
        "int(np.searchsorted(sizes[closest].cumsum(), wanted))",
        ("memory/test_lists.py::test_more_lists_are_searched_where_few_keys_are_in_the_closest",),
    ),
    Defect(
        *("memory", "memory/keys.py", "a view searches what was written after it"),
        "if known is not None and known.generation == meta.generation:",
        "if known is not None and known.generation >= meta.generation:",
        ("memory/test_keys.py::test_a_view_that_is_older_than_an_index_does_not_use_it",),
    ),
    Defect(
        *("memory", "memory/rows.py", "a byte may move from one column to the next"),
        "crc = zlib.crc32(_BLOCK.pack(*numbers, *lengths))",
        "crc = zlib.crc32(_BLOCK.pack(*numbers, *[0] * len(lengths)))",
        ("memory/test_verification.py::test_bytes_that_move_between_columns_are_noticed",),
    ),
    Defect(
        *("memory", "memory/rows.py", "steps of int8 are a 128th of the largest value"),
        "(np.abs(latents).max(2, keepdims=True) / 127)",
        "(np.abs(latents).max(2, keepdims=True) / 128)",
        ("memory/test_memory.py::test_int8_takes_half_the_space_and_a_step_of_accuracy",),
    ),
    Defect(
        *("memory", "memory/memory.py", "scores lack the scale of the index"),
        "return replace(found, scores=found.scores * model.block_scale())",
        "return found",
        ("memory/test_reading_models.py::test_search_asks_the_index_of_the_model",),
    ),
    Defect(
        *("memory", "memory/sections.py", "a line break begins the next line"),
        '(n + 1, n + 1 + piece[:-1].count("\\n"))',
        '(n + 1, n + 1 + piece.count("\\n"))',
        ("memory/test_sections.py::test_sections_know_their_lines",),
    ),
]

RUNS = [
    Defect(
        *("runs", "runs/checkpoint.py", "a checkpoint without a score is the best"),
        "scores[path] = -math.inf if score is None else score",
        "scores[path] = math.inf if score is None else score",
        ("runs/test_checkpoint.py::test_pruning_keeps_the_last_and_the_best_finite_score",),
    ),
    Defect(
        *("runs", "runs/checkpoint.py", "checkpoints are sorted by the text of their names"),
        "key=lambda p: int(p.name)\n    )",
        "key=lambda p: p.name\n    )",
        ("runs/test_checkpoint.py::test_checkpoints_are_in_the_order_of_their_updates",),
    ),
    Defect(
        *("runs", "runs/metrics.py", "a checkpoint knows the last lines alone"),
        "self._size += len(content)",
        "self._size = len(content)",
        (
            "training/test_loop.py::test_resuming_from_any_checkpoint_equals_an_uninterrupted_run_bit_for_bit[adamw]",
        ),
    ),
]

SERVE = [
    Defect(
        *("serve", "serve/rows.py", "almost all of a stop text is given out"),
        "longest = min(len(text), len(stop) - 1)",
        "longest = min(len(text), len(stop) - 2)",
        ("serve/test_rows.py::test_nothing_is_given_out_that_a_stop_may_take_back",),
        "openai",
    ),
    Defect(
        *("serve", "serve/batching.py", "a batch keeps the model for a token too long"),
        "if written >= self.turn:",
        "if written > self.turn:",
        ("serve/test_batching.py::test_a_long_text_delays_one_of_another_kind_by_a_turn",),
        "openai",
    ),
    Defect(
        *("serve", "serve/texts.py", "all choices of a request draw alike"),
        "manual_seed(first + choice)",
        "manual_seed(first)",
        ("serve/test_texts.py::test_a_text_in_a_batch_is_the_text_alone[decoder]",),
        "openai",
    ),
]

RESULTS = [
    Defect(
        *("evaluation", "evaluation/statistics.py", "each of many depths is tested as if alone"),
        "each = 1 - (1 - confidence) / max(1, len(pairs))",
        "each = confidence",
        ("evaluation/test_statistics.py::test_chance_is_seldom_taken_for_a_fall",),
    ),
    Defect(
        *("comparison", "comparison/summary.py", "a higher loss is better"),
        "            a, b = b, a\n",
        "            a, b = a, b\n",
        ("comparison/test_summary.py::test_a_lower_loss_is_better",),
    ),
    Defect(
        *("comparison", "comparison/budgets.py", "an update more than the budget needs"),
        "if total(config, middle, costs) >= amount else",
        "if total(config, middle, costs) > amount else",
        (
            "comparison/test_compare_policy.py::test_the_updates_that_reach_an_amount_are_those_of_a_loop",
        ),
    ),
]

DEFECTS = [*TRAINING, *MEMORY, *RUNS, *SERVE, *RESULTS]

"""Saved models are loaded as they were, and what Hugging Face would do silently is an error."""

import json

import pytest
import torch
from hf_cases import LENGTHS, MASK, PROMPTS, pair, written
from model_cases import NAMES, ids

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, copy = pair("looped")
    copy.generation_config.num_thinking_steps = 3
    copy.save_pretrained(folder)
    return model, copy, folder


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_loaded_with_its_buffers_and_without_a_random_number(name, tmp_path):
    _, copy = pair(name)
    copy.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(copy) and loaded.dtype == torch.float64
    for (key, right), (own, found) in zip(
        copy.named_buffers(), loaded.named_buffers(), strict=True
    ):
        assert key == own and torch.equal(found, right) and found.dtype == right.dtype, key
    with torch.no_grad():
        assert torch.equal(loaded(PROMPTS).logits, copy(PROMPTS).logits)
    assert torch.equal(written(loaded, 2)[1], written(copy, 2)[1])


def test_without_the_filling_of_buffers_the_test_above_would_fail(saved, monkeypatch):
    _, copy, folder = saved
    monkeypatch.setattr(type(copy), "fill_buffers", lambda *_: None)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    loaded.model.rotary.frequencies.fill_(0.0)  # what happens to be in that memory
    with torch.no_grad():
        assert (loaded(PROMPTS).logits - copy(PROMPTS).logits).abs().max() > 0.01


def test_a_cast_rounds_weights_and_no_buffer(saved):
    _, copy, folder = saved
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.model.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(half.model.rotary.frequencies, copy.model.rotary.frequencies)
    half(PROMPTS)


def test_a_model_from_a_configuration_alone_is_drawn_from_the_generator(saved):
    _, copy, _ = saved
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(transformers.AutoModelForCausalLM.from_config(copy.config)(PROMPTS).logits)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].isfinite().all()


def test_weights_that_are_missing_or_of_another_shape_are_an_error(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    _, copy, folder = saved
    weights = load_file(folder / "model.safetensors")
    copy.config.save_pretrained(tmp_path)
    weights.pop("model.core_norm.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no model.core_norm.weight of shape .32. in"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_steps_and_halt_are_those_of_the_call_then_of_the_generation_configuration(saved):
    model, _, folder = saved
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.num_thinking_steps == 3
    for given, steps in (({}, 3), ({"num_thinking_steps": 1}, 1)):
        right = model.generate(PROMPTS, 3, steps, LENGTHS, return_logits=True)[1]
        assert torch.equal(written(loaded, 3, **given)[1], right)
    own = transformers.GenerationConfig(num_thinking_steps=2, max_new_tokens=3, do_sample=False)
    out = loaded.generate(PROMPTS, own, attention_mask=MASK)
    assert torch.equal(out, model.generate(PROMPTS, 3, 2, LENGTHS))
    halting, copy = pair("looped", {"halting": True})
    copy.generation_config.halt = 0.5
    right = halting.generate(PROMPTS, 3, None, LENGTHS, halt=0.5, return_logits=True)[1]
    assert torch.equal(written(copy, 3)[1], right)


REFUSED = {
    "num_thinking_step": (1, "not used by the model"),
    "num_thinking_steps": (
        99,
        "found: num_thinking_steps 99\nexpected: an integer in 1 .. 4.*\nfix: change num_th",
    ),
    "halt": (0.5, "without a gate"),
    "cache_implementation": ("static", "the model's own cache"),
    "prefill_chunk_size": (2, "the model's own cache"),
    "prompt_lookup_num_tokens": (2, "assisted generation is not supported"),
    "inputs_embeds": (torch.zeros(3, 7, 32), "the model's own cache"),
    "output_hidden_states": (True, "call of forward"),
    "output_attentions": (True, "the argument output_attentions"),
    "max_new_tokens": (61, "at most 67 together"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_of_generate_that_it_cannot_follow_are_errors(name, saved):
    _, copy, _ = saved
    value, reason = REFUSED[name]
    options = {"attention_mask": MASK, "max_new_tokens": 2, "do_sample": False, name: value}
    with pytest.raises(ValueError, match=reason):
        copy.generate(PROMPTS, **options)


@pytest.mark.parametrize(
    "name", ["position_ids", "inputs_embeds", "output_attentions", "token_type_ids"]
)
def test_arguments_of_a_pass_that_it_does_not_read_are_errors(name, saved):
    _, copy, _ = saved
    with pytest.raises(ValueError, match=f"the argument {name}"):
        copy(PROMPTS, **{name: torch.zeros(3, 7)})


def test_a_policy_is_no_rule_here():
    _, copy = pair("thinker", {"policy": True})
    with pytest.raises(ValueError, match="a number in 0 .. 1, or answered"):
        written(copy, 2, halt="policy")


def test_padding_in_the_middle_or_at_the_end_of_a_prompt_is_an_error(saved):
    _, copy, _ = saved
    with pytest.raises(ValueError, match="padding_side"):
        copy.generate(PROMPTS, attention_mask=MASK.flip(1), max_new_tokens=2)
    gap = torch.ones_like(MASK)
    gap[1, 3] = 0
    for call in (copy, lambda *x: copy.generate(x[0], attention_mask=x[1], max_new_tokens=2)):
        with pytest.raises(ValueError, match="padding between its tokens"):
            call(PROMPTS, gap)
    with pytest.raises(ValueError, match="outside of generate"):
        copy(PROMPTS, MASK, use_cache=True)


def test_the_vocabulary_is_that_of_the_model(saved):
    _, copy, _ = saved
    assert copy.get_input_embeddings() is copy.model.embedding
    assert copy.resize_token_embeddings() is copy.model.embedding
    with pytest.raises(ValueError, match="train a model with this vocabulary"):
        copy.resize_token_embeddings(20)
    with pytest.raises(ValueError, match="vocab_size 13"):
        copy(PROMPTS + 20)


@pytest.mark.parametrize("name", NAMES)
def test_input_embeddings_are_those_of_tokens(name):
    _, copy = pair(name)
    assert copy.get_input_embeddings().num_embeddings == copy.model.config.vocab_size


def test_logits_to_keep_are_the_last(saved):
    _, copy, _ = saved
    with torch.no_grad():
        whole = copy(PROMPTS).logits
        assert torch.equal(copy(PROMPTS, logits_to_keep=2).logits, whole[:, -2:])
        assert torch.equal(copy(PROMPTS, return_dict=False)[0], whole)


def test_a_trainer_learns_and_its_checkpoints_load(saved, tmp_path):
    _, copy, _ = saved
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.config)
    rows = [{"input_ids": row, "labels": row} for row in (ids(16, 1) + torch.arange(12)) % 13]
    settings = transformers.TrainingArguments(
        output_dir=tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=12,
        learning_rate=3e-3,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model, settings, train_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0] - 0.2
    # A mean over micro-batches, as Trainer divides what is no sum.
    assert losses[0] < 1.5 * torch.tensor(13.0).log()
    trainer.save_model(tmp_path / "last")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    with torch.no_grad():
        assert torch.equal(loaded(PROMPTS).logits, model.eval()(PROMPTS).logits)


def test_the_configuration_names_what_other_programs_read(saved):
    _, _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "thinkers" and config["model"] == "looped"
    assert config["architectures"] == ["ThinkersForCausalLM"]
    assert (config["vocab_size"], config["hidden_size"]) == (13, 32)
    assert config["max_position_embeddings"] == 67 and not config["tie_word_embeddings"]

"""Settings of HFLooped, which need no transformers: the configuration as data, and the sizes."""

import json
import sys
from dataclasses import replace

import pytest

import thinkers
from thinkers.config.experiment import Config, build_part
from thinkers.errors import UsageError
from thinkers.models import MODELS
from thinkers.models.hf_config import FAMILIES, to_text
from thinkers.models.hf_looped import HFLooped

WHOLE = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
SETTINGS = {
    "vocab_size": 97,
    "dim": 48,
    "num_layers": 8,
    "num_heads": 6,
    "hidden": 80,
    "tie_head": False,
}


def configured(**own):
    return HFLooped.Config(**{"hf_config": json.dumps(WHOLE)} | own)


@pytest.mark.misuse  # a list, as JSON has it, in place of a tuple
def test_sizes_follow_the_configuration():
    config = configured()
    assert {name: getattr(config, name) for name in SETTINGS} == SETTINGS
    assert config.max_length == 256 and config.core == (2, 6)
    assert configured(layers=[1, 3]).core == (1, 3) and hash(configured(layers=[1, 3]))
    assert configured(**SETTINGS) == config and replace(config, num_steps=3).max_steps == 16


@pytest.mark.parametrize("name", SETTINGS)
def test_a_size_that_contradicts_the_configuration_is_refused(name):
    value = SETTINGS[name]
    other = (not value) if isinstance(value, bool) else 2 * value
    with pytest.raises(UsageError, match=rf"{name} must be {value}, .* of hf_config, got {other}"):
        configured(**{name: other})


def test_without_a_configuration_the_settings_are_those_of_every_model():
    config = HFLooped.Config()
    assert (config.dim, config.num_layers, config.num_heads) == (128, 2, 4)
    assert config.tie_head is True and config.vocab_size is None and config.core == (0, 2)
    cores = {n: HFLooped.Config(num_layers=n).core for n in (1, 3, 4, 6, 12)}
    assert cores == {1: (0, 1), 3: (0, 3), 4: (1, 3), 6: (1, 5), 12: (3, 9)}


def test_rows_are_at_most_as_long_as_the_positions():
    assert configured(max_length=512).max_length == 512
    assert configured(max_length=None).max_length is None
    with pytest.raises(UsageError, match=r"1 \.\. 512 \(max_position_embeddings of hf_config\)"):
        configured(max_length=513)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hf_config is not JSON"),
        ("[]", "hf_config must be a JSON object, got list"),
        ("{}", "of the type None"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "occurs twice"),
        ('{"model_type": "llama", "rms_norm_eps": NaN}', "NaN"),
        ('{"model_type": "bert"}', "(?s)of the type 'bert'.*llama, mistral, qwen2, qwen3, gpt2"),
        ('{"model_type": "mistral", "sliding_window": 4096}', "a mistral model with a sliding"),
        ('{"model_type": "llama", "quantization_config": {"bits": 4}}', "with quantization_config"),
        ('{"model_type": "llama", "rope_scaling": {"type": "longrope"}}', "of the type 'longrope'"),
        ('{"model_type": "thinkers", "model": "thinker", "settings": {}}', "an exported 'thinker'"),
        ('{"model_type": "thinkers", "model": "decoder"}', "settings in hf_config must be an obj"),
    ],
)
def test_what_is_no_configuration_of_layers_that_can_be_looped_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        HFLooped.Config(hf_config=text)


def test_an_error_of_three_lines_has_three_on_the_command_line():
    with pytest.raises(UsageError) as error:
        build_part(HFLooped.Config, {"hf_config": '{"model_type": "bert"}'}, "model")
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["found", "expected", "fix"]


def test_a_window_that_is_not_used_is_none():
    text = '{"model_type": "qwen2", "use_sliding_window": false, "sliding_window": 8}'
    assert HFLooped.Config(hf_config=text).dim == 128


def test_the_data_has_no_path_and_one_text_for_equal_entries():
    given = WHOLE | {"_name_or_path": "/home/me/model", "torch_dtype": "bfloat16", "auto_map": {}}
    assert to_text(given) == to_text(dict(reversed(WHOLE.items())))
    assert json.loads(to_text(given)) == WHOLE
    own = {"model_type": "thinkers", "model": "decoder", "settings": {"dim": 8}, "hidden_size": 8}
    assert json.loads(to_text(own)).keys() == {"model_type", "model", "settings"}
    with pytest.raises(UsageError, match="values of JSON"):
        to_text({"model_type": "llama", "x": {1, 2}})


def test_families_are_documented():
    assert set(FAMILIES) == {"llama", "mistral", "qwen2", "qwen3", "gpt2", "thinkers"}


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(MODELS, "hf_looped", raising=False)


def test_without_the_extra_the_error_has_the_pip_command(without_transformers):
    with pytest.raises(UsageError, match=r"pip install \"thinkers\[hf\]\""):
        thinkers.build_model("hf_looped", vocab_size=7)
    with pytest.raises(UsageError, match=r"pip install \"thinkers\[hf\]\""):
        HFLooped(HFLooped.Config(vocab_size=7))
    data = thinkers.RECIPES["add/decoder"]().to_dict()
    data["model"] = {"name": "hf_looped"}
    with pytest.raises(UsageError, match=r"pip install \"thinkers\[hf\]\""):
        Config.from_dict(data)


def test_a_public_name_of_an_extra_is_no_part_of_a_star_import():
    assert "retrofit" in dir(thinkers) and "retrofit" not in thinkers.__all__

"""Measured scores are shown only for the settings that they were measured with."""

import json

import pytest

from thinkers import recipes


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that writes results of add/decoder with changed settings."""

    def write(change):
        settings = recipes.settings_of(recipes.RECIPES["add/decoder"]())
        change(settings)
        seeds = {
            str(seed): {"scores": {"exact": exact}, "cpu_minutes": 2.0, "minutes": 9.0}
            for seed, exact in enumerate((0.9, 1.0))
        }
        entry = {"settings": settings, "primary_metric": "exact", "seeds": seeds}
        (tmp_path / "results.json").write_text(json.dumps({"add/decoder": entry}))
        monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results.json")

    return write


def test_a_measured_recipe_shows_mean_and_standard_deviation(measured):
    measured(lambda settings: None)
    assert recipes.score("add/decoder") == "exact 0.950 ± 0.071 (2 seeds, 2.0 minutes)"
    assert recipes.score("add/thinker") == "not measured"


def test_a_setting_added_since_the_measurement_counts_as_its_default(measured):
    measured(lambda settings: settings["model"].pop("dropout"))
    assert "add/decoder" in recipes.results()


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings["model"].update(dim=96),
        lambda settings: settings["training"].pop("lr"),
        lambda settings: settings["task"].update(gone=1),
        lambda settings: settings["model"].update(name="gone"),
    ],
)
def test_a_measurement_with_other_settings_is_not_shown(measured, change):
    measured(change)
    assert recipes.score("add/decoder") == "not measured"

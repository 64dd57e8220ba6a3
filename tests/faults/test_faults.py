"""The benchmark of faults: its trials add up, and what is lost is counted."""

import importlib
import json

import faults
import pytest
from fault_cases import Export
from faulty_disk import CommandError
from paths import ROOT


class Forgetful(Export):
    """An export that is gone however it ends, and whose error is none of the library's."""

    name = "forgetful export"

    def act(self, folder):
        try:
            super().act(folder)
        except Exception as error:
            raise CommandError(5, "unknown") from error

    def lost(self, folder, ended):
        return ["all is gone"]


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(faults, "CASES", (Export, Forgetful))
    monkeypatch.setattr(faults, "WRITING", (Export, Forgetful))


def test_trials_add_up_and_are_not_repeated(tmp_path, known, capsys):
    first = faults.measure(Export, tmp_path, 2)
    assert [x["tried"] for x in first.values()] == [2, 2, 2, 2] and len(first) == 4
    kept = json.loads((tmp_path / "export.json").read_text())
    kept["deaths"]["lost"] = ["an earlier loss"]
    (tmp_path / "export.json").write_text(json.dumps(kept))
    assert faults.measure(Export, tmp_path, 2) == kept
    more = faults.measure(Export, tmp_path, 4)
    assert more["deaths"] == {"of": kept["deaths"]["of"], "tried": 4, "lost": ["an earlier loss"]}
    assert "export, refusals: 0 lost in 4 of" in capsys.readouterr().out
    # Another edition of the operation begins anew.
    kept["full"]["of"] += 1
    kept["full"]["lost"] = ["an earlier loss"]
    (tmp_path / "export.json").write_text(json.dumps(kept))
    assert faults.measure(Export, tmp_path, 4)["full"] == more["full"]


def test_what_was_interrupted_has_all_its_kinds_and_goes_on(tmp_path, known, monkeypatch):
    monkeypatch.setattr(faults, "loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        faults.measure(Export, tmp_path, 1)
    kept = json.loads((tmp_path / "export.json").read_text())
    assert [x["tried"] for x in kept.values()] == [1, 1, 1, 0]
    monkeypatch.setattr(faults, "loss", lambda *_: "")
    assert [x["tried"] for x in faults.measure(Export, tmp_path, 1).values()] == [1, 1, 1, 1]


def test_what_is_lost_is_listed(tmp_path, known):
    found = faults.measure(Forgetful, tmp_path, 2)
    assert {name: len(x["lost"]) for name, x in found.items()} == dict.fromkeys(found, 2)
    assert all("all is gone" in text for x in found.values() for text in x["lost"])
    assert "code 5" in found["refusals"]["lost"][0]


def test_a_trial_of_a_place_that_is_not_there_is_no_success(tmp_path):
    case, begun = Export(), tmp_path / "begun"
    begun.mkdir()
    case.begin(begun)
    number, expected = faults.count(case, begun, tmp_path, changes=False)
    attempt = faults.failing(case, begun, ("EIO",), expected, changes=False)
    assert attempt(number - 1, 0) == []
    assert attempt(number, 0) == [f"export, EIO at {number + 1}: nothing failed"]


def test_the_table_says_what_was_not_tried(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    tables = importlib.import_module("reliability_tables")
    whole, part = {"of": 30, "tried": 30, "lost": []}, {"of": 2000, "tried": 10, "lost": ["x"]}
    found = {"save": {"deaths": whole}, "train": {"deaths": part}}
    monkeypatch.setattr(tables, "_read", lambda _: found)
    shown = "1 lost in 40 of 2,030 deaths of 2 operations (train: 10 of 2,000)"
    assert tables.faults("deaths", "deaths") == shown
    assert tables.faults("images", "images") == "not measured"

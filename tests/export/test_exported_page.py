"""docs/hugging_face.md: its commands and its code run from top to bottom."""

import os
import re
import shlex

import pytest
from paths import ROOT

from thinkers.cli.main import main

pytest.importorskip("transformers")
pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

PAGE = (ROOT / "docs" / "hugging_face.md").read_text()
TRAIN = "train copy/looped --out runs/copy-looped-0 --model.dim 16 --model.num_heads 2"
SHORT = "--training.num_updates 1 --training.batch_size 4 --training.evaluate_examples 4"


def test_the_commands_and_the_code_of_the_page_run(tmp_path, monkeypatch, capsys):
    from transformers import dynamic_module_utils as dynamic

    (tmp_path / "modules").mkdir()
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    os.mkdir("runs")
    os.mkdir("tasks")
    for kind in ("yaml", "json"):
        (code,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
        (tmp_path / "tasks" / f"digits.{kind}").write_text(code)
    assert main([*TRAIN.split(), *SHORT.split(), "--training.device=cpu"]) == 0
    for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        if kind == "python":
            exec(code, {})
            continue
        if kind in ("yaml", "json", "markdown"):
            continue
        for line in code.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "thinkers"
            assert main(words[1:]) == 0, capsys.readouterr().err
    card = (tmp_path / "copy-looped" / "README.md").read_text().splitlines()
    (shown,) = re.findall(r"^```markdown\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert [line for line in shown.splitlines() if line not in card] == []

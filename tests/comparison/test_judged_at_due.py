"""Comparison on a task that is judged at due steps, where more steps ask for something else."""

import thinkers
from thinkers.comparison import one_run
from thinkers.comparison.runner import compare
from thinkers.comparison.summary import Findings, limits

SMALL = {
    "task.width": 4,
    "task.max_updates": 4,
    "model.dim": 16,
    "model.num_heads": 2,
    "model.num_steps": 4,
    "training.batch_size": 7,
}


def test_a_task_that_is_judged_at_due_steps_is_compared_at_them(tmp_path, plain_pages):
    sizes = dict(budget=6e7, seeds=2, num_examples=40, settings=SMALL, out=tmp_path)
    found = compare("automaton", ["decoder", "looped"], **sizes)
    by_name = {name: runs[0].record for name, runs in found.results.items()}
    assert by_name["decoder"]["num_steps"] == 1 and by_name["looped"]["num_steps"] == "due"
    record = by_name["looped"]
    assert record["scores"].keys() > {"due", "1", "2", "4"}
    model, task = thinkers.open_run(tmp_path / "runs" / "looped-0")
    graded = type(task)(task.config, one_run.EXAMPLES_SEED).grade(model, "test", 40, "due")
    assert record["score"] == record["scores"]["due"] == graded.mean()
    # Rows of 1 to 4 updates are equally likely: their mean cost is between those of 1 and 4 steps.
    work = record["answer_flops"]
    assert work["1"] < work["due"] < work["4"]
    findings = Findings(found)
    assert findings.thinking == {} and not any("gets worse" in x for x in limits(findings))
    assert any(x.startswith("looped is graded with as many") for x in limits(findings))
    assert "an oracle" in (tmp_path / "report.html").read_text()

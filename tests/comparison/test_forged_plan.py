"""The plan of a comparison whose values were changed, with a digest that fits."""

import json

import pytest

from thinkers.comparison.plan import Plan
from thinkers.comparison.results import read
from thinkers.errors import DamagedError, UsageError
from thinkers.json_files import with_digest

ASKED = {"task": "add", "models": ["decoder", "looped"], "match": None, "budget": "3 updates"}
ASKED |= {"seeds": 1, "lrs": (), "controls": (), "num_examples": 3}
TINY = {"task.max_digits": 1, "model.dim": 8, "model.num_heads": 1, "training.batch_size": 2}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The content of config.json of a comparison."""
    folder = tmp_path_factory.mktemp("plan")
    Plan.of(**ASKED, settings=TINY).write(folder)
    found = json.loads((folder / "config.json").read_text())
    del found["sha256"]
    return json.dumps(found)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda plan: plan["contenders"][1].update(name="../../elsewhere"), DamagedError),
        (lambda plan: plan["contenders"][1].update(name="a\0b"), DamagedError),
        (lambda plan: plan["contenders"].pop(), DamagedError),
        (lambda plan: plan["comparison"].pop("seeds"), DamagedError),
        (lambda plan: plan["comparison"].update(more=1), DamagedError),
        (lambda plan: plan["comparison"].update(seeds=2**31), UsageError),
    ],
)
def test_a_plan_that_no_version_writes_is_refused(plan, tmp_path, change, kind):
    file = tmp_path / "config.json"
    file.write_bytes(with_digest(json.loads(plan)))
    read(tmp_path)
    found = json.loads(plan)
    change(found)
    file.write_bytes(with_digest(found))
    with pytest.raises(kind):
        read(tmp_path)

"""Figures of a comparison: a single point is drawn whatever its FLOPs."""

import io
from types import SimpleNamespace

import pytest

from thinkers.comparison.page import steps_figure
from thinkers.evaluation.statistics import Interval


@pytest.mark.parametrize("by_flops", [True, False])
def test_a_figure_of_one_point_has_an_axis_of_some_width(by_flops):
    pytest.importorskip("matplotlib")
    for flops in (1, 189_504, 10**6, 10**15 + 7):
        findings = SimpleNamespace(
            scores={"decoder": {1: Interval(0.0, 0.0, 0.0)}},
            results={"decoder": [SimpleNamespace(record={"answer_flops": {"1": flops}})]},
            usual={"decoder": 1},
            comparison=SimpleNamespace(
                plan=SimpleNamespace(primary_metric="exact", higher_is_better=True)
            ),
        )
        figure = steps_figure(findings, by_flops)
        low, high = figure.axes[0].get_xlim()
        assert high / low > 2
        assert any(low <= place <= high for place in figure.axes[0].get_xticks())
        figure.savefig(io.BytesIO(), format="svg")

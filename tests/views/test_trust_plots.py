"""What a report measured, as figures: every number of it is drawn where it belongs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.views.conftest import HOSTILE, make_maps
from workbench.analysis.trust.evidence import summarise
from workbench.views.still import still
from workbench.views.trust_plots import evidence_html, perturbation_plot, randomisation_plot, trust_plot


def report() -> Any:
    rng = np.random.default_rng(0)
    names = ("attnlrp", HOSTILE, "random", "motion", "centre")
    scores = {m: {name: rng.random(12) for name in names} for m in ("deletion_blur", "road", "mass")}
    summary, ranking = summarise(
        scores, np.arange(12), priors=("random", "motion", "centre"), resamples=50, seed=0
    )  # fmt: skip
    curves = {(name, "deletion_blur"): rng.random((12, 5)) for name in names}
    stages = ["none", "head", "block 1", "block 0", "embedding"]
    cascade = pd.DataFrame([
        {"stage": s, "clip": c, "spearman": 0.0, "spearman_absolute": 1 - 0.2 * i + 0.02 * c, "method": name}
        for name in (HOSTILE, "attnlrp") for i, s in enumerate(stages) for c in (-1, 1)
    ])  # fmt: skip
    return SimpleNamespace(
        task="action", summary=summary, ranking=ranking, curves=curves, verdicts={"attnlrp": "no better than random"},
        scores=pd.DataFrame({"clip_id": range(12)}), randomisation=cascade,
    )  # fmt: skip


def test_trust_plot_draws_every_method_on_every_metric_with_its_interval() -> None:
    found = report()
    fig = trust_plot(found)
    assert len(fig.data) == 3 * 5
    table = found.summary.set_index(["metric", "method"])
    for at, metric in enumerate(("deletion_blur", "road", "mass")):
        for y, method in enumerate(found.ranking.method):
            dot, line = fig.data[5 * at + y], table.loc[(metric, method)]
            assert (dot.x[0], dot.y[0]) == (pytest.approx(line.value), y)
            assert dot.x[0] + dot.error_x.array[0] == pytest.approx(line.high)
            assert dot.x[0] - dot.error_x.arrayminus[0] == pytest.approx(line.low)
            assert (dot.marker.symbol == "square") == (method in ("random", "motion", "centre"))
    assert [a.text for a in fig.layout.annotations] == ["deletion, blurred ↓", "ROAD ↑", "mass in mask ↑"]
    assert "<img" not in still(fig) and len(trust_plot(found, ["road"]).data) == 5
    with pytest.raises(ValueError, match="this report has"):
        trust_plot(found, ["pointing"])


def test_perturbation_plot_draws_the_mean_curve_of_each_map() -> None:
    found = report()
    fig = perturbation_plot(found)
    assert len(fig.data) == 5
    for line, (name, _) in zip(fig.data, found.curves, strict=True):
        np.testing.assert_allclose(line.y, found.curves[name, "deletion_blur"].mean(0))
    assert list(fig.data[0].x) == [0, 25, 50, 75, 100]
    with pytest.raises(ValueError, match="no curves of 'insertion_blur'"):
        perturbation_plot(found, "insertion_blur")


def test_randomisation_plot_keeps_the_order_of_the_cascade() -> None:
    found = report()
    fig = randomisation_plot(found)
    assert len(fig.data) == 2 and "<img" not in still(fig)
    np.testing.assert_allclose(fig.data[0].y, [1, 0.8, 0.6, 0.4, 0.2])
    assert list(fig.layout.xaxis.ticktext) == ["none", "head", "block 1", "block 0", "embedding"]
    found.randomisation = None
    assert "not measured" in randomisation_plot(found).layout.annotations[0].text


def test_a_method_has_one_colour_in_all_figures_of_a_report() -> None:
    found = report()
    lines = [*perturbation_plot(found).data, *randomisation_plot(found).data]
    dots = {dot.name: dot.marker.color for dot in trust_plot(found, ["road"]).data}
    assert len(set(dots.values())) == 3  # two methods and grey
    assert all(line.line.color == dots[line.name] for line in lines)


def test_evidence_html_tells_verdict_metrics_and_prior_or_that_there_is_none() -> None:
    found, maps = report(), make_maps("attnlrp")
    told = evidence_html(found, "any name", maps)  # found by its method
    row = found.summary.set_index(["method", "metric"]).loc[("attnlrp", "road")]
    assert "12 clips: no better than random" in told
    assert f"ROAD {row.value:.2f} [{row.low:.2f}, {row.high:.2f}] (higher is better" in told
    assert "none given" in evidence_html(None, "x", maps)
    assert "none given" in evidence_html(found, "x", make_maps("rollout"))  # not in the report

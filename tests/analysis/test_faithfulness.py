from dataclasses import replace

import numpy as np
import pytest

from tests.analysis.toys import held_out, trained
from workbench.analysis.explain import evaluating, explain
from workbench.analysis.faithfulness import (
    METRICS,
    PERTURBATION_METRICS,
    explained_output,
    explanation_report,
    measure,
    token_masks,
)
from workbench.analysis.trust.priors import motion_map

FAST = {"steps": 4, "perturbations": 6, "resamples": 1000, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def clips():
    return held_out()[:10]


@pytest.fixture(scope="module")
def report(clips):
    return explanation_report(
        trained(), clips.frames, ("integrated_gradients", "rollout"), masks=clips.masks["stripes"],
        sensitivity_samples=1, randomise=True, **FAST,
    )  # fmt: skip


def test_explanation_report_ranks_a_good_method_above_the_priors(report):
    assert report.ranking.method[0] == "integrated_gradients"
    assert set(report.ranking.method[2:]) == {"random", "motion", "centre"}
    assert report.verdicts["integrated_gradients"].startswith("better than random")
    assert list(dict.fromkeys(report.summary.metric)) == [*METRICS, "sensitivity_max"]
    assert len(report.scores) == 5 * 11 * 10 and report.groups == 10
    stages = report.randomisation.groupby(["method", "stage"]).spearman.mean()
    assert stages["integrated_gradients", "none"] == pytest.approx(1)
    assert abs(stages["integrated_gradients", "embedding"]) < 0.5


def test_explanation_report_scores_are_those_of_each_metric_alone(report, clips):
    run = trained()
    with evaluating(run.tml):
        output = explained_output(run.tml, run.tasks[0], clips.frames, report.target, "cpu")
        scores, curves = measure(output, {"motion": motion_map(clips.frames, (4, 4, 4))}, ("road", "deletion_blur"),
                                 steps=4, progress=False)  # fmt: skip
    rows = report.scores[report.scores.method == "motion"]
    for metric, by_method in scores.items():
        np.testing.assert_allclose(rows[rows.metric == metric].value, by_method["motion"], atol=1e-6)
    # Deletion begins with the clip itself and ends with the fill alone, whatever the map.
    curve = report.curves["rollout", "deletion_blur"]
    np.testing.assert_allclose(curve[:, [0, -1]], curves["motion", "deletion_blur"][:, [0, -1]], atol=1e-6)


def test_explanation_report_of_the_motion_map_itself_says_it_is_no_better(clips):
    run = trained()
    maps = explain(run, clips.frames, method="rollout", device="cpu", progress=False)
    fake = replace(maps, values=motion_map(clips.frames, maps.grid))
    report = explanation_report(run, clips.frames, {"fake": fake}, masks=clips.masks["stripes"], **FAST)
    assert "no better than" in report.verdicts["fake"]
    against = report.summary[report.summary.method == "fake"]
    np.testing.assert_array_equal(against.vs_motion, 0)
    assert (against.vs_motion_p == 1).all()


def test_explanation_report_without_masks_and_with_options_per_method(clips):
    methods = {"IG from mean": {"method": "integrated_gradients", "baseline": "mean"}}
    report = explanation_report(trained(), clips.frames, methods, groups=["a", "b"] * 5, metrics=("road",), **FAST)
    assert report.groups == 2 and set(report.summary.metric) == {"road"}
    assert report.verdicts["IG from mean"].startswith("too few groups")
    assert report.randomisation is None


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ((), {}, "methods is empty"),
        ({"motion": "rollout"}, {}, "name priors"),
        (("rollout",), {"metrics": ("pointing",)}, "without masks"),
        (("rollout",), {"masks": np.ones((3, 4, 4, 4), bool)}, "3 masks for 10"),
        (("rollout",), {"masks": np.ones((10, 4, 4, 4))}, "expected bool"),
        (("rollout",), {"groups": ["a"]}, "1 groups for 10"),
    ],
)
def test_explanation_report_refuses_what_it_cannot_do(clips, methods, options, message):
    with pytest.raises(ValueError, match=message):
        explanation_report(trained(), clips.frames, methods, **(FAST | {"metrics": ("road",)} | options))


def test_explanation_report_refuses_maps_of_other_clips(clips):
    run = trained()
    other = explain(run, held_out()[10:20].frames, method="rollout", device="cpu", progress=False)
    with pytest.raises(ValueError, match="of other clips"):
        explanation_report(run, clips.frames, {"rollout": "rollout", "other": other}, metrics=("road",), **FAST)


def test_token_masks_take_tokens_that_are_more_than_half_covered():
    pixels = np.zeros((1, 2, 4, 4), bool)
    pixels[0, :, :2, :2] = pixels[0, 0, 2:, 2:] = True  # one token wholly, one half
    assert token_masks(pixels, (1, 2, 2)).ravel().tolist() == [True, False, False, False]
    assert set(PERTURBATION_METRICS) < set(METRICS)

import numpy as np
import pytest

from workbench.analysis.trust.evidence import ExplanationReport, summarise

PRIORS = ("random", "motion")


def scores_of(method: float, motion: float, random: float, n: int = 40, metrics=("road", "deletion_blur")):
    """Each metric's values scatter by 0.1 about what is given, higher better; deletion turned round."""
    rng = np.random.default_rng(0)
    found = {}
    for metric in metrics:
        sign = -1 if metric.startswith("deletion") else 1
        means = {"mine": method, "motion": motion, "random": random}
        found[metric] = {name: sign * (mean + 0.1 * rng.normal(size=n)) for name, mean in means.items()}
    return found


def summary_of(scores, groups=None, n=40):
    return summarise(scores, np.arange(n) if groups is None else groups, priors=PRIORS, resamples=1000, seed=0)


def test_summarise_means_intervals_and_gains_by_hand():
    scores = scores_of(0.8, 0.3, 0.1)
    summary, _ = summary_of(scores)
    row = summary[(summary.method == "mine") & (summary.metric == "deletion_blur")].iloc[0]
    mine, motion = scores["deletion_blur"]["mine"], scores["deletion_blur"]["motion"]
    assert row.value == pytest.approx(mine.mean()) and row.better == "lower"
    assert row.vs_motion == pytest.approx(motion.mean() - mine.mean())
    # A bootstrap interval of a mean of 40 is close to the normal one.
    half = 1.96 * mine.std() / np.sqrt(40)
    assert (row.low, row.high) == pytest.approx((mine.mean() - half, mine.mean() + half), abs=0.008)
    assert row.vs_motion_low < row.vs_motion < row.vs_motion_high


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((0.8, 0.3, 0.1), "better than random, the motion prior (on 2 or more of 2 metrics)"),
        ((0.5, 0.5, 0.1), "no better than the motion prior"),
        ((0.3, 0.8, 0.1), "worse than the motion prior (on 2 of 2 metrics)"),
        ((0.1, 0.5, 0.1), "no better than random"),
    ],
)
def test_verdict_names_the_prior_that_is_not_beaten(means, verdict):
    _, ranking = summary_of(scores_of(*means))
    assert ranking.set_index("method").verdict["mine"].startswith(verdict)
    assert (ranking.verdict[ranking.method != "mine"] == "").all()


def test_verdict_needs_groups_and_the_ranking_has_no_width_without_them():
    scores = scores_of(0.8, 0.3, 0.1)
    _, ranking = summary_of(scores, groups=np.arange(40) % 5)
    assert ranking.verdict[0] == "too few groups (5; 6 are needed)"
    _, alone = summary_of(scores, groups=np.zeros(40, int))
    assert alone[["rank_low", "rank_high"]].isna().all(axis=None)


def test_ranking_is_one_two_three_when_metrics_agree_and_between_when_they_do_not():
    _, ranking = summary_of(scores_of(0.8, 0.4, 0.1))
    assert dict(zip(ranking.method, ranking["rank"], strict=True)) == {"mine": 1, "motion": 2, "random": 3}
    torn = scores_of(0.8, 0.4, 0.1)
    torn["road"]["mine"], torn["road"]["motion"] = torn["road"]["motion"], torn["road"]["mine"]
    _, ranking = summary_of(torn)
    assert dict(zip(ranking.method, ranking["rank"], strict=True)) == {"mine": 1.5, "motion": 1.5, "random": 3}


def test_steadiness_is_shown_but_not_counted():
    scores = scores_of(0.8, 0.3, 0.1) | {"sensitivity_max": {"mine": np.ones(40), "motion": np.zeros(40),
                                                             "random": np.zeros(40)}}  # fmt: skip
    summary, ranking = summary_of(scores)
    assert "2 or more of 2 metrics" in ranking.verdict[0] and ranking["rank"][0] == 1
    assert summary[summary.metric == "sensitivity_max"].value.tolist() == [1, 0, 0]


def test_a_clip_without_a_value_is_left_out_of_that_metric_for_all():
    scores = scores_of(0.8, 0.3, 0.1)
    scores["road"]["mine"][:10] = np.nan
    summary, _ = summary_of(scores)
    row = summary[(summary.method == "motion") & (summary.metric == "road")].iloc[0]
    assert row.value == pytest.approx(scores["road"]["motion"][10:].mean())
    other = summary[(summary.method == "motion") & (summary.metric == "deletion_blur")].iloc[0]
    assert other.value == pytest.approx(scores["deletion_blur"]["motion"].mean())


def test_two_copies_of_every_clip_do_not_narrow_the_interval_of_groups():
    scores = scores_of(0.8, 0.3, 0.1)
    twice = {m: {k: np.tile(v, 2) for k, v in by.items()} for m, by in scores.items()}
    once, _ = summary_of(scores)
    grouped, _ = summary_of(twice, groups=np.tile(np.arange(40), 2))
    np.testing.assert_allclose(grouped[["low", "high"]], once[["low", "high"]], atol=1e-12)


def test_report_shows_metrics_side_by_side_with_their_direction():
    import pandas as pd

    scores = scores_of(0.8, 0.3, 0.1)
    summary, ranking = summary_of(scores)
    table = pd.DataFrame({"clip_id": [str(i) for i in range(40)]})
    report = ExplanationReport("action", ("left",) * 40, table, summary, ranking, {}, {}, 40, 1000, None, ("A note.",))
    text = repr(report)
    assert "road ↑" in text and "deletion_blur ↓" in text and "A note." in text and "40 clips in 40 groups" in text
    assert list(report.verdicts) == ["mine"]
    assert report.formatted().method.tolist() == ["mine", "motion", "random"]


def test_verdict_asks_for_resamples_when_no_p_value_could_be_small_enough():
    _, ranking = summarise(scores_of(0.8, 0.3, 0.1), np.arange(40), priors=PRIORS, resamples=50, seed=0)
    assert ranking.verdict[0].startswith("too few resamples (50) for 2 metrics")

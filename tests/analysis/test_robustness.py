"""Robustness: predictions under damage worked out by hand from a run whose model is the mean brightness."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.screened import TASKS, grey_video
from tests.analysis.screened import BrightRun as _BrightRun
from workbench.analysis import robustness as module
from workbench.analysis.comparing.evidence import Evidence
from workbench.analysis.robustness import CLEAN, Robustness, named_runs, robustness
from workbench.data.loading.guard import run_guarded
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable

BrightRun: Any = _BrightRun  # it is no Run by name, only by what it has
GUARDED = "workbench.analysis.stress.answers.run_guarded"
LEVELS = [20, 50, 80, 110, 140, 170, 200, 230]


def in_this_process(function, items, **options):
    """What ``run_guarded`` does, without children, whose start takes longer than all that these tests do."""
    for item in items:
        yield function(**item)


@pytest.fixture(scope="module", autouse=True)
def _inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GUARDED, in_this_process)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    root = tmp_path_factory.mktemp("grey")
    rows = []
    for i, level in enumerate(LEVELS):
        grey_video(root / f"{i}.mp4", [level] * 8)
        rows.append({
            "clip_id": f"c{i}", "path": f"{i}.mp4", "start_seconds": np.nan, "end_seconds": np.nan, "split": "test",
            "group": f"g{i}", "action": TASKS[0].classes[int(level > 127)],
            "safety": TASKS[1].classes[int(level > 127)], "quality": level / 255,
        })  # fmt: skip
    return ClipTable(pd.DataFrame(rows), TASKS, root=root)


@pytest.fixture(scope="module")
def found(table: ClipTable) -> Robustness:
    runs = {"one": BrightRun(), "two": BrightRun(name="two")}
    return robustness(
        runs, table, corruptions=["brightness", "freeze", "blur"], severities=[2, 4], resamples=200, progress=False
    )


def test_robustness_damages_what_the_model_sees_by_the_amount_of_the_table(found: Robustness):
    """Brightness at severity 2 adds 0.2 to a grey picture, capped at 1; the run's quality is the brightness itself."""
    clean, lit = (found.predictions["one", kind, s].predictions for kind, s in ((CLEAN, 0), ("brightness", 2)))
    before, after = (f[f.task == "quality"].set_index("clip_id").prediction for f in (clean, lit))
    np.testing.assert_allclose(before.to_numpy(), np.array(LEVELS) / 255, atol=0.01)
    np.testing.assert_allclose(after.to_numpy(), np.minimum(before.to_numpy() + 0.2, 1), atol=0.004)


def test_robustness_scores_every_cell_against_the_clean_one(found: Robustness):
    rows = found.table[(found.table.run == "one") & (found.table.task == "action")]
    lit = np.minimum(np.array(LEVELS) / 255 + 0.4, 1) > 0.5  # brightness, severity 4
    right = float((lit == (np.array(LEVELS) > 127)).mean())
    cell = rows[(rows.corruption == "brightness") & (rows.severity == 4)].iloc[0]
    assert right == 5 / 8
    assert (cell.value, cell.change, cell.n, cell.groups) == (right, right - 1, 8, 8)
    assert cell.change_low < cell.change < cell.change_high <= 0
    # A picture that stands still, and one without detail, change nothing on plain grey clips, not even by chance.
    same = rows[rows.corruption.isin(["freeze", "blur", CLEAN])]
    assert (same.value == 1).all() and (same[["change", "change_low", "change_high"]] == 0).all().all()
    assert len(found.table) == 2 * 3 * (1 + 3 * 2)


def test_summary_is_the_mean_over_cells_and_what_is_kept_of_the_way_from_chance(found: Robustness):
    rows = found.table[(found.table.run == "one") & (found.table.task == "action")]
    damaged = rows[rows.corruption != CLEAN].value
    line = found.summary[(found.summary.run == "one") & (found.summary.task == "action")].iloc[0]
    assert (line.clean, line.chance, line.worst) == (1.0, 0.5, "brightness")
    assert line["mean"] == pytest.approx(damaged.mean())
    assert line.kept == pytest.approx((damaged.mean() - 0.5) / 0.5)
    assert line.kept_low < line.kept < line.kept_high


def test_runs_that_answer_alike_score_alike_and_the_same_clips_are_shown_to_both(found: Robustness):
    one, two = (found.table[found.table.run == r].drop(columns="run").reset_index(drop=True) for r in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_robustness_is_the_same_again_in_child_processes_whatever_else_is_asked_for(
    table: ClipTable, found: Robustness, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(GUARDED, run_guarded)
    again = robustness(BrightRun(name="one"), table, corruptions=["blur", "brightness"], severities=[4, 2],
                       resamples=200, workers=1, progress=False)  # fmt: skip
    key = ["task", "corruption", "severity"]
    old = found.table[(found.table.run == "one") & (found.table.corruption != "freeze")].sort_values(key)
    pd.testing.assert_frame_equal(again.table.sort_values(key).reset_index(drop=True), old.reset_index(drop=True))


def _evidence(values: dict[str, float]) -> Evidence:
    n = np.zeros(4)
    return Evidence(TASKS[0], "accuracy", n, n, n, n, {}, {}, {}, values, {k: n for k in values}, 4)


def test_mean_corruption_error_is_that_of_hendrycks_and_dietterich():
    """Errors .2 + .4 against .4 + .8, and .5 + .5 against .5 + .5: the mean of 1/2 and 1."""
    mine = {("blur", 1): "a", ("blur", 2): "b", ("noise", 1): "c", ("noise", 2): "d", (CLEAN, 0): "e"}
    base = {cell: key + "'" for cell, key in mine.items()}
    values = {"a": 0.8, "b": 0.6, "c": 0.5, "d": 0.5, "e": 1.0, "a'": 0.6, "b'": 0.2, "c'": 0.5, "d'": 0.5, "e'": 0.9}
    one = _evidence(values)
    assert module._relative_error(one, mine, base) == pytest.approx(0.75)
    assert module._relative_error(one, base, base) == 1
    perfect = _evidence(values | {"c'": 1.0, "d'": 1.0})
    assert math.isnan(module._relative_error(perfect, mine, base))


def test_mce_of_the_reference_is_one_and_absent_for_a_single_run(table: ClipTable, found: Robustness):
    action = found.summary[found.summary.task == "action"]
    assert action.mce.isna().all()  # freeze and blur cost the reference nothing: an error relative to none
    lit = robustness({"one": BrightRun(), "two": BrightRun()}, table, corruptions=["brightness"], severities=[5],
                     task="action", reference="two", resamples=50, progress=False)  # fmt: skip
    assert lit.summary.mce.tolist() == [1.0, 1.0] and lit.reference == "two"
    assert "relative to 'two'" in lit.caption and "mce" in lit.formatted()


def test_curve_begins_with_the_clean_score(found: Robustness):
    curve = found.curve("one", "action", "brightness")
    assert curve.severity.tolist() == [0, 2, 4] and curve.corruption.tolist() == [CLEAN, "brightness", "brightness"]
    with pytest.raises(ValueError, match="no 'noise' of task 'action'.*brightness"):
        found.curve("one", "action", "noise")


def test_kept_is_not_said_of_a_score_that_may_be_chance(table: ClipTable):
    frame = table.frame.assign(action=[TASKS[0].classes[i % 2] for i in range(len(table))])  # labels without meaning
    odd = ClipTable(frame, TASKS[:1], root=table.root)
    found = robustness(BrightRun(tasks=TASKS[:1]), odd, corruptions=["blur"], severities=[1], resamples=100,
                       progress=False)  # fmt: skip
    assert found.summary.kept.isna().all() and found.formatted().kept.tolist() == [""]


def test_a_clip_that_cannot_be_damaged_is_named_and_left_out_everywhere(
    table: ClipTable, monkeypatch: pytest.MonkeyPatch
):
    def refuse(function, items, **options):
        from workbench.data.clips import ClipDecodeError

        for item in items:
            path = str(item["path"])
            bad = path.endswith("3.mp4") and item["kind"] == "freeze"
            yield ClipDecodeError(path, "too long") if bad else function(**item)

    monkeypatch.setattr(GUARDED, refuse)
    found = robustness(BrightRun(), table, corruptions=["freeze", "blur"], severities=[1], resamples=50, progress=False)
    assert found.lost == {"c3": "freeze: too long"} and set(found.table.n) == {7}
    assert "1 clip(s) could not be damaged" in found.caption


def test_runs_that_read_clips_differently_are_shown_each_its_own(table: ClipTable):
    small = BrightRun(name="small", protocol=Protocol(num_frames=2, size_px=16, decoder="pyav"))
    found = robustness([BrightRun(), small], table, corruptions=["brightness"], severities=[1], resamples=50,
                       progress=False)  # fmt: skip
    assert found.protocols["small"].size_px == 16 and found.protocols["bright"].size_px == 32
    quality = found.table[(found.table.task == "quality") & (found.table.corruption == CLEAN)]
    assert quality.value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("change", "said"), [
    ({"corruptions": "blur"}, "give a list"), ({"corruptions": []}, "give a list"),
    ({"corruptions": ["blur", "rain"]}, "'rain' is none"), ({"severities": [0]}, "some of 1 to 5"),
    ({"reference": "other"}, "'other' is not among the runs"), ({"split": "val"}, "no clips for split='val'"),
    ({"task": "speed"}, "task='speed'"),
])  # fmt: skip
def test_robustness_refuses(table: ClipTable, change: dict, said: str):
    with pytest.raises(ValueError, match=said):
        robustness(BrightRun(), table, **({"progress": False, "corruptions": ["blur"]} | change))


def test_named_runs_refuses_a_name_twice_and_none():
    with pytest.raises(ValueError, match="two runs have one name"):
        named_runs([BrightRun(), BrightRun()])
    with pytest.raises(ValueError, match="no run"):
        named_runs([])
    assert list(named_runs(BrightRun())) == ["bright"]


def test_a_report_shows_itself_with_names_escaped(table: ClipTable):
    found = robustness({"<b>": BrightRun()}, table, corruptions=["blur"], severities=[1], resamples=50, progress=False)
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()
    assert "mean under damage" in str(found) and "test split" in str(found)

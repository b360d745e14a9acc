"""Confusions and mistakes on tables small enough to count by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report

from workbench.analysis.errors import errors
from workbench.analysis.evaluate import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

ACTION = Task("action", "multiclass", ("left", "right", "up", "never"))
SAFETY = Task("safety", "binary", ("calm", "flash"))
QUALITY = Task("quality", "regression")
PROTOCOL = Protocol(num_frames=16, size_px=64)


def run_of(task: Task, target, prediction, probabilities=None, record=None) -> Predictions:
    n = len(target)
    frame = pd.DataFrame(
        {
            "clip_id": [f"clip{i}" for i in range(n)],
            "path": [f"videos/{i}.mp4" for i in range(n)],
            "group": [f"g{i}" for i in range(n)],
            "split": "test",
            "task": task.name,
            "target": np.asarray(target, float),
            "prediction": np.asarray(prediction, float),
        }
    )
    if probabilities is not None:
        frame["probabilities"] = np.asarray(probabilities).tolist()
    return Predictions("nano", (task,), frame, PROTOCOL, record or {})


def action_run() -> Predictions:
    target = [0, 0, 1, 2, 2, np.nan]
    prediction = [0, 1, 1, 0, 1, 2]
    sure = [0.9, 0.5, 0.7, 0.6, 0.8, 0.9]
    probabilities = np.array(
        [(1 - s) / 3 + (s - (1 - s) / 3) * np.eye(4)[p] for s, p in zip(sure, prediction, strict=True)]
    )
    return run_of(ACTION, target, prediction, probabilities, {"data": {"quarantined": 3}})


def test_errors_confusion_has_truth_in_rows_and_every_class():
    found = errors(action_run()).confusion
    assert found.index.tolist() == found.columns.tolist() == list(ACTION.classes)
    assert found.to_numpy().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert (found.index.name, found.columns.name) == ("truth", "predicted")


def test_errors_per_class_agrees_with_scikit_learn_and_is_nan_where_undefined():
    run = action_run()
    found = errors(run).per_class.set_index("class")
    kept = run.predictions[run.predictions.target.notna()]
    theirs = classification_report(
        kept.target, kept.prediction, labels=range(4), output_dict=True, zero_division=np.nan
    )
    for index, name in enumerate(ACTION.classes):
        expected = theirs[str(index)]
        ours = found.loc[name, ["precision", "recall", "f1", "support"]].to_numpy(float)
        assert ours == pytest.approx([expected[k] for k in ("precision", "recall", "f1-score", "support")], nan_ok=True)
    assert found.predicted.tolist() == [2, 3, 0, 0]
    assert found.loc["never", ["precision", "recall", "f1"]].isna().all()


def test_errors_mistakes_are_the_wrong_clips_most_confident_first():
    found = errors(action_run())
    assert found.mistakes.to_numpy().tolist() == [
        ["clip4", "videos/4.mp4", "up", "right", pytest.approx(0.8)],
        ["clip3", "videos/3.mp4", "up", "left", pytest.approx(0.6)],
        ["clip1", "videos/1.mp4", "left", "right", pytest.approx(0.5)],
    ]
    assert list(found.mistakes.columns) == ["clip_id", "path", "truth", "predicted", "confidence"]
    assert (found.n, found.missing, found.quarantined) == (5, 1, 3)
    assert "3 wrong of 5 clips" in found.caption and "1 without a label and 3 quarantined" in found.caption


def test_errors_of_a_binary_task_state_the_threshold_they_saw():
    p = np.array([0.1, 0.6, 0.5, 0.4])
    found = errors(run_of(SAFETY, [0, 0, 1, 1], p >= 0.5, np.c_[1 - p, p]))
    assert found.confusion.loc["calm", "flash"] == 1 and found.confusion.loc["flash", "calm"] == 1
    assert found.mistakes.confidence.tolist() == pytest.approx([0.6, 0.6])
    assert found.rule.startswith("threshold 0.5: 'flash'")
    moved = errors(run_of(SAFETY, [0, 0, 1, 1], p >= 0.3, np.c_[1 - p, p]))
    assert "1 do not follow threshold 0.5 on p(flash)" in moved.rule
    plain = errors(run_of(Task("safety", "binary"), [0, 1], [1, 1]))
    assert plain.mistakes.predicted.tolist() == ["1"] and plain.mistakes.confidence.isna().all()
    assert "without probabilities" in plain.rule


def test_errors_of_a_regression_are_residuals_by_size():
    found = errors(run_of(QUALITY, [0.5, 0.2, np.nan, 0.9], [0.4, 0.8, 0.0, 0.6]))
    assert found.mistakes.clip_id.tolist() == ["clip1", "clip3", "clip0"]
    assert found.mistakes.residual.tolist() == pytest.approx([0.6, -0.3, -0.1])
    assert found.confusion.empty and found.per_class.empty


def test_errors_do_not_depend_on_the_order_of_rows():
    # All mistakes are equally sure: their order is that of the clip ids.
    run = run_of(SAFETY, [0] * 9, [1] * 9, [[0.3, 0.7]] * 9)
    shuffled = Predictions("nano", run.tasks, run.predictions.sample(frac=1, random_state=1), PROTOCOL)
    assert errors(shuffled).mistakes.clip_id.tolist() == [f"clip{i}" for i in range(9)]
    pd.testing.assert_frame_equal(errors(shuffled).mistakes, errors(run).mistakes)


def test_errors_refuse_what_is_not_there():
    run = action_run()
    with pytest.raises(ValueError, match=r"no task 'safety'; it has \['action'\]"):
        errors(run, task="safety")
    with pytest.raises(ValueError, match="no predictions for split='val'"):
        errors(run, split="val")
    with pytest.raises(ValueError, match="no clip of split 'test' carries a label"):
        errors(run_of(ACTION, [np.nan] * 3, [0, 1, 2]))
    with pytest.raises(ValueError, match="1 of 2 predictions are not finite"):
        errors(run_of(QUALITY, [0.1, 0.2], [np.nan, 0.2]))


def test_error_table_shows_itself_and_escapes_names():
    task = Task("action", "multiclass", ("<b>left</b>", "right"))
    found = errors(run_of(task, [0, 0, 1], [1, 0, 1], [[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]))
    shown = found._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;left" in shown
    text = str(found)
    assert "Most confident mistakes (1 of 1)" in text and "0.8" in text and "videos/0.mp4" in text
    assert "Largest residuals (2 of 2)" in str(errors(run_of(QUALITY, [0.1, 0.2], [0.3, 0.2])))

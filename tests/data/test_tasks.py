"""Labels as numbers: the multilabel kind above all (the other kinds: test_tables.py)."""

import doctest

import numpy as np
import pandas as pd
import pytest

from workbench.data import tasks
from workbench.data.tables import ClipTable
from workbench.data.tasks import Task, label_sets, sets_of, target_slices

TAGS = Task("tags", "multilabel", ("run", "jump", "sit"))
NAN = np.nan


def table_with(labels: list[object]) -> ClipTable:
    n = len(labels)
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(n)], "path": [f"c{i}.mp4" for i in range(n)], "start_seconds": NAN,
            "end_seconds": NAN, "split": "train", "group": "g", "tags": pd.Series(labels, dtype=object),
        }
    )  # fmt: skip
    return ClipTable(frame, [TAGS])


def test_encode_multilabel_gives_the_table_worked_by_hand() -> None:
    labels = pd.Series(["run|jump", "|", "", None, " ?sit | run", NAN, ["sit", "run"], []], dtype=object)
    by_hand = [[1, 1, 0], [0, 0, 0], [0, 0, 0], [NAN] * 3, [1, 0, NAN], [NAN] * 3, [1, 0, 1], [0, 0, 0]]
    np.testing.assert_array_equal(TAGS.encode(labels), by_hand)


def test_encode_multilabel_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"'tags' has the unknown label\(s\) \['swim'\]; it knows"):
        TAGS.encode(pd.Series(["run|swim"]))
    with pytest.raises(ValueError, match=r"\['\?swim'\]"):
        TAGS.encode(pd.Series(["?swim"]))


def test_sets_of_is_the_way_back_from_encode() -> None:
    values = np.random.default_rng(0).choice([0.0, 1.0, NAN], size=(200, 3))
    np.testing.assert_array_equal(TAGS.encode(pd.Series(sets_of(values, TAGS.classes))), values)


def test_label_sets_of_columns_encode_to_the_columns() -> None:
    columns = pd.DataFrame({"run": [1, 0, 0, NAN], "jump": [True, False, True, False], "sit": [0.0, 0.0, NAN, 1.0]})
    encoded = TAGS.encode(label_sets(columns, TAGS.classes))
    np.testing.assert_array_equal(encoded, columns.astype(float).to_numpy())


def test_label_sets_says_what_is_wrong_with_a_column() -> None:
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['jump'\]"):
        label_sets(pd.DataFrame({"run": [1]}), ["run", "jump"])
    with pytest.raises(ValueError, match=r"'column run' is binary but has the label\(s\) \[2.0\]"):
        label_sets(pd.DataFrame({"run": [2]}), ["run"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "needs at least 1"),
        (("a|b", "c"), "holds |"),
        (("?a",), "starts with"),
        (("a", "a"), "names a class twice"),
    ],
)
def test_task_refuses_classes_that_a_cell_could_not_hold(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        Task("tags", "multilabel", classes)


def test_table_keeps_multilabel_targets_through_save_and_load(tmp_path: object) -> None:
    table = table_with(["run|jump", None, "|", "?sit"])
    loaded = ClipTable.load(table.save(str(tmp_path)))
    assert loaded.tasks == (TAGS,) and loaded.fingerprint() == table.fingerprint()
    np.testing.assert_array_equal(loaded.targets("tags"), [[1, 1, 0], [NAN] * 3, [0, 0, 0], [0, 0, NAN]])
    assert table_with(["run", None, "|", "?sit"]).fingerprint() != table.fingerprint()
    assert "tags (multilabel, 3 classes)" in repr(table)


def test_target_slices_cut_one_array_into_the_tasks() -> None:
    some = (Task("a", "multiclass", ("x", "y", "z")), TAGS, Task("b", "binary"))
    assert target_slices(some) == {"a": slice(0, 1), "tags": slice(1, 4), "b": slice(4, 5)}
    assert [t.num_outputs for t in some] == [3, 3, 1]
    assert target_slices([]) == {}


def test_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(tasks).failed == 0

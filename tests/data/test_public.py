"""Each public layout on a miniature with the names and file formats of the real one."""

import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from workbench.data.layouts import open_clips
from workbench.data.splits import groups_across_splits
from workbench.data.tables import Task


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    """Two classes of the real list, groups 1-7 in test and 8-12 in train, two clips each."""
    root = tmp_path / "ucf"
    names = {c: [f"{c}/v_{n}_g{g:02d}_c{k:02d}.avi" for g in range(1, 13) for k in (1, 2)]
             for c, n in (("ApplyEyeMakeup", "ApplyEyeMakeup"), ("HandstandPushups", "HandStandPushups"))}  # fmt: skip
    touch(root / "UCF-101", *(n for c in names.values() for n in c))
    write(root, "ucfTrainTestlist/classInd.txt", "1 HandstandPushups\r\n2 ApplyEyeMakeup\r\n")
    number = {"HandstandPushups": 1, "ApplyEyeMakeup": 2}
    train = [f"{n} {number[c]}" for c in names for n in names[c][14:]]
    test = [n for c in names for n in names[c][:14]]
    write(root, "ucfTrainTestlist/trainlist01.txt", "\r\n".join(train) + "\r\n")
    write(root, "ucfTrainTestlist/testlist01.txt", "\r\n".join(test) + "\r\n")
    write(root, "ucfTrainTestlist/trainlist02.txt", "\n".join(f"{n} {number[n.split('/')[0]]}" for n in test))
    write(root, "ucfTrainTestlist/testlist02.txt", "\n".join(n.split()[0] for n in train))
    return root


def test_ucf101_official_split_classes_and_groups(ucf101: Path) -> None:
    table = open_clips(ucf101)
    assert table.tasks == (Task("action", "multiclass", ("HandstandPushups", "ApplyEyeMakeup")),)  # order of classInd
    one = table.frame.set_index("path").loc["UCF-101/HandstandPushups/v_HandStandPushups_g03_c02.avi"]
    assert (one.split, one.action, one.group) == ("test", "HandstandPushups", "v_HandStandPushups_g03")
    test = {int(g.rsplit("g", 1)[1]) for g in table.test.frame.group}
    rest = {int(g.rsplit("g", 1)[1]) for g in (*table.train.frame.group, *table.val.frame.group)}
    assert test == set(range(1, 8)) and rest == set(range(8, 13)) and len(table) == 48 and len(table.val) > 0
    assert not groups_across_splits(table) and table.frame.group.nunique() == 24
    assert all(f.is_file() for f in table.files())
    assert table.info.name == "UCF101" and table.info.horizontal_flip and not table.info.time_reversal
    other = open_clips(ucf101, layout="ucf101", fold=2)
    assert set(other.test.frame.path) == set(table.train.frame.path) | set(table.val.frame.path)
    with pytest.raises(FileNotFoundError, match=r"trainlist03\.txt"):
        open_clips(ucf101, fold=3)


def test_public_layout_refuses_what_the_set_decides(ucf101: Path) -> None:
    with pytest.raises(ValueError, match=r"group_column cannot be used with ucf101"):
        open_clips(ucf101, group_column="person")
    with pytest.raises(ValueError, match="fold=1 is for ucf101, hmdb51"):
        open_clips(ucf101, layout="folder", fold=1)
    with pytest.raises(ValueError, match="layout='ucf' is not one of"):
        open_clips(ucf101, layout="ucf")
    renamed = open_clips(ucf101, task="sport", name="mine", horizontal_flip=False)
    assert renamed.tasks[0].name == "sport" and renamed.info.name == "mine" and not renamed.info.horizontal_flip
    assert open_clips(ucf101 / "UCF-101", layout="folder").task("label").num_outputs == 2


def test_public_layout_quarantines_missing_videos_and_fails_without_any(
    ucf101: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (ucf101 / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi").unlink()
    with caplog.at_level(logging.WARNING):
        table = open_clips(ucf101)
    name = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    assert table.quarantine.to_numpy().tolist() == [[name, name, "the file does not exist"]] and len(table) == 47
    assert "1 of 48 listed clips have no file" in caplog.text
    (ucf101 / "UCF-101").rename(ucf101.parent / "elsewhere")
    with pytest.raises(FileNotFoundError, match="none of the 48 listed clips.*give the folder"):
        open_clips(ucf101)
    assert len(open_clips(ucf101, root=ucf101.parent / "elsewhere")) == 47


HMDB = {  # real names: <source>_<action>_<body>_<camera>_np<n>_<view>_<quality>_<k>.avi
    "brush_hair": [("April_09_brush_hair_u_nm_np1_ba_goo_0", 1), ("April_09_brush_hair_u_nm_np1_ba_goo_1", 1),
                   ("Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_le_goo_1", 2),
                   ("Haarek_mmen_brush_hair_h_cm_np1_fr_goo_0", 0),
                   ("My_Hair_Routine_brush_hair_h_nm_np1_le_goo_0", 1)],
    "cartwheel": [("(Rad)Schlag_die_Bank!_cartwheel_f_cm_np1_le_med_0", 2), ("April_09_cartwheel_f_nm_np1_ri_bad_3", 1),
                  ("Acrobacias_de_un_fenomeno_cartwheel_f_cm_np1_ba_bad_10", 1)],
}  # fmt: skip


def make_hmdb51(root: Path) -> Path:
    for label, clips in HMDB.items():
        touch(root / "videos", *(f"{label}/{name}.avi" for name, _ in clips))
        lines = [f"{name}.avi {code} " for name, code in clips]  # the real lists end each line in a space
        write(root, f"testTrainMulti_7030_splits/{label}_test_split1.txt", "\n".join(lines) + "\n")
    return root


def test_hmdb51_codes_and_sources(tmp_path: Path) -> None:
    table = open_clips(make_hmdb51(tmp_path / "hmdb"), fractions=(0.5, 0.5, 0))
    frame = table.frame.set_index(table.frame.path.str.rpartition("/")[2].str.removesuffix(".avi"))
    codes = {name: code for clips in HMDB.values() for name, code in clips if code}
    assert {n: {1: "train", 2: "test"}[c] for n, c in codes.items()} == frame.split.replace("val", "train").to_dict()
    assert frame.group.str.removesuffix("_brush_hair").str.removesuffix("_cartwheel").tolist() == [
        "April_09", "April_09", "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!", "My_Hair_Routine",
        "(Rad)Schlag_die_Bank!", "April_09", "Acrobacias_de_un_fenomeno",
    ]  # fmt: skip
    assert table.tasks == (Task("action", "multiclass", ("brush_hair", "cartwheel")),) and table.info.horizontal_flip
    with pytest.raises(FileNotFoundError, match="test_split2"):
        open_clips(tmp_path / "hmdb", fold=2)


def test_hmdb51_split_that_leaks_needs_to_be_asked_for(tmp_path: Path) -> None:
    root = make_hmdb51(tmp_path / "hmdb")
    file = root / "testTrainMulti_7030_splits" / "brush_hair_test_split1.txt"
    file.write_text(file.read_text().replace("ba_goo_1.avi 1", "ba_goo_1.avi 2"))
    with pytest.raises(ValueError, match="April_09_brush_hair.*allow_leak=True"):
        open_clips(root)
    assert len(open_clips(root, allow_leak=True, fractions=(0.5, 0.5, 0)).test) == 3
    file.write_text("a.avi 4\n")
    with pytest.raises(ValueError, match=r"'a\.avi 4' ends in none of 0"):
        open_clips(root)


KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,{0}
"washing feet, slowly",__GkrdYZ9Tc,0,10,{0}
air drumming,-_nQbRBEz2s,104,114,{0}
"""


def test_kinetics_reads_cut_and_uncut_files(tmp_path: Path) -> None:
    root = tmp_path / "k"
    write(root, "annotations/train.csv", KINETICS.format("train"))
    other = KINETICS.format("validate").replace("QUu", "VAL").replace("Gkr", "VAL").replace("nQb", "VAL")
    write(root, "annotations/val.csv", other)
    write(root, "annotations/test.csv", "youtube_id,time_start,time_end,split\nzzzzzzzzzzz,1,11,test\n")
    touch(root, "train/testifying/---QUuC4vJs_000084_000094.mp4", "train/washing_feet/__GkrdYZ9Tc.mkv",
          "val/-_VALRBEz2s_000104_000114.mp4")  # fmt: skip
    table = open_clips(root)
    frame = table.frame.set_index("group")
    assert sorted(frame.index) == ["---QUuC4vJs", "-_VALRBEz2s", "__GkrdYZ9Tc"]
    assert frame.loc["---QUuC4vJs", ["start_seconds", "end_seconds"]].isna().all()  # cut already
    assert frame.loc["__GkrdYZ9Tc", ["start_seconds", "end_seconds"]].tolist() == [0.0, 10.0]
    assert frame.loc["__GkrdYZ9Tc", "clip_id"] == "train/washing_feet/__GkrdYZ9Tc.mkv#0-10"
    assert frame.loc["-_VALRBEz2s", ["split", "action"]].tolist() == ["val", "air drumming"]
    assert table.task("action").classes == ("air drumming", "testifying", "washing feet, slowly")
    assert sorted(table.quarantine.clip_id) == [
        "---VALC4vJs_000084_000094", "-_nQbRBEz2s_000104_000114", "__VALdYZ9Tc_000000_000010",
    ]  # fmt: skip
    alone = open_clips(root / "annotations" / "train.csv", root=root, fractions=(0.5, 0, 0.5))
    assert sorted(alone.frame.group) == ["---QUuC4vJs", "__GkrdYZ9Tc"] and alone.info.name == "Kinetics"


def test_kinetics_names_an_odd_split(tmp_path: Path) -> None:
    write(tmp_path / "k", "a.csv", KINETICS.format("holdout"))
    with pytest.raises(ValueError, match=r"split 'holdout' is none of"):
        open_clips(tmp_path / "k")


SSV2 = [("78687", "Holding [something] next to [something]", "holding potato next to vicks vaporub bottle"),
        ("42326", "Pushing [something] from left to right", "pushing red spray can from left to right"),
        ("100904", "Pushing [something] from left to right", "pushing a cup from left to right")]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_ssv2_reads_labels_templates_and_captions(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "ssv2"
    labels = {"Pushing something from left to right": "0", "Holding something next to something": "1"}
    write(root, f"labels/{prefix}labels.json", json.dumps(labels))
    records = [{"id": i, "label": c, "template": t, "placeholders": []} for i, t, c in SSV2]
    write(root, f"labels/{prefix}train.json", json.dumps(records[:2]))
    write(root, f"labels/{prefix}validation.json", json.dumps(records[2:]))
    write(root, f"labels/{prefix}test.json", json.dumps([{"id": "1420"}]))
    touch(root / "20bn-something-something-v2", "78687.webm", "42326.webm", "100904.webm", "1420.webm")
    table = open_clips(root)
    assert table.task("action").classes == tuple(labels) and table.targets("action").tolist() == [1, 0, 0]
    assert table.frame.split.tolist() == ["train", "train", "val"] and table.frame.caption[0] == SSV2[0][2]
    assert table.frame.path[2] == "20bn-something-something-v2/100904.webm"
    assert not table.info.horizontal_flip and not table.info.time_reversal
    write(root, "labels/test-answers.csv", "1420;Holding something next to something\n")
    assert open_clips(root).test.frame.action.tolist() == ["Holding something next to something"]
    (root / f"labels/{prefix}validation.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation\.json"):
        open_clips(root)


def test_ssv2_names_a_template_that_is_no_label(tmp_path: Path) -> None:
    write(tmp_path, "labels.json", json.dumps({"Holding something": "0", "Moving something": "1"}))
    write(tmp_path, "train.json", json.dumps([{"id": 7, "template": "Lifting [something]"}]))
    write(tmp_path, "validation.json", "[]")
    touch(tmp_path, "7.webm")
    with pytest.raises(ValueError, match=r"unknown label.*Lifting something"):
        open_clips(tmp_path)


def test_konvid1k_is_a_regression_split_at_random(tmp_path: Path) -> None:
    root = tmp_path / "konvid"
    ids = [3015363182 + i for i in range(20)]
    frame = pd.DataFrame({"flickr_id": ids, "mean_blur": 0.5, "MOS": [1 + i / 5 for i in range(20)]})
    (root / "KoNViD_1k_metadata").mkdir(parents=True)
    frame.to_csv(root / "KoNViD_1k_metadata" / "KoNViD_1k_attributes.csv", index=False)
    touch(root / "KoNViD_1k_videos", *(f"{i}.mp4" for i in ids[:10]))
    touch(root / "KoNViD_1k_videos", *(f"{i}_original_centercrop_960x540_8s.mp4" for i in ids[10:19]))
    table = open_clips(root)
    assert table.tasks == (Task("quality", "regression"),) and table.targets("quality").tolist() == list(frame.MOS[:19])
    assert set(table.frame.split) == {"train", "val", "test"} and table.info.horizontal_flip
    assert table.frame.path[12] == f"KoNViD_1k_videos/{ids[12]}_original_centercrop_960x540_8s.mp4"
    assert table.quarantine.path.tolist() == [f"KoNViD_1k_videos/{ids[19]}.mp4"]
    alone = open_clips(root / "KoNViD_1k_metadata" / "KoNViD_1k_attributes.csv", root=root)
    assert alone.fingerprint() == table.fingerprint()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("u/classInd.txt", "1 Run\nWalk\n", "classInd.txt': 'Walk' should be 2 fields"),
        ("k/train.csv", "label,youtube_id,time_start,time_end\nrun,a,soon,2\n", "time_start must be numbers.*soon"),
        ("k/train.csv", "label,youtube_id,time_start,time_end\n,a,1,2\nrun,b,1,2\n", "without a label or a youtube_id"),
        ("s/train.json", '[{"id": "1"}]', "train.json': every clip needs an id and a template"),
        ("s/train.json", '[{"id":', "train.json' is not JSON"),
        ("n/KoNViD_1k_mos.csv", "flickr_id,MOS\n1,good\n", "MOS must be numbers; found 'good'"),
        ("h/run_test_split1.txt", "a.avi\n", "run_test_split1.txt': 'a.avi' should be 2 fields"),
    ],
)
def test_public_layout_names_the_list_that_is_damaged(tmp_path: Path, name: str, text: str, message: str) -> None:
    for other, whole in (
        ("u/trainlist01.txt", "Run/a.avi 1\n"), ("u/testlist01.txt", "Run/b.avi\n"), ("s/labels.json", '{"Run": "0"}'),
        ("s/validation.json", "[]"), (name, text),
    ):  # fmt: skip
        write(tmp_path, other, whole)
    with pytest.raises(ValueError, match=message):
        open_clips(tmp_path / name.partition("/")[0])


def test_public_layout_has_no_fold_zero(ucf101: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainlist00\.txt"):
        open_clips(ucf101, fold=0)

"""The planted faults are there, checked with PyAV alone."""

import av
import numpy as np
import pytest

from workbench.data.synthetic.faults import plant_faults


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty") / "clips"
    return folder, plant_faults(folder, clips_per_class=10, seed=1)


def decoded(path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_plant_faults_breaks_what_it_names_and_nothing_else(planted) -> None:
    folder, faults = planted
    quarantined = set(faults.path[faults.verdict == "quarantined"])
    assert len(quarantined) == 4
    for path in sorted(folder.rglob("*.mp4")):
        name = path.relative_to(folder).as_posix()
        if name in quarantined:
            with pytest.raises(av.error.FFmpegError):
                decoded(path)
        else:
            assert len(decoded(path)) == (1 if name == "train/left/left_02.mp4" else 24)
    assert len(list(folder.rglob("*.mp4"))) == 22


def test_plant_faults_turns_one_clip_by_its_flag(planted) -> None:
    folder, faults = planted
    (name,) = faults.path[faults.fault == "rotated"]
    turned = [
        p for p in sorted(folder.rglob("*.mp4")) if p.name.startswith("right_0") and p.parent.parent.name == "val"
    ]
    assert abs(decoded(folder / name)[0].rotation) == 90
    assert {decoded(p)[0].rotation for p in turned} == {0}


def test_plant_faults_copies_training_clips_into_test(planted) -> None:
    folder, _ = planted
    assert (folder / "test/left/holiday.mp4").read_bytes() == (folder / "train/left/left_03.mp4").read_bytes()
    first, again = (decoded(folder / n)[5] for n in ("train/right/right_03.mp4", "test/right/holiday.mp4"))
    assert (first.width, again.width) == (96, 32)
    small = first.to_ndarray(format="rgb24")[::3, ::3].astype(int)
    assert np.abs(small - again.to_ndarray(format="rgb24")).mean() < 8


def test_plant_faults_makes_brightness_tell_the_class(planted) -> None:
    folder, _ = planted

    def brightness(label: str) -> list[float]:
        return [decoded(p)[0].to_ndarray(format="rgb24").mean() for p in sorted((folder / "val" / label).glob("*.mp4"))]

    assert max(brightness("left")) < min(brightness("right"))


def test_plant_faults_is_the_same_for_the_same_seed(planted, tmp_path) -> None:
    folder, _ = planted
    plant_faults(tmp_path / "again", clips_per_class=10, seed=1)
    for path in sorted(folder.rglob("*.mp4")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_plant_faults_refuses_a_folder_in_use_and_too_few_clips(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        plant_faults(tmp_path)
    with pytest.raises(ValueError, match="clips_per_class=9"):
        plant_faults(tmp_path / "new", clips_per_class=9)

import pytest

from workbench.data.protocol import Protocol


def test_protocol_differences_name_the_fields() -> None:
    mine = Protocol(num_frames=16, size_px=64)
    assert mine.differences(Protocol(num_frames=16, size_px=64)) == []
    theirs = Protocol(num_frames=8, size_px=64, fit="pad")
    assert mine.differences(theirs) == ["num_frames: 16 against 8", "fit: crop against pad"]


def test_protocol_survives_json_and_describes_itself() -> None:
    protocol = Protocol(
        num_frames=16,
        size_px=64,
        sampling="dense",
        sampling_rate=4,
        level="video",
        num_clips=5,
        num_crops=3,
        short="wrap",
    )
    assert Protocol(**protocol.to_json()) == protocol
    said = protocol.describe()
    assert all(
        part in said for part in ("video-level", "5x3", "16 dense (step 4), short: wrap frames", "64 px", "test split")
    )


@pytest.mark.parametrize(
    ("field", "value"), [("sampling", "random"), ("fit", "squash"), ("level", "frame"), ("num_frames", 0)]
)
def test_protocol_refuses_what_it_cannot_mean(field: str, value: object) -> None:
    options: dict = {"num_frames": 16, "size_px": 64} | {field: value}
    with pytest.raises(ValueError, match=f"{field}="):
        Protocol(**options)


def test_protocol_level_says_whether_views_are_averaged() -> None:
    for views, level in (({"num_crops": 3}, "clip"), ({}, "video")):
        with pytest.raises(ValueError, match="level="):
            Protocol(num_frames=16, size_px=64, level=level, **views)


def test_reading_gives_read_views_its_arguments() -> None:
    protocol = Protocol(num_frames=4, size_px=32, sampling="fps", fps=8.0, resize_px=40, num_clips=2, level="video")
    assert protocol.reading() == {
        "num_frames": 4, "size_px": 32, "fit": "crop", "sampling": "fps", "sampling_rate": 1, "fps": 8.0,
        "num_clips": 2, "num_crops": 1, "short": "repeat_last", "resize_px": 40, "decoder": "decord",
    }  # fmt: skip
    assert Protocol(num_frames=4, size_px=32, resize_px=32) == Protocol(num_frames=4, size_px=32)

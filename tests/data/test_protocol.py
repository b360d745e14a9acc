import pytest

from workbench.data.protocol import Protocol


def test_protocol_differences_name_the_fields() -> None:
    mine = Protocol(num_frames=16, size_px=64)
    assert mine.differences(Protocol(num_frames=16, size_px=64)) == []
    theirs = Protocol(num_frames=8, size_px=64, fit="pad")
    assert mine.differences(theirs) == ["num_frames: 16 against 8", "fit: crop against pad"]


def test_protocol_survives_json_and_describes_itself() -> None:
    protocol = Protocol(num_frames=16, size_px=64, sampling="single", level="video", num_clips=5, num_crops=3)
    assert Protocol(**protocol.to_json()) == protocol
    said = protocol.describe()
    assert all(part in said for part in ("video-level", "5x3", "16 single frames", "64 px", "test split"))


@pytest.mark.parametrize(
    ("field", "value"), [("sampling", "random"), ("fit", "squash"), ("level", "frame"), ("num_frames", 0)]
)
def test_protocol_refuses_what_it_cannot_mean(field: str, value: object) -> None:
    options: dict = {"num_frames": 16, "size_px": 64} | {field: value}
    with pytest.raises(ValueError, match=f"{field}="):
        Protocol(**options)

"""What a file's facts mean for training, in words: ok, something to look at, or out."""

import math
from typing import Any

from workbench.data.checks.survey import Survey

VERDICTS = ("ok", "warning", "quarantined")

# Mean difference of two decoders' frames in grey levels (0..255), at 64 px. Measured on 56 odd files that both decode:
# conversions of 10-bit and 4:4:4 video differ by up to 3, other frames by 13 and more.
NOTICEABLE, OTHER_FRAMES = 1.0, 6.0
_FLAT, _FROZEN = 3.0, 0.01
# Neighbouring frames correlate at 0.90 and above in 537 ordinary clips and at 0.81 and above in 64 odd ones; encrypted
# VP8 that still "decodes" at 0.23 to 0.64, raw noise at 0.
_UNSTEADY = 0.75
_HALF = 0.5
_LATE_FRAMES = 1.5


def file_reasons(survey: Survey) -> list[str]:
    """Everything odd about a file that decodes; empty for an ordinary one."""
    s, found = survey, []
    if s.cover:
        return ["its only video is a cover picture, one still; left out of the table"]
    if not s.complete:
        found.append(f"long: only the first {s.num_frames} frames ({s.seconds:.0f} s) were decoded in the time allowed")
    found += _looks(s) + _timing(s)
    if s.rotation:
        found.append(f"rotated by {s.rotation} degrees in its metadata, which reading applies")
    if s.sizes > 1:
        found.append(f"size change mid-stream ({s.sizes} sizes): frames are scaled to the first")
    if s.interlaced:
        found.append(f"interlaced ({s.interlaced} of {s.num_frames} frames): moving edges look like combs")
    if s.odd_metadata:
        found.append("titles or tags are not UTF-8: PyAV refuses the file in its default settings")
    return found


def _looks(s: Survey) -> list[str]:
    found = []
    if s.contrast <= _FLAT:
        found.append("every frame is the same flat colour")
    elif s.motion <= _FROZEN:
        found.append("frozen: every frame is the same picture")
    if s.damaged_frames >= _HALF * s.num_frames:
        found.append(f"garbage-looking: {s.damaged_frames} of {s.num_frames} frames have holes that the decoder filled")
    elif s.damaged_frames:
        found.append(f"damaged: {s.damaged_frames} of {s.num_frames} frames have holes that the decoder filled")
    if s.steadiness < _UNSTEADY:  # False for NaN
        found.append(
            f"garbage-looking: neighbouring frames hardly correlate ({s.steadiness:.2f}); encrypted, damaged or noise"
        )
    return found


def _timing(s: Survey) -> list[str]:
    found = []
    if s.variable_rate:
        found.append("variable frame rate (VFR): evenly spaced frames are not evenly spaced in time")
    if s.disordered:
        found.append("timestamps missing, doubled or out of order")
    if s.complete and s.header_frames and s.header_frames != s.num_frames:
        found.append(f"header count wrong: it says {s.header_frames} frames, {s.num_frames} are shown")
    if s.hidden_packets:
        found.append(f"edit list: {s.hidden_packets} packets are not shown")
    if abs(s.start_seconds) * s.fps > _LATE_FRAMES:
        found.append(f"start offset: its first frame is at {s.start_seconds:.2f} s; times here count from that frame")
    return found


def clip_reasons(reading: dict[str, Any], survey: Survey, num_frames: int, decoder: str) -> list[str]:
    """What is odd about one clip as training reads it; see :func:`workbench.data.doctor.read_both`."""
    found = []
    shown = max(1, round(reading["seconds"] * survey.fps))
    if shown < num_frames:
        found.append(f"very short: about {shown} frame(s), so some of {num_frames} repeat")
    difference = reading["difference"]
    if reading["problem"]:
        found.append(f"{reading['problem']}; PyAV decodes it all: read with decoder='pyav'")
    elif difference > OTHER_FRAMES:
        found.append(
            f"{decoder} and PyAV show different frames (mean difference {difference:.0f} of 255): read with "
            "decoder='pyav'"
        )
    elif not math.isnan(difference) and difference > NOTICEABLE:
        found.append(f"{decoder} and PyAV differ by {difference:.1f} grey levels on average")
    return found

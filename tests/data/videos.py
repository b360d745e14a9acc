"""Small videos with known facts, encoded by PyAV; used by the tests of the doctor."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {
    "h264": ("libx264", ".mp4", {"preset": "veryfast"}),
    "hevc": ("libx265", ".mp4", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "vp9": ("libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mpeg4", ".avi", {}),
    "mpeg2": ("mpeg2video", ".ts", {}),
}
"""Five codecs in four containers: encoder, suffix and options."""


def moving(seed: int, frames: int = 24, size: int = 64, *, offset: int = 0) -> np.ndarray:
    """uint8 (T, size, size, 3): a bright disc on its own straight way over a smooth, still background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(0.5, 2.5, (4, 3))]
    background = 110 + 15 * np.sum(waves, axis=0)
    start, end = rng.uniform(0.15, 0.85, (2, 2))
    made = np.empty((frames, size, size, 3), np.uint8)
    for t in range(frames):
        cy, cx = start + (end - start) * t / max(1, frames - 1)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < 0.02
        made[t] = np.clip(np.where(disc, 235, background) + offset, 0, 255)[..., None]
    return made


def encode(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "h264",
    times: list[int] | None = None,
    fps: int = 25,
    **options: str,
) -> Path:
    """Encode frames at ``times`` (in 1/fps s; by default 0, 1, 2 ...) by one of :data:`CODECS` or a named encoder."""
    encoder, _, given = CODECS.get(codec, (codec, "", {}))
    if encoder.startswith("libvpx") and "decord" in sys.modules:
        # decord's library brings its own libvpx, which then answers PyAV's encoder too and does not fit it.
        return _encode_elsewhere(path, frames, {"codec": codec, "times": times, "fps": fps, **options})
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=fps, options={**given, **options})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _encode_elsewhere(path: Path, frames: np.ndarray, options: dict[str, Any]) -> Path:
    raw = path.with_name(path.name + ".npy")
    np.save(raw, frames)
    subprocess.run([sys.executable, __file__, str(path), str(raw), json.dumps(options)], check=True, timeout=120)
    raw.unlink()
    return path


def song_with_cover(path: Path) -> Path:
    """An MP3 of silence whose only picture is its cover."""
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("libmp3lame", rate=44100)
        picture: Any = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(moving(0)[0], format="rgb24")
        frame.pts = 0
        container.mux([*picture.encode(frame.reformat(format="yuvj420p")), *picture.encode(None)])
        beep = av.AudioFrame.from_ndarray(np.zeros((2, 1152 * 4), np.float32), format="fltp", layout="stereo")
        beep.sample_rate, beep.pts = 44100, 0
        container.mux([*sound.encode(beep), *sound.encode(None)])
    return path


if __name__ == "__main__":
    encode(Path(sys.argv[1]), np.load(sys.argv[2]), **json.loads(sys.argv[3]))

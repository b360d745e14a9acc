"""Clips per second through the loader, against loops that call a decoder directly, and from the store.

    python benchmarks/decode.py [--sizes 320x240 1280x720] [--clips 64] [--repeats 7] [--peers PATH]

16 uniform frames, centre crop, antialiased to 112 px, from generated 3 s H.264 videos (30 fps, x264's default GOP).
Everything runs with two processes of one decoder thread each, in turns, in one run; a peer's process keeps its clips to
itself, the loader delivers them to the parent. torchcodec and OpenCV appear twice: with the loader's filter (PIL's, so
that all do the same work and return the same frames) and with the one they bring along. A peer that is not installed
is named and left out; ``--peers`` is a folder to look in as well. From the store: batches of 16 clips through
``ClipArray.read_into``, as training reads them, against ``numpy.copyto`` of the same bytes in memory. Writes the
section "Decoding" of ``benchmarks/RESULTS.md``.
"""

import argparse
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from results import write_section

SIDE, FRAMES, WORKERS, DISTINCT, BATCH = 112, 16, 2, 16, 16
UNIFORM = [(2 * i + 1) * 90 // (2 * FRAMES) for i in range(FRAMES)]
READING: dict[str, Any] = {"num_frames": FRAMES, "size_px": SIDE}


def write_videos(folder: Path, width: int, height: int) -> list[Path]:
    """16 files (two contents) of 90 frames: a texture that drifts under noise."""
    from PIL import Image

    from workbench.data.clips import write_clip

    paths: list[Path] = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (height // 16 + 8, width // 16 + 24, 3), np.uint8)
        field = np.asarray(Image.fromarray(small).resize((width + 256, height + 128), Image.Resampling.BICUBIC))
        frames = np.empty((90, height, width, 3), np.uint8)
        for i, frame in enumerate(frames):
            noise = rng.integers(-6, 7, (height, width, 1), np.int16)
            frame[:] = np.clip(field[i : i + height, 2 * i : 2 * i + width] + noise, 0, 255)
        paths.append(write_clip(folder / f"{seed}.mp4", frames, 30, crf=23))
    return [Path(shutil.copy(paths[i % 2], folder / f"copy{i:02}.mp4")) for i in range(DISTINCT)]


def _squares(frames: list[np.ndarray]) -> np.ndarray:
    """PIL's antialiased bilinear filter on the centre square, as a user of decord or PyAV would write it."""
    from PIL import Image

    height, width = frames[0].shape[:2]
    side = min(height, width)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(f).resize((SIDE, SIDE), bilinear, box=box)) for f in frames])


def read_decord(path: str) -> np.ndarray:
    import decord

    return _squares(list(decord.VideoReader(path, num_threads=1).get_batch(UNIFORM).asnumpy()))


def read_pyav(path: str) -> np.ndarray:
    import av

    keep, frames = set(UNIFORM), []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for i, frame in enumerate(container.decode(stream)):
            if i in keep:
                frames.append(frame.to_ndarray(format="rgb24"))
            if i >= UNIFORM[-1]:
                break
    return _squares(frames)


def _from_torchcodec(path: str) -> Any:
    """uint8 tensor (T, C, H, W)."""
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)
    return VideoDecoder(path, num_ffmpeg_threads=1).get_frames_at(UNIFORM).data


def read_torchcodec(path: str) -> np.ndarray:
    return _squares([np.ascontiguousarray(frame) for frame in _from_torchcodec(path).permute(0, 2, 3, 1).numpy()])


def read_torchcodec_own(path: str) -> np.ndarray:
    import torch

    frames = _from_torchcodec(path)
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side]
    small = torch.nn.functional.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def _from_opencv(path: str) -> list[np.ndarray]:
    """BGR frames (H, W, 3)."""
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames, position = [], 0
    for wanted in UNIFORM:
        while position < wanted:
            capture.grab()
            position += 1
        frames.append(capture.read()[1])
        position += 1
    capture.release()
    return frames


def read_opencv(path: str) -> np.ndarray:
    cv2 = import_module("cv2")
    return _squares([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in _from_opencv(path)])


def read_opencv_own(path: str) -> np.ndarray:
    cv2, small = import_module("cv2"), []
    for frame in _from_opencv(path):
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame[top : top + side, left : left + side]
        resized = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        small.append(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB))
    return np.stack(small)


PEERS = {
    "decord": read_decord, "PyAV": read_pyav, "torchcodec": read_torchcodec, "OpenCV": read_opencv,
    "torchcodec, own filter": read_torchcodec_own, "OpenCV, own filter": read_opencv_own,
}  # fmt: skip
MODULES = {"decord": "decord", "PyAV": "av", "torchcodec": "torchcodec.decoders", "OpenCV": "cv2"}


def _serve(pipe: Connection, name: str, paths: list[str], extra: str | None) -> None:
    """A peer's process: reads its paths once per order, and says when it is done."""
    if extra:
        sys.path.append(extra)
    try:
        import_module(MODULES[name.split(",")[0]])
    except (ImportError, OSError, RuntimeError):
        pipe.close()  # the parent says that it is left out
        return
    first = PEERS[name](paths[0])
    pipe.send((first.shape, float(first.mean())))
    while pipe.recv():
        for path in paths:
            PEERS[name](path)
        pipe.send(True)


class Loop:
    """Two processes that each read half of the paths with one peer."""

    def __init__(self, name: str, paths: list[str], extra: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for part in range(WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, paths[part::WORKERS], extra), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.first = [pipe.recv() for pipe in self.pipes]

    def run(self) -> None:
        for pipe in self.pipes:
            pipe.send(True)
        for pipe in self.pipes:
            pipe.recv()

    def cpu_seconds(self) -> float:
        return sum(_cpu(process.pid or 0) for process in self.processes)

    def peak_bytes(self) -> int:
        return sum(_peak(process.pid or 0) for process in self.processes)

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(False)
            process.join()


class Ours:
    """The loader, kept open, without its store."""

    def __init__(self, paths: list[str], decoder: str) -> None:
        from workbench.data.loading.loader import Loader
        from workbench.data.loading.reading import Reading

        self.loader = Loader(table_of(paths), Reading(**READING, decoder=decoder), workers=WORKERS, cache=False)
        self.rows, self.processes = range(len(paths)), set(psutil.Process().children(recursive=True))
        self.run()
        self.processes = set(psutil.Process().children(recursive=True)) - self.processes

    def run(self) -> None:
        for row, _, clip in self.loader.stream(self.rows):
            if not isinstance(clip, np.ndarray) or clip.shape != (1, FRAMES, SIDE, SIDE, 3):
                raise RuntimeError(f"row {row} came back as {clip!r:.200}")

    def cpu_seconds(self) -> float:
        return sum(_cpu(process.pid) for process in self.processes) + time.process_time()

    def peak_bytes(self) -> int:
        return sum(_peak(process.pid) for process in self.processes)

    def close(self) -> None:
        self.loader.close()


def _cpu(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _peak(pid: int) -> int:
    """Largest resident memory of a process so far; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def table_of(paths: list[str]) -> Any:
    from workbench.data.tables import ClipTable, Task

    ids = [f"{i:04}" for i in range(len(paths))]
    frame = pd.DataFrame(
        {"clip_id": ids, "path": [Path(p).name for p in paths], "split": "train", "group": ids, "y": 1.0}
    )
    # Ends a little apart: the same frames, but each row has an entry of its own in the store.
    frame = frame.assign(start_seconds=np.nan, end_seconds=3.0 + 1e-3 * np.arange(len(paths)))
    return ClipTable(frame, [Task("y", "binary")], root=Path(paths[0]).parent)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(paths: list[str], args: argparse.Namespace) -> pd.DataFrame:
    """Clips/s (median, least, most), CPU time and peak memory of the processes, for the loader and each peer."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        contenders: dict[str, Any] = {}
        for decoder in ("pyav", "decord", "torchcodec"):
            try:
                contenders[f"loader, decoder={decoder!r}"] = Ours(paths, decoder)
            except (ValueError, RuntimeError) as error:
                print(f"loader with {decoder} left out: {error}")
        for name in PEERS:
            try:
                contenders[name] = Loop(name, paths, args.peers)
            except (EOFError, ConnectionError):
                print(f"{name} left out: it is not installed here, or does not load")
        for contender in contenders.values():
            stack.callback(contender.close)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        cpu = dict.fromkeys(contenders, 0.0)
        for _ in range(args.repeats):  # in turns, so that a busy moment hits all alike
            for name, contender in contenders.items():
                before = contender.cpu_seconds()
                seconds[name].append(timed(contender.run))
                cpu[name] += contender.cpu_seconds() - before
        for name, contender in contenders.items():
            rates = len(paths) / np.array(seconds[name])
            peak, each = contender.peak_bytes() / 2**20, 1000 * cpu[name] / len(paths) / args.repeats
            rows.append(
                {
                    "what": name,
                    "clips/s": np.median(rates),
                    "min": rates.min(),
                    "max": rates.max(),
                    "CPU ms/clip": each,
                    "MiB": peak,
                }
            )
    return pd.DataFrame(rows)


def cached(paths: list[str], folder: Path, repeats: int) -> tuple[float, float]:
    """Clips/s from the filled store, in batches into one buffer, and of copying the same bytes in memory there."""
    from workbench.data.cache import decode_table

    decoded = decode_table(table_of(paths), **READING, workers=WORKERS, cache_dir=folder, progress=False)
    memory = np.asarray(decoded.clips)
    out = np.empty_like(memory[:BATCH])
    batches = [range(start, start + BATCH) for start in range(0, len(paths) - BATCH + 1, BATCH)]

    def from_store() -> None:
        for rows in batches:
            decoded.clips.read_into(out, rows)

    def from_memory() -> None:
        for rows in batches:
            np.copyto(out, memory[rows.start : rows.stop])

    ours, copies = [], []
    for _ in range(3 * repeats):
        ours.append(timed(from_store))
        copies.append(timed(from_memory))
    clips = BATCH * len(batches)
    return clips / float(np.median(ours)), clips / float(np.median(copies))


def section(size: str, args: argparse.Namespace, folder: Path) -> list[str]:
    width, height = (int(part) for part in size.split("x"))
    files = write_videos(folder, width, height)
    paths = [str(files[i % DISTINCT]) for i in range(args.clips)]
    table = compare(paths, args)
    peers = table[table.what.isin(list(PEERS))]
    same = peers[~peers.what.str.contains("own")]["clips/s"].max()
    fastest = peers.loc[peers["clips/s"].idxmax()]
    table["of fastest, same filter"] = table["clips/s"] / same
    table["of fastest, any filter"] = table["clips/s"] / fastest["clips/s"]
    from_store, copied = cached(paths, folder / "cache", args.repeats)
    return [
        f"### {size}",
        "",
        "```",
        table.round(2).to_string(index=False),
        "```",
        "",
        f"From the store: {from_store:.0f} clips/s, {from_store / fastest['clips/s']:.0f} times the fastest peer "
        f"({fastest.what}) and {from_store / copied:.2f} of copying the same bytes in memory ({copied:.0f} clips/s).",
        "",
    ]


def versions() -> str:
    """Of Python, and of each decoder and library that the figures depend on."""
    found = [f"Python {platform.python_version()}"]
    for name in ("av", "decord", "torchcodec", "opencv-python-headless", "opencv-python", "pillow", "numpy", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["320x240", "1280x720"])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers")
    args = parser.parse_args()
    lines = [
        f"`benchmarks/decode.py --clips {args.clips} --repeats {args.repeats}`: {FRAMES} frames at {SIDE} px; "
        f"clips/s (median, least, most of {args.repeats} turns), CPU time (the loader's with its parent's; other work "
        "on the machine hardly moves it) and peak memory of the two worker processes together.",
        "",
    ]
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            lines += section(size, args, Path(folder))
    lines.append(f"{date.today()}; {platform.machine()}, {platform.system()}, {psutil.cpu_count()} cores; {versions()}")
    write_section("Decoding", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""Screening: a long video with bounded memory, safety at two prevalences, quality on distortions never trained on.

    python benchmarks/screening.py [--part video|safety|quality] [--minutes 1,10] [--clips 1800] [--epochs 12]
                                   [--seeds 0-2] [--kinds blur,noise] [--runs DIR] [--results FILE] [--device auto]

**video**: clips of the playground's test split, one after the other, as one 1280x720 H.264 file of each length, in a
process of its own. **safety**: the playground as it is (about 15 % flash) and with positives thinned to 5 % in
every split; the threshold is chosen on val for 5 % false positives, and what it then does on test is reported.
**quality**: each distortion in turn is left out of train and val, and the rank correlation on its test clips is held
against that of a model that was trained on all. Runs and files are kept in ``--runs`` and used again; a section of
``benchmarks/RESULTS.md`` is written anew after every seed.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
from repeated import common_options, numbers, publish, test_rows, text_of
from scipy.optimize import curve_fit
from scipy.stats import pearsonr

import workbench as wb
from workbench.analysis.repeats import Repeated, difference, over_groups
from workbench.analysis.timeline import screen_video, smoothed
from workbench.data.synthetic.degrade import DEGRADATIONS
from workbench.data.synthetic.playground import FPS, NUM_FRAMES
from workbench.training.logistic_fit import fit_logistic, logistic

WIDTH, HEIGHT = 1280, 720
MAX_RATE = 0.05
RARE = 0.05
SMOOTHINGS = (1, 3, 5)
CLIP_SECONDS = NUM_FRAMES / FPS


def trained(table: wb.ClipTable, tasks: tuple[str, ...], seed: int, args: argparse.Namespace, name: str) -> wb.Run:
    setup = wb.Setup(
        strategy=args.strategy, backbone=args.backbone, tasks=tasks, epochs=args.epochs, batch_size=16, seed=seed
    )
    began = time.monotonic()
    run = wb.fine_tune(setup, table, runs_dir=args.runs, name=name, device=args.device, progress=False)
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return run


def budget(args: argparse.Namespace) -> str:
    return (
        f"{args.strategy} from {Path(args.backbone).name}, {args.epochs} epochs in batches of 16 on a playground of "
        f"{args.clips} clips; the last epoch is kept, nothing is chosen on test."
    )


# --- a long video ----------------------------------------------------------------------------------------------------


def reel_frames(clips: wb.ClipTable, total: int) -> Iterator[np.ndarray]:
    """Frames of the clips one after the other, from the first again after the last."""
    files = clips.files()
    for i in range(total):
        if i % NUM_FRAMES == 0:
            clip = wb.read_clip(files[i // NUM_FRAMES % len(files)], num_frames=NUM_FRAMES)
        yield clip[i % NUM_FRAMES]


def make_reel(path: Path, clips: wb.ClipTable, minutes: float) -> Path:
    """Encode it unless it is there; enlarged by the encoder's own scaler."""
    if path.exists():
        return path
    part = path.with_suffix(".part.mp4")
    part.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": "23", "preset": "veryfast", "threads": "1"}
    with av.open(str(part), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in reel_frames(clips, round(minutes * 60 * FPS)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(WIDTH, HEIGHT, "yuv420p")))
        container.mux(stream.encode(None))
    return part.rename(path)


def peak_mib(process: str) -> float:
    """The most memory that the process has had resident, in MiB (VmHWM); 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(run: Path, video: Path, table: Path, device: str) -> dict[str, Any]:
    """In a process of its own: screen, and say what it cost. The table of windows goes to ``table``."""
    loaded = wb.load_run(run)
    loaded.model("cpu")
    before, child, done = peak_mib("self"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            child[0] = max(child[0], *(peak_mib(str(p.pid)) for p in multiprocessing.active_children()), 0.0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    found = screen_video(
        loaded, video, window_seconds=CLIP_SECONDS, overlap=0.5, smoothing=1, device=device, progress=False
    )
    done.set()
    thread.join()
    found.to_csv(table)
    return {
        "frames": found.num_frames, "decoded": found.decoded, "held": found.frames_held, "seconds": found.seconds,
        "minutes": found.duration_seconds / 60, "windows": len(found.table), "before": before,
        "peak": peak_mib("self"), "child": child[0], "threshold": found.operating_point.threshold,
        "events": len(found.events), "error": found.error,
    }  # fmt: skip


def video_part(args: argparse.Namespace) -> None:
    clips = wb.playground(clips=args.clips, progress=False)
    run = trained(clips, (), args.seeds[0], args, f"screening-seed{args.seeds[0]}")
    rows, tables = [], {}
    for minutes in args.minutes:
        video = make_reel(args.runs / f"reel-{args.clips}-{minutes:g}min.mp4", clips.test, minutes)
        table = args.runs / f"reel-{args.clips}-{minutes:g}min.csv"
        command = [sys.executable, __file__, "--measure", str(run.folder), str(video), str(table)]
        said = subprocess.run([*command, "--device", args.device], stdout=subprocess.PIPE, text=True, check=True)
        cost = json.loads(said.stdout.splitlines()[-1])
        tables[minutes] = pd.read_csv(table), cost["threshold"]
        rows.append({
            "minutes": f"{cost['minutes']:.1f}", "MB": f"{video.stat().st_size / 1e6:.0f}", "frames": cost["frames"],
            "decoded": cost["decoded"], "windows": cost["windows"],
            "s per minute": f"{cost['seconds'] / cost['minutes']:.1f}", "frames held": cost["held"],
            "MiB before": f"{cost['before']:.0f}", "peak MiB": f"{cost['peak']:.0f}",
            "reader's peak MiB": f"{cost['child']:.0f}", "events": cost["events"], "error": cost["error"] or "none",
        })  # fmt: skip
        print(rows[-1], flush=True)
    lines = [
        *text_of(pd.DataFrame(rows)),
        f"{WIDTH}x{HEIGHT} H.264 at {FPS} frames a second, windows of {CLIP_SECONDS:.2f} s, every second half again, "
        "the flash rule on every frame; decoding in one child process (reader), everything else in another. Memory is "
        "the most that was resident: before the video, after it, and of the reader.", "",
        *video_truth(clips.test, *tables[max(tables)]), budget(args), "",
    ]  # fmt: skip
    publish("Screening a long video", lines, args.results)


def video_truth(test: wb.ClipTable, table: pd.DataFrame, threshold: float) -> list[str]:
    """What the windows find of the clips that the reel is made of, in its first round, by smoothing."""
    unsafe = test.targets("safety") == 1
    at = np.round(table["start_seconds"].to_numpy() / (CLIP_SECONDS / 2)).astype(int)  # in half clips
    first = at < 2 * len(unsafe) - 2
    at, part = at[first], table[first]
    clip, whole = at // 2, at % 2 == 0
    both_safe = ~unsafe[clip] & (whole | ~unsafe[np.minimum(clip + 1, len(unsafe) - 1)])
    rows = []
    for name in (*SMOOTHINGS, "rule"):
        flags = (
            part["rule_unsafe"].to_numpy(bool) if name == "rule"
            else smoothed(table["safety_raw"].to_numpy(), int(name))[first] >= threshold
        )  # fmt: skip
        seen = np.unique(clip[whole & unsafe[clip]])
        touched = set(clip[flags]) | set(clip[flags & ~whole] + 1)
        rows.append({
            "by": "flash rule" if name == "rule" else f"model, mean of {name}",
            "flashing clips found": f"{sum(c in touched for c in seen)} of {len(seen)}",
            "windows of safe clips flagged": f"{int((flags & both_safe).sum())} of {int(both_safe.sum())}",
        })  # fmt: skip
    return [*text_of(pd.DataFrame(rows)), "Found: a flagged window touches the clip. One clip follows another.", ""]


# --- safety at two prevalences ---------------------------------------------------------------------------------------


def thinned(table: wb.ClipTable, prevalence: float | None, seed: int) -> wb.ClipTable:
    """Positives left out at random, in each split, until they are ``prevalence`` of what is left; None: as it is."""
    if prevalence is None:
        return table
    keep, positive = np.ones(len(table), bool), table.targets("safety") == 1
    rng = np.random.default_rng([seed, 55])
    for split in ("train", "val", "test"):
        inside = (table.frame["split"] == split).to_numpy()
        places = rng.permutation(np.flatnonzero(inside & positive))
        wanted = round(prevalence / (1 - prevalence) * int((inside & ~positive).sum()))
        keep[places[wanted:]] = False
    return table[keep]


def safety_row(run: wb.Run) -> dict[str, object]:
    rows = run.predictions[run.predictions.task == "safety"]
    score = rows.probabilities.map(lambda p: p[1]).to_numpy(float)
    val, test = ((rows.split == split).to_numpy() for split in ("val", "test"))
    target = rows.target.to_numpy(float)
    point = wb.choose_threshold(target[val], score[val], max_rate=MAX_RATE)
    told = wb.realised_rate(point, target[test], score[test])
    measured = wb.evaluate(run, split="test", task="safety").set_index("metric")
    ap = measured.loc["average_precision"]
    return {
        "positives": f"{target[test].mean():.1%} of {int(test.sum())}",
        "average precision": f"{ap.value:.3f} [{ap.low:.3f}, {ap.high:.3f}]",
        "val negatives": point.negatives,
        "recall": f"{told.recall:.3f} [{told.recall_low:.3f}, {told.recall_high:.3f}]",
        "false positives": f"{told.false_positives} of {told.negatives}",
        "rate": f"{told.rate:.3f} [{told.low:.3f}, {told.high:.3f}]",
        f"{MAX_RATE:g} in it": "yes" if told.within else "no",
    }


def safety_part(args: argparse.Namespace) -> None:
    table = wb.playground(clips=args.clips, progress=False)
    rows: list[dict[str, object]] = []
    for seed in args.seeds:
        for prevalence in (None, RARE):
            name = f"safety-{'all' if prevalence is None else f'{prevalence:g}'}-seed{seed}"
            run = trained(thinned(table, prevalence, seed), ("safety",), seed, args, name)
            rows.append({"prevalence": "as it is" if prevalence is None else f"{prevalence:.0%}", "seed": seed})
            rows[-1] |= safety_row(run)
        shown = pd.DataFrame(rows).sort_values(["prevalence", "seed"], ascending=[False, True])
        lines = [
            *text_of(shown),
            f"Threshold chosen on val for {MAX_RATE:.0%} false positives. Average precision: bootstrap over scenes; "
            "recall and rate on test: exact binomial intervals, which do not cover that val is finite, too. Seeds "
            f"share the test clips (at 5 % other positives). {budget(args)}", "",
        ]  # fmt: skip
        publish("Screening: safety at two prevalences", lines, args.results)


# --- quality on distortions never seen -------------------------------------------------------------------------------


def without_kind(table: wb.ClipTable, kind: str) -> wb.ClipTable:
    """Train and val lose the clips of that distortion; test keeps them."""
    frame = table.frame
    return table[((frame["split"] == "test") | (frame["degradation"] != kind)).to_numpy()]


def of_kind(run: wb.Run, table: wb.ClipTable, kind: str) -> pd.DataFrame:
    """Test predictions of quality, of that distortion."""
    rows = test_rows(run, "quality")
    kinds = table.frame.set_index("clip_id")["degradation"]
    return rows[(rows["clip_id"].map(kinds) == kind).to_numpy()].reset_index(drop=True)


def fit_gap(run: wb.Run) -> tuple[float, float]:
    """Our logistic fit against SciPy's from the same start: how far apart Pearson's correlations are, and how much
    more squared error ours leaves, as a share of SciPy's (negative: less)."""
    rows = test_rows(run, "quality")
    x, y = rows["prediction"].to_numpy(float), rows["target"].to_numpy(float)
    ours = fit_logistic(x, y)
    if ours is None:
        return float("nan"), float("nan")

    def curve(x: np.ndarray, *parameters: float) -> np.ndarray:
        return logistic(x, np.array(parameters))

    start = [y.max(), y.min(), x.mean(), x.std() / 4]
    theirs, _ = curve_fit(curve, x, y, p0=start, maxfev=20_000, ftol=1e-12, xtol=1e-12)
    mapped = logistic(x, ours), logistic(x, theirs)
    here, there = (float(((m - y) ** 2).sum()) for m in mapped)
    return float(abs(pearsonr(mapped[0], y)[0] - pearsonr(mapped[1], y)[0])), (here - there) / there


def quality_part(args: argparse.Namespace) -> None:
    table = wb.playground(clips=args.clips, progress=False).with_tasks(["quality"])
    never: dict[str, dict[tuple[int, int], pd.DataFrame]] = {kind: {} for kind in args.kinds}
    always: dict[str, dict[tuple[int, int], pd.DataFrame]] = {kind: {} for kind in args.kinds}
    every: dict[tuple[int, int], pd.DataFrame] = {}
    gaps: list[tuple[float, float]] = []
    for seed in args.seeds:
        whole = trained(table, (), seed, args, f"quality-all-seed{seed}")
        every[0, seed] = test_rows(whole, "quality")
        gaps.append(fit_gap(whole))
        for kind in args.kinds:
            some = trained(without_kind(table, kind), (), seed, args, f"quality-no-{kind}-seed{seed}")
            never[kind][0, seed], always[kind][0, seed] = of_kind(some, table, kind), of_kind(whole, table, kind)
            gaps.append(fit_gap(some))
        publish(
            "Screening: quality on distortions never seen",
            quality_lines(every, never, always, gaps, args),
            args.results,
        )


def quality_lines(
    every: Any, never: Any, always: Any, gaps: list[tuple[float, float]], args: argparse.Namespace
) -> list[str]:
    def score(parts: Any) -> Repeated:
        return over_groups(parts, "regression")

    rows = [{"test clips": "all", "n": len(next(iter(every.values()))), "trained on all": str(score(every))}]
    for kind in args.kinds:
        seen, unseen = score(always[kind]), score(never[kind])
        rows.append({
            "test clips": kind, "n": len(next(iter(never[kind].values()))), "trained on all": str(seen),
            "never trained on it": str(unseen), "difference": str(difference(unseen, seen)),
        })  # fmt: skip
    return [
        *text_of(pd.DataFrame(rows).fillna("")),
        f"Spearman's rank correlation (SRCC) on test scenes, mean over {len(every)} seed(s), 95 % intervals over "
        f"scenes. Pearson's correlation after the logistic fit and after SciPy's differs by at most "
        f"{np.nanmax([gap for gap, _ in gaps]):.1e} over {len(gaps)} runs; of squared error ours leaves at most "
        f"{np.nanmax([more for _, more in gaps]):.1e} more than SciPy's, as a share (where a straight line would fit "
        f"as well, the best curve lies at infinity and the searches stop at different places). {budget(args)}", "",
    ]  # fmt: skip


def main() -> None:
    if "--measure" in sys.argv:
        run, video, table, _, device = sys.argv[sys.argv.index("--measure") + 1 :]
        print(json.dumps(measure(Path(run), Path(video), Path(table), device)))
        return
    parser = common_options(__doc__.splitlines()[0])
    parts = {"video": video_part, "safety": safety_part, "quality": quality_part}
    parser.add_argument("--part", choices=tuple(parts))
    parser.add_argument("--minutes", type=lambda text: [float(m) for m in text.split(",")], default=[1.0, 10.0])
    parser.add_argument("--clips", type=int, default=1800, help="size of the playground")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--strategy", default="full")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(DEGRADATIONS))
    args = parser.parse_args()
    for name, part in parts.items():
        if args.part in (None, name):
            part(args)


if __name__ == "__main__":
    main()

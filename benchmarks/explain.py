"""What an explanation costs: against a plain forward pass, against Captum called by hand, and in memory.

    python benchmarks/explain.py [--clips 32] [--repeats 5] [--threads 1]

``nano``, clips of noise. All cases of a table take turns in one run; times are CPU seconds of the process, which other
work on the machine hardly moves. Memory is the peak of a process of its own, above that of one that runs the plain
forward pass. Writes the section "Explaining" of ``benchmarks/RESULTS.md``.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients, Occlusion, ShapleyValueSampling
from results import write_section

from workbench.analysis.explain import baseline_pixels, explain, integrate_gradients
from workbench.analysis.explaining.attention import attention_maps
from workbench.analysis.explaining.looking import token_attention
from workbench.analysis.explaining.taps import TaskOutput, tapped
from workbench.analysis.explaining.tubes import tube_numbers
from workbench.analysis.maps import Maps
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML
from workbench.models.tokens import dense_attentions
from workbench.training.runs import environment
from workbench.views.side_view import SideBySideView
from workbench.views.token_view import TokenView

TASK = Task("action", "multiclass", tuple("abcdefghij"))
STEPS, PERMUTATIONS = 64, 4
# Encoders whose memory is measured, on one clip: config.json, frames, and whether naive storage is tried as well.
ENCODERS: dict[str, tuple[dict[str, Any], int, int]] = {
    "VideoMAE-B, 16 frames of 224": ({"model_type": "videomae"}, 16, 224),
    "V-JEPA 2-L with 6 of 24 blocks, 16 frames of 256": (
        {"model_type": "vjepa2", "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 6}, 16, 256,
    ),
}  # fmt: skip


def model_of(backbone: Any) -> Any:
    torch.manual_seed(0)
    model = TML(backbone, (TASK,)).eval()
    return SimpleNamespace(model=lambda device: model.to(device), tasks=(TASK,), tml=model)


def medians(cases: dict[str, Callable[[], Any]], repeats: int) -> pd.Series:
    """Median CPU seconds of each case; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            start = time.process_time()
            case()
            if turn:
                seconds[name].append(time.process_time() - start)
    return pd.Series({name: float(np.median(values)) for name, values in seconds.items()})


def against_forward(run: Any, clips: np.ndarray, repeats: int) -> pd.DataFrame:
    def plain() -> None:
        with torch.inference_mode():
            for start in range(0, len(clips), 16):
                run.tml(run.tml.backbone.prepare(torch.from_numpy(clips[start : start + 16])))

    cases: dict[str, Callable[[], Any]] = {"plain forward": plain}
    for method in ("rollout", "attnlrp", "gradient_attention"):
        cases[method] = partial(explain, run, clips, method=method, device="cpu", progress=False)
    found = medians(cases, repeats)
    return pd.DataFrame({"CPU s": found.round(3), "of a forward": (found / found["plain forward"]).round(2)})


def against_captum(run: Any, clips: np.ndarray, repeats: int) -> pd.DataFrame:
    backbone, output = run.tml.backbone, TaskOutput(run.tml, TASK.name)
    grid = backbone.grid
    tube = (grid[0] // 2, grid[1] // 2, grid[2] // 2)
    options: dict[str, Any] = {"device": "cpu", "progress": False, "target": 3}

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        x = backbone.prepare(torch.from_numpy(clips))
        return x, baseline_pixels(x, torch.zeros(3), "blur")

    def ig() -> None:
        x, x0 = inputs()
        LayerIntegratedGradients(output, backbone.embedding).attribute(
            x, x0, target=3, n_steps=STEPS, internal_batch_size=8
        )

    def gxa() -> None:
        LayerGradientXActivation(output, backbone.embedding).attribute(inputs()[0], target=3)

    def occlusion() -> None:
        x, x0 = inputs()
        size = (tube[0] * backbone.tubelet_size, 3, tube[1] * backbone.patch_size, tube[2] * backbone.patch_size)
        with torch.no_grad():
            Occlusion(output).attribute(x, size, strides=size, baselines=x0, target=3)

    def shapley() -> None:
        x, x0 = inputs()
        with torch.no_grad():
            ShapleyValueSampling(output).attribute(
                x, x0, target=3, feature_mask=tube_numbers(backbone, tube), n_samples=PERMUTATIONS
            )

    def audited() -> None:
        """What the verb calls, but with steps that do not double."""
        x, x0 = inputs()
        with tapped(backbone, "embedding") as tap:
            integrate_gradients(
                output, tap, x, x0, [3] * len(x), first_steps=STEPS, max_steps=STEPS, internal_batch_size=8
            )

    ours: dict[str, dict[str, Any]] = {
        "integrated_gradients": {}, "gradient_x_activation": {}, "occlusion": {"tube": tube},
        "shapley": {"tube": tube, "permutations": PERMUTATIONS},
    }  # fmt: skip
    hands = {"integrated_gradients": ig, "gradient_x_activation": gxa, "occlusion": occlusion, "shapley": shapley}
    cases: dict[str, Callable[[], Any]] = {}
    for method, own in ours.items():
        cases[f"{method}, Captum by hand"] = hands[method]
        cases[method] = partial(explain, run, clips, method=method, **own, **options)
    cases["integrated_gradients"] = audited
    found = medians(cases, repeats)
    by_hand = [found[f"{method}, Captum by hand"] for method in ours]
    mine = [found[method] for method in ours]
    return pd.DataFrame(
        {"Captum, CPU s": np.round(by_hand, 3), "here, CPU s": np.round(mine, 3),
         "speed": np.round(np.divide(by_hand, mine), 2)}, index=list(ours),
    )  # fmt: skip


def peak_gb(what: str, config: dict[str, Any], num_frames: int, size_px: int) -> float:
    """Peak memory of this process after ``what``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        record = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}  # memory does not depend on it
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(record))
        backbone = load_backbone(folder, weights="random", num_frames=num_frames, size_px=size_px)
    model = model_of(backbone).tml
    x = torch.randn(1, num_frames, 3, size_px, size_px)
    with torch.inference_mode():
        if what == "forward":
            model(x)
        elif what == "rollout":
            attention_maps(model, TASK.name, x, "rollout")
        else:
            dense_attentions(backbone.forward_with_attention(x)[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory() -> pd.DataFrame:
    rows = {}
    for name, (config, frames, size) in ENCODERS.items():
        found = {}
        for what in ("forward", "rollout", "all weights"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: a peak never falls
                found[what] = pool.apply(peak_gb, (what, config, frames, size))
        layers, width, heads = (
            config.get(k, v) for k, v in (("num_hidden_layers", 12), ("hidden_size", 768), ("num_attention_heads", 12))
        )
        tokens = frames // 2 * (size // 16) ** 2
        rows[name] = {
            "tokens": tokens, "forward GB": round(found["forward"], 2),
            "rollout, extra GB": round(found["rollout"] - found["forward"], 2),
            "calculated GB": round(kept_gb(tokens, width, layers), 2),
            "all weights, extra GB": round(found["all weights"] - found["forward"], 2),
            "their size GB": round(4 * layers * heads * tokens**2 / 2**30, 2),
        }  # fmt: skip
    return pd.DataFrame(rows).T


def kept_gb(tokens: int, width: int, layers: int) -> float:
    """Queries and keys of one clip in float32, and the piece of weights in hand (three times, while it is made)."""
    return (8 * tokens * width * layers + 3 * 2**26) / 2**30


def scrubbing(repeats: int) -> pd.DataFrame:
    """Milliseconds of what the kernel does in a step of a view, at 1568 tokens and 16 frames of 224 px, wall-clock.

    The first visit of a frame draws it, later ones find it kept. A click on a token looks its attention up in a
    VideoMAE-B with random weights.
    """
    rng, grid = np.random.default_rng(0), (8, 14, 14)
    frames = rng.integers(0, 256, (1, 16, 224, 224, 3), np.uint8)
    rows: dict[str, list[float]] = {}
    for count in (1, 4):
        for _ in range(repeats):
            view = SideBySideView({
                f"map {i}": Maps("rollout", "action", ("a",), rng.random((1, *grid), np.float32), False, frames, ("c",))
                for i in range(count)
            })  # fmt: skip
            for visit in ("first visit", "kept"):
                steps = [*range(1, 16), 0]
                rows.setdefault(f"scrub, {count} map(s), {visit}", []).extend(timed(view, "frame", steps))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "videomae"}))
        record = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(record))
        run = model_of(load_backbone(folder, weights="random"))
    tokens = TokenView(token_attention(run, frames, device="cpu", progress=False))
    rows["click on a token"] = timed(tokens, "column", [1, 12, 3, 9, 5, 0] * repeats)
    table = {
        name: {"median ms": np.median(v), "95th percentile": np.percentile(v, 95), "worst": max(v), "steps": len(v)}
        for name, v in rows.items()
    }
    return pd.DataFrame(table).T.round(1)


def timed(view: Any, trait: str, values: list[int]) -> list[float]:
    """Milliseconds to set ``trait`` to each of ``values`` in turn, with all that follows in the kernel."""
    found = []
    for value in values:
        start = time.perf_counter()
        setattr(view, trait, value)
        found.append(1000 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = model_of(load_backbone("nano"))
    b = run.tml.backbone
    clips = np.random.default_rng(0).integers(0, 256, (args.clips, b.num_frames, b.size_px, b.size_px, 3), np.uint8)
    lines = [
        f"`benchmarks/explain.py --clips {args.clips} --repeats {args.repeats} --threads {args.threads}`: "
        f"{b.extra_repr()}",
        "", f"### Against a plain forward pass ({args.clips} clips, medians of {args.repeats})", "",
        "```", against_forward(run, clips, args.repeats).to_string(), "```", "",
        f"### Against Captum by hand (2 clips, {STEPS} steps, {PERMUTATIONS} orders of 8 tubes)", "",
        "```", against_captum(run, clips[:2], args.repeats).to_string(), "```", "",
        "### A step in the views, at 1568 tokens", "", "```", scrubbing(args.repeats).to_string(), "```", "",
        "### Memory of a rollout, one clip", "", "```", memory().to_string(), "```", "",
        f"V-JEPA 2-L, 64 frames of 256 (8192 tokens, 24 blocks), calculated the same way: "
        f"{kept_gb(8192, 1024, 24):.2f} GB; all weights would be {4 * 24 * 16 * 8192**2 / 2**30:.0f} GB.",
    ]  # fmt: skip
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines += ["", f"{date.today()}; {platform.machine()}, {platform.system()}; {versions}"]
    write_section("Explaining", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""A fine-tuning step of ours against a bare PyTorch loop and transformers' Trainer, with the same model and clips.

    python benchmarks/train.py [--repeats 5] [--steps 24] [--precisions fp32 bf16]
    python benchmarks/train.py --device cuda [--batch 32] [--peak-tflops 989]

All three fine-tune every weight with AdamW on the same batches in memory and take turns in one process. Ours takes the
fused AdamW, the bare loop torch's default and, in a row of its own, the fused one. The bare loop
and the Trainer get finished float tensors; ours gets uint8 clips and normalises them, seeds, checks the loss, clips the
gradients, sets the rates and asks the training doctor, through the very function that ``fine_tune`` calls; once as
plainly as the others and once with its default augmentation. Timed is what lies between two optimiser steps: on the
CPU the median, and the CPU time, which other work on the machine hardly moves; on a GPU the mean over the run, with
the GPU waited for at both ends. CPU: nano, 16 frames of 64 px. CUDA: VideoMAE-base's geometry (16 x 224, random
weights), bf16, ``torch.compile``, with the share of the device's peak that the model's own operations make up. Writes
the section "Training" (CPU) or "Training on a GPU" of ``benchmarks/RESULTS.md``.
"""

import argparse
import logging
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from results import write_section
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import Trainer, TrainingArguments, VideoMAEConfig, VideoMAEForVideoClassification

import workbench as wb
from workbench.data.augment import MARGIN, OVERSAMPLE
from workbench.data.cache import DecodedClips
from workbench.data.protocol import Protocol
from workbench.models.hub import locate
from workbench.models.tml import TML
from workbench.training.feed import Feed
from workbench.training.finetune import make_accelerator
from workbench.training.loop import train
from workbench.training.runs import build_model, environment

TASK = wb.Task("action", "multiclass", tuple(f"class {i}" for i in range(10)))
WARM_STEPS = 2
"""Steps before the clock runs."""


class Clock:
    """Seconds and CPU seconds per optimiser step, by a hook on every optimiser there is."""

    def __init__(self, device: torch.device, skip: int) -> None:
        self.device, self.skip = device, skip
        self.seen: list[tuple[float, float]] = []

    def __call__(self, *_: Any) -> None:
        if self.device.type == "cuda" and len(self.seen) == self.skip:
            torch.cuda.synchronize()
        self.seen.append((time.perf_counter(), time.process_time()))

    def per_step(self) -> tuple[float, float]:
        """Wall and CPU seconds."""
        kept = self.seen[self.skip :]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return (time.perf_counter() - kept[0][0]) / (len(kept) - 1), math.nan
        steps = np.diff(np.array(kept), axis=0)
        return statistics.median(steps[:, 0]), statistics.median(steps[:, 1])


@contextmanager
def timed(device: torch.device, skip: int) -> Iterator[Clock]:
    clock = Clock(device, skip)
    handle = register_optimizer_step_post_hook(clock)
    try:
        yield clock
    finally:
        handle.remove()


class Contest:
    """The same clips, and each contender's way of training on them."""

    def __init__(self, args: argparse.Namespace, precision: str, checkpoint: str, folder: Path) -> None:
        self.args, self.precision, self.checkpoint, self.folder = args, precision, checkpoint, folder
        self.device = torch.device(args.device)
        self.skip = WARM_STEPS
        backbone = wb.load_backbone(checkpoint)
        self.frames, self.size = backbone.num_frames, backbone.size_px
        rng = np.random.default_rng(0)
        n = self.batches * args.batch
        self.clips = rng.integers(0, 256, (n, self.frames, self.size, self.size, 3), dtype=np.uint8)
        self.labels = rng.integers(0, 10, n)
        self.pixels = torch.cat([backbone.prepare(torch.from_numpy(part)) for part in np.array_split(self.clips, n)])

    @property
    def batches(self) -> int:
        """Different ones in memory; a run goes round them."""
        return min(8, self.args.steps + self.skip)

    def setup(self, **changes: Any) -> wb.Setup:
        epochs = math.ceil((self.args.steps + self.skip) / self.batches)
        return wb.Setup(
            backbone=self.checkpoint, strategy="full", batch_size=self.args.batch, epochs=epochs, lr=1e-5, head_lr=1e-5,
            precision=self.precision, **changes,
        )  # fmt: skip

    def model(self) -> TML:
        return build_model(self.setup(), (TASK,))

    def ours(self, *, augment: bool) -> tuple[float, float]:
        setup = self.setup(augment=augment)
        stored = self.clips
        if augment:
            side = round(self.size * MARGIN)
            shape = (len(stored), self.frames * OVERSAMPLE, side, side, 3)
            stored = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        val = self._decoded(self.clips[:2], self.labels[:2])
        data = Feed(
            self._decoded(stored, self.labels), val, val, None, Protocol(num_frames=self.frames, size_px=self.size)
        )
        accelerator = make_accelerator(setup, self.device, compile_model=self.device.type == "cuda")
        with tempfile.TemporaryDirectory(dir=self.folder) as run, timed(self.device, self.skip) as clock:
            train(
                self.model(), data, setup, accelerator, Path(run), {}, flip=False, progress=False,
                watch=lambda history: None,
            )  # fmt: skip
            # An epoch's end (val, checkpoint) lies between two steps as well: a median does not see it, a mean does.
            return clock.per_step()

    def _decoded(self, clips: np.ndarray, labels: np.ndarray) -> DecodedClips:
        ids = [f"c{i}" for i in range(len(clips))]
        frame = pd.DataFrame({
            "clip_id": ids, "path": "a.mp4", "start_seconds": np.nan, "end_seconds": np.nan, "split": "train",
            "group": ids, "action": [TASK.classes[label] for label in labels],
        })  # fmt: skip
        return DecodedClips(clips, wb.ClipTable(frame, (TASK,), root=Path(".")), "pyav")  # type: ignore[arg-type]

    def bare(self, *, fused: bool | None = None) -> tuple[float, float]:
        """What a user would write: no more than forward, loss, backward, step; AdamW as torch gives it, or fused."""
        model = self.model().to(self.device).train()
        network: Callable[..., Any] = torch.compile(model) if self.device.type == "cuda" else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=fused)
        pixels, labels = self.pixels.to(self.device), torch.from_numpy(self.labels).to(self.device)
        half = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with timed(self.device, self.skip) as clock:
            for step in range(self.args.steps + self.skip):
                rows = slice(step % self.batches * self.args.batch, (step % self.batches + 1) * self.args.batch)
                with half:
                    loss = F.cross_entropy(network(pixels[rows])["action"].float(), labels[rows])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            return clock.per_step()

    def trainer(self) -> tuple[float, float]:
        model = VideoMAEForVideoClassification.from_pretrained(
            locate(self.checkpoint), num_labels=10, ignore_mismatched_sizes=True
        )
        pairs = zip(self.pixels, self.labels.tolist(), strict=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as run, timed(self.device, self.skip) as clock:
            arguments = TrainingArguments(
                output_dir=run, per_device_train_batch_size=self.args.batch, max_steps=self.args.steps + self.skip,
                learning_rate=1e-5, bf16=self.precision == "bf16", use_cpu=self.device.type == "cpu", report_to=[],
                save_strategy="no", logging_strategy="no", disable_tqdm=True,
                torch_compile=self.device.type == "cuda",
            )  # fmt: skip
            dataset: Any = [{"pixel_values": pixels, "labels": label} for pixels, label in pairs]
            Trainer(model=model, args=arguments, train_dataset=dataset).train()
            return clock.per_step()


def contenders(contest: Contest) -> dict[str, Callable[[], tuple[float, float]]]:
    return {
        "bare PyTorch": contest.bare,
        "bare PyTorch, fused AdamW": lambda: contest.bare(fused=True),
        "ours": lambda: contest.ours(augment=False),
        "ours, default augmentation": lambda: contest.ours(augment=True),
        "transformers' Trainer": contest.trainer,
    }


def section(args: argparse.Namespace, precision: str, checkpoint: str, folder: Path) -> list[str]:
    """A table of one precision; ratios are medians of the ratios within a turn."""
    contest = Contest(args, precision, checkpoint, folder)
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders(contest)}
    memory: dict[str, float] = {}
    for _ in range(args.repeats):
        for name, run in contenders(contest).items():
            if contest.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            turns[name].append(run())
            if contest.device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 2**30
                torch.compiler.reset()
    bare, rows = turns["bare PyTorch"], []
    for name, seen in turns.items():
        wall = [args.batch / turn[0] for turn in seen]
        row = {
            "": name, "clips/s": f"{statistics.median(wall):.1f} ({min(wall):.1f} to {max(wall):.1f})",
            "of bare": f"{statistics.median(b[0] / s[0] for b, s in zip(bare, seen, strict=True)):.3f}",
        }  # fmt: skip
        if contest.device.type == "cuda":
            flops = model_flops(checkpoint) * statistics.median(wall)
            row |= {"peak GiB": f"{memory[name]:.1f}", "TFLOP/s": f"{flops / 1e12:.0f}"}
            row |= {"of peak": f"{flops / 1e12 / args.peak_tflops:.2f}"}
        else:
            cpu = statistics.median(s[1] for s in seen)
            ratio = statistics.median(b[1] / s[1] for b, s in zip(bare, seen, strict=True))
            row |= {"CPU ms/step": f"{1e3 * cpu:.0f}", "of bare's CPU": f"{ratio:.3f}"}
        rows.append(row)
    return [f"### {precision}", "", "```", pd.DataFrame(rows).to_string(index=False), "```", ""]


def model_flops(checkpoint: str) -> float:
    """Floating point operations of one clip, forward and backward: twice the weights and attention's two products per
    token forward, twice that again backward."""
    backbone = wb.load_backbone(checkpoint)
    tokens, width, blocks = math.prod(backbone.grid), backbone.hidden_size, backbone.blocks
    matrices = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim > 1)
    patches = 3 * backbone.tubelet_size * backbone.patch_size**2 * width
    return 3.0 * (2 * tokens * (matrices + patches) + len(blocks) * 4 * tokens**2 * width)


def matmul_tflops(device: torch.device) -> float:
    """The best that this device does in bf16: a product of two matrices of 8192 x 8192."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for turn in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(20 if turn else 3):
            a @ a
        torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, help="clips per step; 16, on a GPU 32")
    parser.add_argument("--steps", type=int, help="timed per turn; 24, on a GPU 60")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"))
    parser.add_argument("--backbone", help="nano, on a GPU VideoMAE-base's geometry with random weights")
    parser.add_argument("--peak-tflops", type=float, help="the device's bf16 peak; else a large product is timed")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.batch, args.steps = args.batch or (32 if cuda else 16), args.steps or (60 if cuda else 24)
    logging.getLogger("workbench").setLevel(logging.ERROR)
    asked = f"--repeats {args.repeats} --steps {args.steps} --batch {args.batch}"
    about = f"`benchmarks/train.py --device {args.device} {asked}`: clips/s as median, least and most of the turns."
    if cuda:
        source = "given" if args.peak_tflops else "the fastest product of two 8192 x 8192 matrices"
        args.peak_tflops = args.peak_tflops or matmul_tflops(torch.device("cuda"))
        about += f" {torch.cuda.get_device_name()}; peak {args.peak_tflops:.0f} TFLOP/s in bf16 ({source})."
    lines = [about, ""]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.backbone or "nano"
        if cuda and not args.backbone:
            checkpoint = str(Path(folder) / "base")
            VideoMAEForVideoClassification(VideoMAEConfig(use_mean_pooling=True)).save_pretrained(checkpoint)
        for precision in args.precisions or (("bf16",) if cuda else ("fp32", "bf16")):
            lines += section(args, precision, checkpoint, Path(folder))
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    threads = f"{torch.get_num_threads()} threads"
    lines.append(f"{date.today()}; {platform.machine()}, {platform.system()}, {threads}; {versions}")
    write_section("Training on a GPU" if cuda else "Training", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

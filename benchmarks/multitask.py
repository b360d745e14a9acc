"""What balancing several tasks costs: a training step of each method against one of the plain sum, in time and memory.

    python benchmarks/multitask.py [--clips 8] [--repeats 7] [--tasks 2 3 8] [--device cpu|cuda] [--threads 1]

``nano`` with a query decoder, every weight training (AdamW), clips of noise, every clip labelled for every task. A step
is what the training loop does after augmentation: forward, a loss per task, balance and backward, clipping, optimiser.
Methods take turns in one run; a method's number is the median of its ratios to the plain step next to it. Seconds
are CPU seconds of the process, which other work on the machine hardly moves (on CUDA: elapsed, synchronised). Memory is
the peak of a forked process of its own, above the process before its first step (on CUDA: what torch has allocated).
Methods whose solver is not installed are left out and named. Writes the section "Balancing several tasks" of
``benchmarks/RESULTS.md``.
"""

import argparse
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from results import write_section
from torch import Tensor

from workbench.data.tables import Task
from workbench.models.tml import TML
from workbench.training.balance_spec import AGGREGATORS, check_solvers
from workbench.training.joint import Joint
from workbench.training.losses import labelled_clips, summed, task_losses
from workbench.training.runs import build_model, environment
from workbench.training.setup import Setup

TITLE = "Balancing several tasks"
PLAIN = "plain backward"
ON_LOSSES = ("sum", "static:t0=2", "uncertainty", "dwa", "random", "geometric", "stch")
FULL = ("upgrad@weights", "pcgrad@weights", "mgda@weights")
MEASURED = "sum, conflict measured"
TARGETS = {"losses": 1.05, "tokens": 1.15, "weights": 2.7}
"""At three tasks; set before measuring."""


def methods() -> tuple[dict[str, str], list[str]]:
    """Those that can run here, each with the kind that its target is of; and those whose solver is absent."""
    absent = []
    for name in AGGREGATORS:
        try:
            check_solvers(name)
        except ImportError:
            absent.append(name)
    kinds = dict.fromkeys(ON_LOSSES, "losses") | {"gradnorm@tokens": "tokens", MEASURED: "tokens"}
    kinds |= {f"{name}@tokens": "tokens" for name in AGGREGATORS if name not in absent}
    return kinds | dict.fromkeys(FULL, "weights"), absent


class Steps:
    """One model and one batch, on which any method takes its step."""

    def __init__(self, count: int, clips: int, device: str) -> None:
        self.tasks = tuple(Task(f"t{i}", "multiclass", ("a", "b", "c")) for i in range(count))
        self.model: TML = build_model(Setup(head="query"), self.tasks).to(device).train()
        backbone, chance = self.model.backbone, torch.Generator().manual_seed(0)
        shape = (clips, backbone.num_frames, backbone.size_px, backbone.size_px, 3)
        self.clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=chance).to(device)
        self.targets = torch.randint(0, 3, (clips, count), generator=chance).double().to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.joints: dict[str, Joint] = {}
        self.device = device

    def joint(self, method: str) -> Joint:
        if method not in self.joints:
            setup = Setup(head="query", balance="sum", measure_conflict=1)
            setup = setup if method == MEASURED else Setup(head="query", balance=method)
            self.joints[method] = Joint(setup, self.model, self.device)
        return self.joints[method]

    def losses(self) -> dict[str, Tensor]:
        outputs: Any = self.model(self.model.backbone.prepare(self.clips))
        return task_losses(self.tasks, outputs, self.targets, {})

    def step(self, method: str) -> None:
        if method == PLAIN:
            loss = summed(self.losses())
            loss.item()
            loss.backward()
        else:
            joint = self.joint(method)
            with joint.watch(0) as seen:
                losses = self.losses()
            summed(losses).item()
            joint.backward(losses, labelled_clips(self.tasks, self.targets), seen, 0, 1)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, method: str) -> float:
        clock: Callable[[], float] = time.perf_counter if self.device == "cuda" else time.process_time
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        self.step(method)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def times(steps: Steps, names: list[str], repeats: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a plain step, and of each method the median ratio to the plain step next to it."""
    ratios: dict[str, list[float]] = {name: [] for name in names}
    plain: list[float] = []
    for name in (PLAIN, *names):
        steps.step(name)
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else names[::-1]:
            # Next to each other, in either order: the machine's pace drifts.
            pair = (PLAIN, name) if turn % 2 == 0 else (name, PLAIN)
            seconds = {one: steps.seconds(one) for one in pair}
            plain.append(seconds[PLAIN])
            ratios[name].append(seconds[name] / seconds[PLAIN])
    return float(np.median(plain)), {name: float(np.median(values)) for name, values in ratios.items()}


def memory_mib(steps: Steps, method: str) -> float:
    """What two steps of a method need at their peak, above what was there before them."""
    if steps.device == "cuda":
        steps.step(method)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps.step(method)
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_peak, args=(partial(steps.step, method), there))
    child.start()
    there.close()
    found = float(here.recv())
    child.join()
    return found


def _peak(step: Callable[[], None], pipe: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def table(counts: list[int], clips: int, repeats: int, device: str) -> tuple[pd.DataFrame, dict[int, float]]:
    """A row per method: step time and memory over the plain sum's, by number of tasks; and the plain step's seconds."""
    kinds, _ = methods()
    rows: dict[str, dict[str, Any]] = {name: {"method": name, "works on": kind} for name, kind in kinds.items()}
    seconds = {}
    for count in counts:
        steps = Steps(count, clips, device)
        # Memory first: forked processes start from one that has taken no step.
        plain = memory_mib(steps, PLAIN)
        memory = {name: memory_mib(steps, name) / plain for name in kinds}
        seconds[count], ratios = times(steps, list(kinds), repeats)
        for name, row in rows.items():
            row[f"time, {count} tasks"], row[f"memory, {count} tasks"] = round(ratios[name], 3), round(memory[name], 3)
    return pd.DataFrame(rows.values()), seconds


def markdown(shown: pd.DataFrame) -> list[str]:
    head = [f"| {' | '.join(shown)} |", f"|{'---|' * shown.shape[1]}"]
    return head + [f"| {' | '.join(map(str, row))} |" for row in shown.to_numpy().tolist()]


def verdicts(found: pd.DataFrame) -> list[str]:
    """Each kind's slowest method at three tasks against its target."""
    lines = []
    for kind, target in TARGETS.items():
        part = found[found["works on"] == kind]
        worst = part.loc[part["time, 3 tasks"].idxmax()]
        over = part[part["time, 3 tasks"] > target].method.tolist()
        said = f"above it: {', '.join(over)}" if over else "met by all"
        lines.append(
            f"- {kind}: at most {target} of a plain step at three tasks: {said} (slowest {worst.method}, "
            f"{worst['time, 3 tasks']:.2f})."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 8])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found, seconds = table(args.tasks, args.clips, args.repeats, args.device)
    absent = methods()[1]
    versions = environment()
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    plain = ", ".join(f"{1e3 * s:.0f} ms with {count}" for count, s in seconds.items())
    shown = found.replace({"works on": {"tokens": "tokens' gradients", "weights": "weights' gradients"}})
    lines = [
        f"`python benchmarks/multitask.py --clips {args.clips} --repeats {args.repeats}` on {date.today()}, {name}, "
        f"{args.threads} thread(s), torch {versions['torch']}; nano with a query decoder, {args.clips} clips.",
        "",
        f"A step over that of the plain sum (tasks: {plain}), median of {args.repeats} turns; memory likewise, peaks.",
        "",
        *markdown(shown),
        "",
        *(verdicts(found) if 3 in args.tasks else []),
        *([f"- Not measured, their solvers are not installed: {', '.join(absent)}."] if absent else []),
    ]  # fmt: skip
    write_section(TITLE if args.device == "cpu" else f"{TITLE}, {name}", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""``workbench demo``: the whole way once, headless, ending in a report one can open."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.analysis.explain import explain
from workbench.data.synthetic.playground import playground, playground_example
from workbench.training.predict import predict
from workbench.training.sweep import sweep
from workbench.views.report import quickstart_report

log = logging.getLogger(__name__)

STRATEGIES = ("scratch", "linear", "full")
EPOCHS = 6
NEXT_STEPS = (
    "make lab: the notebooks, starting with 01_quickstart.ipynb",
    "workbench train YOUR_FOLDER --task NAME: the same on your own clips (one sub-folder per class, or a CSV)",
    "workbench predict RUN_FOLDER FILE...: a trained run on new files",
)


def demo(
    *, report: str | Path = "reports/quickstart.html", runs_dir: str | Path = "runs", clips: int = 600,
    epochs: int = EPOCHS, device: str = "auto", workers: int = 2,
) -> Path:  # fmt: skip
    """Build the playground, transfer ``nano`` to it in three ways, compare, explain, predict; write the report."""
    timings: dict[str, float] = {}

    @contextmanager
    def step(title: str) -> Iterator[None]:
        print(f"\n== {title}", flush=True)
        began = time.monotonic()
        yield
        timings[title] = round(time.monotonic() - began, 1)

    with step("playground"):
        table = playground(clips=clips, workers=workers)
        print(table)
    with step("fine-tune scratch, linear, full"):
        runs = sweep(table, STRATEGIES, epochs=epochs, runs_dir=runs_dir, device=device, workers=workers)
    with step("compare"):
        comparison = compare(runs, reference="scratch")
        print(comparison)
    with step("explain"):
        shown = table.test[:: max(1, len(table.test) // 4)].head(4)  # from different scenes
        methods = ("rollout", "integrated_gradients")
        maps = [explain(runs["full"], shown, method=m, task="action", steps=16, device=device) for m in methods]
    with step("errors"):
        wrong = [errors(runs["full"], task=task.name) for task in table.tasks]
    with step("predict a file never seen"):
        unseen = playground_example(Path(report).parent / "never_seen.mp4")
        predictions = predict(runs["full"], unseen, device=device)
        print(predictions.to_string(index=False))
    chance = {
        t.name: 1 / len(t.classes) if t.kind == "multiclass" else 0.5 if t.kind == "binary" else 0.0
        for t in table.tasks
    }
    path = quickstart_report(
        report, clips=table, comparison=comparison, runs=runs, maps=maps, errors=wrong, predictions=predictions,
        timings=timings, chance=chance, next_steps=NEXT_STEPS,
    )  # fmt: skip
    total = sum(timings.values())
    print(f"\nDone in {total:.0f} s: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in timings.items()))
    print(f"Open {path} in a browser; then: make lab")
    return path

"""Where in the network tasks pull apart: their gradients compared layer by layer, on demand."""

from itertools import islice

import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.data.cache import decode_table
from workbench.data.tables import ClipTable
from workbench.training.conflict import conflict_by_layer, layers_of
from workbench.training.feed import loader, protocol_of
from workbench.training.losses import labelled_clips, standardisation, task_losses
from workbench.training.predict import pick_device
from workbench.training.runs import Run, build_model
from workbench.training.setup import Setup


def layer_conflict(
    run: Run | Setup,
    clips: ClipTable,
    *,
    batches: int = 4,
    split: str = "train",
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """The tasks' gradients compared in each layer that they share, on some batches: ``batch, layer, task, other,
    cosine, norm_task, norm_other``, a row per batch, layer and pair of tasks.

    ``run``: the trained model, or with a ``Setup`` the one before training. ``clips`` are shown as when predicting, in
    batches of the setup's size and the order of its seed; a task without a label in a batch is left out of it. Layers:
    ``embedding``, ``block 0`` and so on, ``decoder`` (of ``head="query"``); those that do not train are left out. A
    cosine is NaN where a gradient is zero. Costs a backward pass per task and batch. Raises ValueError on fewer than
    two tasks, where they share nothing that trains, and where no batch has labels of two.
    """
    setup = run if isinstance(run, Setup) else run.setup
    table = clips.with_tasks(setup.tasks or [task.name for task in clips.tasks])
    if isinstance(run, Run):  # its classes in its own order
        table = table._with(table.frame, tasks=run.tasks)
    tasks = table.tasks
    model = (build_model(run, tasks) if isinstance(run, Setup) else run.model()).to(pick_device(device)).eval()
    layers = layers_of(model)
    if len(tasks) < 2 or not layers:
        why = "the tasks share nothing that trains" if len(tasks) > 1 else f"{tasks[0].name!r} is the only task"
        raise ValueError(f"no gradients to compare under strategy={setup.strategy!r}: {why}")
    standard = standardisation(table.train, tasks) if isinstance(run, Setup) else run.standard
    reading = protocol_of(setup.replace(test_clips=1, test_crops=1), model.backbone).reading()
    part = decode_table(table.split(split), **reading, workers=workers, progress=progress)
    found = []
    with torch.random.fork_rng(devices=[]):  # the loader draws a seed from the caller's state
        shown = iter(loader(part, setup.seed, setup.batch_size)[0])
    bar = tqdm(islice(shown, batches), total=batches, desc="gradients", disable=not progress)
    for i, (frames, targets) in enumerate(bar):
        targets = targets.to(model.backbone.device)
        labelled = labelled_clips(tasks, targets)
        with torch.enable_grad():
            outputs = model(model.backbone.prepare(frames.to(model.backbone.device)))
            losses = task_losses(tasks, outputs, targets, standard)
            known = {task: loss for task, loss in losses.items() if labelled[task]}
            if len(known) > 1:
                found.append(conflict_by_layer(known, layers).assign(batch=i))
    if not found:
        raise ValueError(f"none of {batches} batches of {split} has labels of two tasks; raise batches or batch_size")
    table_of = pd.concat(found, ignore_index=True)
    return table_of[["batch", *(name for name in table_of if name != "batch")]]

"""All probes of one head trained, scored and chosen from; :mod:`workbench.training.probing.probes` is the verb."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.data.tables import Task
from workbench.data.tasks import target_slices
from workbench.models.backbones import Backbone
from workbench.models.strategies import parse_strategy
from workbench.models.tml import TML
from workbench.training.feed import EpochOrder, Feed, targets_of
from workbench.training.losses import Standard, standardisation
from workbench.training.metrics import main_metric, weighted_metrics
from workbench.training.optim import rate
from workbench.training.predict import merge_views, prediction_frame
from workbench.training.probing.bank import Bank, answers, chunks, normalised, probe_bytes
from workbench.training.probing.features import Features
from workbench.training.setup import Setup


@dataclass
class Chosen:
    """The best probe so far of a task, head and seed: by val score, then by val loss."""

    rank: tuple[float, float]
    setup: Setup
    state: dict[str, Tensor]
    predictions: pd.DataFrame


class Trial:
    """All probes of one head."""

    def __init__(
        self, backbone: Backbone, data: Feed, tasks: tuple[Task, ...], setup: Setup, grid: list[tuple[float, float]],
        seeds: list[int],
    ) -> None:  # fmt: skip
        assert isinstance(data.train, Features)  # by feature_feed
        self.backbone, self.data, self.tasks, self.setup = backbone, data, tasks, setup
        self.grid, self.seeds, self.train = grid, seeds, data.train
        self.head, self.columns = parse_strategy(setup.strategy), target_slices(tasks)
        self.rows: list[dict[str, Any]] = []
        self.chosen: dict[tuple[str, str, int], Chosen] = {}
        self.seconds = 0.0
        self.standard: Standard = standardisation(data.train.table, self.tasks)
        pooled = data.train.kind == "pooled"
        self.memory = torch.from_numpy(data.train.values).to(backbone.device) if pooled else None

    def run(self, memory_gb: float, progress: bool) -> None:
        """Train all, at most ``memory_gb`` of them side by side; fills ``rows``, ``chosen`` and ``seconds``."""
        began, tokens = time.monotonic(), int(np.prod(self.train.grid))
        each = sum(
            probe_bytes(
                self.train.kind, self.backbone.hidden_size, self.backbone.num_heads, tokens, self.setup.batch_size,
                task.num_outputs,
            )
            for task in self.tasks
        )  # fmt: skip
        parts = chunks(len(self.seeds), len(self.grid), int(memory_gb * 1e9 / each))
        batches = math.ceil(len(self.train) / self.setup.batch_size)
        total = len(parts) * self.setup.epochs * batches
        with tqdm(total=total, desc=f"{self.head.name} probes", disable=not progress, leave=False) as bar:
            for some, wide in parts:
                seeds, grid = [self.seeds[i] for i in some], [self.grid[j] for j in wide]
                banks = [self._bank(task, seeds, grid) for task in self.tasks]
                self._train(banks, seeds, bar)
                for bank in banks:
                    self._score_bank(bank, seeds, grid)
        self.seconds = time.monotonic() - began

    def _bank(self, task: Task, seeds: list[int], grid: list[tuple[float, float]]) -> Bank:
        fresh = []
        for seed in seeds:  # drawn as a run of this setup draws its head
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                fresh.append(TML(self.backbone, [task], head=self.head.head).head)
        return Bank(
            task, fresh, [lr for lr, _ in grid], [wd for _, wd in grid], betas=self.setup.betas,
            clip_norm=self.setup.clip_norm, standard=self.standard, device=self.backbone.device,
        )  # fmt: skip

    def _train(self, banks: list[Bank], seeds: list[int], bar: Any) -> None:
        n, size, setup = len(self.train), self.setup.batch_size, self.setup
        targets = targets_of(self.train.table).to(self.backbone.device)
        orders = [EpochOrder(n, seed, self.train.views) for seed in seeds]
        steps, step = setup.epochs * math.ceil(n / size), 0
        for epoch in range(setup.epochs):
            for order in orders:
                order.epoch = epoch
            items = np.array([list(order) for order in orders])  # (S, n)
            for start in range(0, n, size):
                rows, views = np.divmod(items[:, start : start + size], self.train.views)  # (S, B)
                values = self._read(rows, views)
                factor = rate(step, steps, setup.warmup, setup.schedule)
                picked = targets[torch.from_numpy(rows).to(targets.device)]  # (S, B, columns)
                for bank in banks:
                    bank.step(values, picked[..., self.columns[bank.task.name].start], factor)
                step += 1
                bar.update()

    def _read(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """(S, B, D), or (S, B, N, D) normalised."""
        if self.memory is not None:
            return self.memory[torch.from_numpy(rows), torch.from_numpy(views)]
        flat = self.train.take(rows.reshape(-1), views.reshape(-1)).to(self.backbone.device).float()
        return normalised(flat).unflatten(0, rows.shape)

    def _score_bank(self, bank: Bank, seeds: list[int], grid: list[tuple[float, float]]) -> None:
        """A row per probe of the bank; the best so far of each seed is kept."""
        task, column = bank.task, self.columns[bank.task.name].start
        parts = [part for part in (self.data.val_views, self.data.test) if isinstance(part, Features)]
        outputs = [self._outputs(bank, part) for part in parts]
        known = [targets_of(part.table)[:, column] for part in parts]
        val = outputs[0] if task.kind == "multiclass" else outputs[0][..., None]
        losses = bank.losses(val.to(self.backbone.device), known[0].to(self.backbone.device).expand(len(seeds), -1))
        for s, seed in enumerate(seeds):
            for g, (lr, decay) in enumerate(grid):
                own = [output[s, g] for output in outputs]
                scores = [self._score(task, output, y) for output, y in zip(own, known, strict=True)]
                row: dict[str, Any] = {
                    "task": task.name, "head": self.head.name, "seed": seed, "lr": lr, "weight_decay": decay,
                    "metric": main_metric(task.kind), "val_loss": float(losses[s, g]), "val": scores[0],
                    "test": scores[1] if len(scores) > 1 else math.nan,
                }  # fmt: skip
                self.rows.append(row)
                # By what val says; test is not looked at. What is not a number comes last.
                rank = (_or_last(row["val"]), _or_last(-row["val_loss"]))
                key = (task.name, self.head.name, seed)
                if key not in self.chosen or rank > self.chosen[key].rank:
                    setup = self.setup.replace(tasks=(task.name,), head_lr=lr, weight_decay=decay, seed=seed)
                    frames = [
                        prediction_frame(part.table, [task], {task.name: output}, self.standard)
                        for part, output in zip(parts, own, strict=True)
                    ]
                    self.chosen[key] = Chosen(rank, setup, bank.state(s, g), pd.concat(frames, ignore_index=True))

    @torch.no_grad()
    def _outputs(self, bank: Bank, part: Features) -> Tensor:
        """Of every probe on every clip, views merged, on the CPU: (S, G, n, K), or (S, G, n)."""
        views, found = part.views, []
        size = max(1, self.setup.batch_size // views)
        for start in range(0, len(part), size):
            values = torch.from_numpy(np.array(part.values[start : start + size])).to(self.backbone.device).float()
            values = values.flatten(0, 1) if bank.pooled else normalised(values.flatten(0, 1))
            logits = bank.logits(values.expand(bank.shape[0], *values.shape))  # (S, G, b V, K)
            flat = logits.flatten(0, 2) if bank.task.kind == "multiclass" else logits.flatten()
            merged = merge_views(bank.task, flat, views)
            found.append(merged.unflatten(0, (*bank.shape, len(values) // views)).cpu())
        return torch.cat(found, dim=2)

    def _score(self, task: Task, output: Tensor, targets: Tensor) -> float:
        known = ~torch.isnan(targets)
        if not known.any():
            return math.nan
        predicted, probabilities = answers(task, output[known], self.standard)
        return float(weighted_metrics(
            task.kind, [main_metric(task.kind)], target=targets[known].numpy(), prediction=predicted,
            probabilities=probabilities, weights=np.ones((1, int(known.sum()))),
        )[0, 0])  # fmt: skip


def _or_last(value: float) -> float:
    return -math.inf if math.isnan(value) else value

"""A run is a folder; everything needed to read, compare, explain or use it again is in there, and none of it pickled.

``run.json`` (setup, protocol, data, timings, environment), ``history.parquet``, ``predictions.parquet``,
``weights.safetensors`` (only what trained), and ``checkpoint/`` while running. ``run.json`` is written last: a folder
without it is a run that has not finished.
"""

import json
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from workbench.data.protocol import Protocol
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import apply_strategy, parse_strategy
from workbench.models.tml import TML
from workbench.training.checking.findings import Finding
from workbench.training.losses import Standard
from workbench.training.setup import Setup

log = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "decord", "av")


def environment() -> dict[str, str]:
    """Versions that a number depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def build_model(setup: Setup, tasks: tuple[Task, ...], *, pretrained: bool | None = None) -> TML:
    """The model of a setup, before training: heads (LoRA, adapters; from scratch, the backbone) drawn from
    ``setup.seed``."""
    strategy = parse_strategy(setup.strategy)
    wanted = strategy.pretrained if pretrained is None else pretrained
    backbone = load_backbone(
        setup.backbone, weights="pretrained" if wanted else "random", seed=setup.seed, num_frames=setup.num_frames,
        size_px=setup.size_px,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(setup.seed)
        model = TML(
            backbone, tasks, head=setup.head or strategy.head, decoder_layers=setup.decoder_layers,
            task_attention=setup.task_attention,
        )  # fmt: skip
    apply_strategy(model, strategy, seed=setup.seed)
    return model


def trained_state(model: TML) -> dict[str, torch.Tensor]:
    """What training changes: every parameter that requires a gradient, on the CPU."""
    return {n: p.detach().cpu().contiguous().clone() for n, p in model.named_parameters() if p.requires_grad}


class Run:
    """A finished run, read from its folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.record: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        self.name: str = self.record["name"]
        self.setup = Setup.from_json(self.record["setup"])
        self.protocol = Protocol(**self.record["protocol"])
        self.tasks = tuple(Task.from_json(t) for t in self.record["tasks"])
        self.standard: Standard = {name: (mean, std) for name, (mean, std) in self.record["standardise"].items()}

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_parquet(self.folder / "history.parquet")

    @property
    def findings(self) -> list[Finding]:
        """What the training doctor found (:mod:`workbench.training.checking.checkup`); empty where all was well."""
        return [Finding.from_json(record) for record in self.record.get("findings", [])]

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per clip (val and test) and task; see DESIGN: ``clip_id, path, group, split, task, target, ...``."""
        return pd.read_parquet(self.folder / "predictions.parquet")

    def model(self, device: str = "cpu") -> TML:
        """The trained model in eval mode, float32.

        Raises ValueError when the backbone it was trained on is no longer the same (what stayed frozen is not stored).
        """
        weights = load_file(self.folder / "weights.safetensors")
        borrows = not parse_strategy(self.setup.strategy).whole
        model = build_model(self.setup, self.tasks, pretrained=borrows)
        if borrows and (now := model.backbone.fingerprint()) != self.record["backbone_fingerprint"]:
            raise ValueError(
                f"run {self.name!r} was trained on backbone {self.setup.backbone!r} with fingerprint "
                f"{self.record['backbone_fingerprint']}, but that backbone is now {now}; train again or restore it"
            )
        wanted = {n for n, p in model.named_parameters() if p.requires_grad}
        if wanted != set(weights):
            odd = sorted(wanted ^ set(weights))
            raise ValueError(f"weights of run {self.name!r} do not fit its setup; first differences: {odd[:3]}")
        model.load_state_dict(weights, strict=False)
        return model.to(device).eval()

    def __repr__(self) -> str:
        clips, last = self.record["data"]["clips"], self.history.iloc[-1]
        lost = f" ({bad} quarantined)" if (bad := self.record["data"]["quarantined"]) else ""
        kept = f"epoch {self.record['kept_epoch']} of {int(last.epoch)} kept"
        return (
            f"Run {self.name!r}: {self.setup.strategy} from {self.setup.backbone}, {kept}, "
            f"{clips['train']} train / {clips['val']} val / {clips['test']} test clips{lost}, "
            f"{self.record['parameters']['trainable']:,} trainable parameters, "
            f"{self.record['timings']['train_seconds']:.0f} s{self._complaints()}"
        )

    def _complaints(self) -> str:
        codes = [finding.code for finding in self.findings if finding.severity != "note"]
        return f"; the training doctor found {', '.join(dict.fromkeys(codes))} (see .findings)" if codes else ""


def load_run(folder: str | Path) -> Run:
    """Open a finished run. Raises FileNotFoundError saying what is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder {str(folder)!r}")
    if not (folder / "run.json").exists():
        unfinished = (folder / "checkpoint").exists()
        hint = "it has not finished; start the same fine_tune again to resume it" if unfinished else "it is no run"
        raise FileNotFoundError(f"{str(folder)!r} has no run.json: {hint}")
    return Run(folder)


def find_runs(runs_dir: str | Path = "runs") -> dict[str, Run]:
    """The finished runs in a folder by their folders' names, the oldest first; what has not finished is left out.

    A folder whose ``run.json`` cannot be read is named in a warning and left out. Raises FileNotFoundError where there
    is no such folder.
    """
    place = Path(runs_dir)
    if not place.is_dir():
        raise FileNotFoundError(f"no folder {str(place)!r} with runs; fine_tune(..., runs_dir={str(place)!r}) fills it")
    files = sorted(place.glob("*/run.json"), key=lambda file: (file.stat().st_mtime, str(file)))
    found = {}
    for file in files:
        try:
            found[file.parent.name] = Run(file.parent)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is no run that can be read: %s", file, error)
    return found


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, then move the result to ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)


def save_run(
    folder: Path,
    record: dict[str, Any],
    *,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    weights: dict[str, torch.Tensor],
) -> Run:
    """Write the files of a run, ``run.json`` last, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "history.parquet", lambda p: history.to_parquet(p, index=False))
    write_atomically(folder / "predictions.parquet", lambda p: predictions.to_parquet(p, index=False))
    write_atomically(folder / "weights.safetensors", lambda p: save_file(weights, p))
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_atomically(folder / "run.json", lambda p: p.write_text(text, encoding="utf-8"))
    return Run(folder)

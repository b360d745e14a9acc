"""A folder of clips for a reviewer: what a run says of each, which need eyes, and which frames drove that.

The model's flag is a probability held against an operating point. Beside it stands a rule that needs no model: the
photosensitive-flash limit of WCAG 2.3.1 (:mod:`workbench.data.synthetic.flash`). Where the two disagree, one of them is
wrong, or the model was trained to find something else than flashes: either is for a person to see.
"""

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.explain import explain as explain_maps
from workbench.analysis.maps import Maps
from workbench.analysis.operating_point import OperatingPoint, choose_threshold
from workbench.analysis.predictions import task_rows
from workbench.data.cache import reason_of
from workbench.data.judging import Judged, read_judged
from workbench.data.loading.guard import run_guarded
from workbench.data.loading.reading import Reading, Rows
from workbench.data.sources.folders import is_video, walk
from workbench.data.tables import ClipTable, Task
from workbench.training.losses import decide
from workbench.training.predict import TIME_LIMIT_SECONDS, outputs_of, pick_device

log = logging.getLogger(__name__)

REVIEW = ("both", "model only", "rule only", "clear")
"""Who flags a clip, in the order in which a reviewer sees them."""
_BATCH = 32
_DRIVING = 3  # time steps named of an explained clip


@dataclass(frozen=True)
class Roles:
    """Which of a run's tasks says what in a screening; None where it has none."""

    safety: Task
    action: Task | None
    quality: Task | None

    def columns(self) -> list[str]:
        """The columns that :func:`said` fills, in order."""
        names = [self.action.name, f"{self.action.name}_probability"] if self.action else []
        return [f"{self.safety.name}_probability", *names, *([self.quality.name] if self.quality else [])]


def roles_of(run: Any, safety: str | None = None) -> Roles:
    """``safety``: the binary task whose positive class is what is looked for; None where the run has only one.

    The action is the run's first multiclass task, the quality its first regression. Raises ValueError on a run without
    a binary task, or with several of which none is named.
    """
    kinds: dict[str, list[Task]] = {}
    for task in run.tasks:
        kinds.setdefault(task.kind, []).append(task)
    binary = {task.name: task for task in kinds.get("binary", [])}
    if safety is None and len(binary) != 1:
        raise ValueError(
            f"run {run.name!r} has {len(binary)} binary task(s) {list(binary)}: screening needs one that says what to "
            "flag; name it by safety=" if binary else f"run {run.name!r} has no binary task, so nothing to flag by"
        )  # fmt: skip
    if safety is not None and safety not in binary:
        raise ValueError(f"safety={safety!r} is no binary task of run {run.name!r}; it has {list(binary)}")
    chosen = binary[safety] if safety is not None else next(iter(binary.values()))
    return Roles(chosen, kinds.get("multiclass", [None])[0], kinds.get("regression", [None])[0])


def operating_point_of(
    run: Any, task: Task, threshold: OperatingPoint | float | None, max_rate: float
) -> OperatingPoint:  # fmt: skip
    """The threshold to flag by: as given, or from the run's own predictions on val, for a false positive rate.

    A bare number is taken as a threshold of which no rate is known. Raises ValueError where val cannot show the rate.
    """
    if isinstance(threshold, OperatingPoint):
        return threshold
    if threshold is not None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold!r} must be a probability, 0 to 1, or an OperatingPoint")
        return OperatingPoint(float(threshold), np.nan, np.nan, np.nan, 0, 0)
    rows = task_rows(run, task, "val")
    if not len(rows):
        raise ValueError(f"no val clip of run {run.name!r} has a label of {task.name!r}; give threshold=")
    if rows.probabilities is None:
        raise ValueError(f"the predictions of run {run.name!r} hold no probabilities; give threshold=")
    try:
        return choose_threshold(rows.target, rows.probabilities[:, 1], max_rate=max_rate)
    except ValueError as error:
        raise ValueError(f"no threshold from the val clips of run {run.name!r}: {error}; or give threshold=") from error


def point_words(point: OperatingPoint) -> str:
    """An operating point in a line; of a bare threshold no rate is known."""
    known = point.negatives > 0
    return str(point) if known else f"flag at {point.threshold:.4g} and above (as given: no rate is known)"


def said(run: Any, roles: Roles, outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Per clip the columns of :meth:`Roles.columns`. Raises ValueError where the safety probability is no number."""
    decided = {task.name: decide(task, outputs[task.name], run.standard) for task in run.tasks}
    rows = []
    for i in range(len(next(iter(outputs.values())))):
        row: dict[str, Any] = {f"{roles.safety.name}_probability": decided[roles.safety.name][1][i][1]}
        if not np.isfinite(row[f"{roles.safety.name}_probability"]):
            raise ValueError(f"run {run.name!r} gives no finite probability of {roles.safety.name!r}; train it again")
        if roles.action:
            classes, probabilities = decided[roles.action.name]
            row[roles.action.name] = roles.action.classes[int(classes[i])]
            row[f"{roles.action.name}_probability"] = max(probabilities[i])
        if roles.quality:
            row[roles.quality.name] = float(decided[roles.quality.name][0][i])
        rows.append(row)
    return rows


@dataclass(frozen=True, repr=False)
class Screening:
    """What :func:`screen` found."""

    run: str
    table: pd.DataFrame
    """One row per clip that could be read, those that need eyes first: ``clip_id, path``, the columns of the tasks,
    ``flagged`` (by the model), ``general_flashes`` and ``red_flashes`` (the most in any one second), ``rule_unsafe``,
    ``rule_note`` (why the rule could not judge), ``review`` (one of :data:`REVIEW`) and ``driving_seconds`` (when in
    the file the frames are shown that the flag rests on; empty where it was not explained)."""
    quarantine: pd.DataFrame
    """``clip_id, path, reason`` of what could not be read."""
    roles: Roles
    operating_point: OperatingPoint
    maps: Maps | None
    """Of the explained clips, the surest first; ``clip_ids`` as in the table. None where none is."""
    frame_seconds: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each explained clip, when in its file the frames of its map are shown (T,)."""
    root: Path = Path(".")
    """What ``path`` is relative to."""
    table_of_clips: ClipTable | None = None
    """The table that was screened, where it was one: it knows where in a file a clip lies."""

    def counts(self) -> dict[str, int]:
        """Clips by :data:`REVIEW`, and ``not readable``."""
        found = self.table["review"].value_counts()
        return {name: int(found.get(name, 0)) for name in REVIEW} | {"not readable": len(self.quarantine)}

    def to_csv(self, path: str | Path) -> Path:
        """The table with the quarantined files after it (``review``: ``not readable``), their ``reason`` beside."""
        lost = self.quarantine.assign(review="not readable")
        shown = pd.concat([self.table, lost], ignore_index=True) if len(lost) else self.table.assign(reason="")
        shown = shown.assign(
            driving_seconds=[_listed(v) for v in shown["driving_seconds"]], reason=shown.reason.fillna("")
        )
        shown.to_csv(path, index=False)
        return Path(path)

    def __repr__(self) -> str:
        counted = ", ".join(f"{n} {name}" for name, n in self.counts().items())
        return (
            f"Screening by {self.run!r}: {len(self.table)} clips read ({counted}); {point_words(self.operating_point)}"
        )


def _listed(value: Any) -> str:
    return " ".join(f"{v:.2f}" for v in value) if isinstance(value, tuple) else ""


def screen(
    run: Any, clips: ClipTable | str | Path | Sequence[str | Path], *, safety: str | None = None,
    threshold: OperatingPoint | float | None = None, max_rate: float = 0.05, flash: bool = True, explain: int = 8,
    method: str = "attnlrp", device: str = "auto", workers: int = 2, progress: bool = True,
) -> Screening:  # fmt: skip
    """Screen clips with a run that has a binary task: flag, sort for a reviewer, explain the flags, check by rule.

    ``clips``: a folder (every video below it), a file, several files, or a :class:`ClipTable`. ``safety``: the task to
    flag by, where the run has several binary ones. ``threshold``: an
    :class:`~workbench.analysis.operating_point.OperatingPoint`, a probability, or None: the lowest that flags at most
    ``max_rate`` of the negatives among the run's val clips. ``flash``: judge every frame by the flash rule, too, which
    decodes each file once more. ``explain``: how many of the flagged clips, the surest first, are explained by
    ``method`` (see :func:`~workbench.analysis.explain.explain`); 0: none.

    Files are read in child processes with a time limit; what cannot be read is quarantined with its reason, never
    skipped. Raises ValueError on a run without such a task, a rate that val cannot show, or where there is no clip.
    """
    roles = roles_of(run, safety)
    point = operating_point_of(run, roles.safety, threshold, max_rate)
    if explain < 0:
        raise ValueError(f"explain={explain} must be at least 0")
    names, items, root = _items(clips, run.protocol.reading())
    model = run.model(str(pick_device(device)))
    outcomes = run_guarded(
        read_judged, [{**item, "flash": flash} for item in items], workers=min(workers, len(items)),
        time_limit_seconds=TIME_LIMIT_SECONDS, progress="screening" if progress else None,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    surest = _Surest(explain)
    key = f"{roles.safety.name}_probability"
    for batch in _batches(names, outcomes, lost):
        outputs = outputs_of(model, np.stack([judged.views for _, judged in batch]))
        for (name, judged), row in zip(batch, said(run, roles, outputs), strict=True):
            flagged = row[key] >= point.threshold
            rows.append(name | row | {"flagged": flagged} | _rule(judged, flagged))
            if flagged:
                surest.offer(row[key], name["clip_id"], judged)
    maps, seconds = surest.explained(run, roles.safety.name, method, device, progress)
    own = clips if isinstance(clips, ClipTable) else None
    columns = ["clip_id", "path", *roles.columns(), "flagged", *_RULE]
    table = _sorted(pd.DataFrame(rows, columns=columns), key)
    drivers = {} if maps is None else {i: _driving(maps, n, seconds[i]) for n, i in enumerate(maps.clip_ids)}
    table["driving_seconds"] = [drivers.get(i, ()) for i in table.clip_id]
    bad = pd.DataFrame(lost, columns=["clip_id", "path", "reason"])
    if own is not None and len(own.quarantine):
        bad = pd.concat([own.quarantine[["clip_id", "path", "reason"]], bad], ignore_index=True)
    return Screening(run.name, table, bad, roles, point, maps, seconds, root, own)


_RULE = ("general_flashes", "red_flashes", "rule_unsafe", "rule_note", "review")


def _rule(judged: Judged, flagged: bool) -> dict[str, Any]:
    rule = judged.rule
    facts = {name: None if rule is None else asdict(rule)[name] for name in ("general_flashes", "red_flashes")}
    unsafe = None if rule is None else rule.unsafe
    return facts | {"rule_unsafe": unsafe, "rule_note": judged.rule_problem, "review": review_of(flagged, unsafe)}


def review_of(flagged: bool, unsafe: bool | None) -> str:
    """One of :data:`REVIEW`; where the rule has not judged, the model's word alone."""
    return REVIEW[0 if flagged and unsafe else 1 if flagged else 2 if unsafe else 3]


def _items(clips: Any, reading: dict[str, Any]) -> tuple[list[dict[str, str]], list[dict[str, Any]], Path]:
    """Names, what a child is to read, and the folder that the paths are relative to."""
    if isinstance(clips, ClipTable):
        rows, frame = Rows(clips, Reading(**reading)), clips.frame
        names = [{"clip_id": str(i), "path": str(p)} for i, p in zip(frame.clip_id, frame.path, strict=True)]
        items, root = [rows.item(i) for i in range(len(clips))], Path(clips.root)
    else:
        listed, root = _files(clips)
        names = [{"clip_id": name, "path": name} for name in listed]
        items = [{"path": str(root / name), **reading} for name in listed]
    if not items:
        raise ValueError(f"no video to screen in {str(clips)!r}")
    return names, items, root


def _files(clips: str | Path | Sequence[str | Path]) -> tuple[list[str], Path]:
    if not isinstance(clips, str | Path):
        return list(dict.fromkeys(str(path) for path in clips)), Path(".")
    folder = Path(clips)
    if not folder.is_dir():
        if not folder.exists():
            raise FileNotFoundError(f"no such file or folder: {str(folder)!r}")
        return [str(folder)], Path(".")
    return sorted(name for name in walk(folder) if is_video(name)), folder


def _batches(
    names: list[dict[str, str]], outcomes: Iterator[Any], lost: list[dict[str, str]]
) -> Iterator[list[tuple[dict[str, str], Judged]]]:  # fmt: skip
    """What could be read, in batches; what could not goes to ``lost``."""
    batch: list[tuple[dict[str, str], Judged]] = []
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, Exception):
            lost.append(name | {"reason": reason_of(outcome)})
            continue
        batch.append((name, outcome))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _sorted(table: pd.DataFrame, key: str) -> pd.DataFrame:
    order = table["review"].map({name: i for i, name in enumerate(REVIEW)})
    return table.assign(_order=order).sort_values(["_order", key], ascending=[True, False], kind="stable").drop(
        columns="_order"
    ).reset_index(drop=True)  # fmt: skip


class _Surest:
    """The frames of the ``count`` surest clips, and of no more."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._kept: list[tuple[float, int, str, np.ndarray, np.ndarray]] = []
        self._offers = 0

    def offer(self, probability: float, clip_id: str, judged: Judged) -> None:
        self._offers += 1  # of two that are as sure, the one that came first
        heapq.heappush(
            self._kept, (probability, -self._offers, clip_id, judged.views[len(judged.views) // 2], judged.seconds)
        )
        if len(self._kept) > self.count:
            heapq.heappop(self._kept)

    def explained(
        self, run: Any, task: str, method: str, device: str, progress: bool
    ) -> tuple[Maps | None, dict[str, np.ndarray]]:
        """Maps of them, the surest first, and by clip when in its file the frames are shown."""
        if not self._kept:
            return None, {}
        kept = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        frames = np.stack([entry[3] for entry in kept])
        maps = explain_maps(run, frames, method=method, task=task, device=device, progress=progress)
        return replace(maps, clip_ids=tuple(entry[2] for entry in kept)), {entry[2]: entry[4] for entry in kept}


def _driving(maps: Maps, clip: int, seconds: np.ndarray) -> tuple[float, ...]:
    """When the time steps begin that hold the most of the map's mass, in the order of the file."""
    steps = maps.mass(clip).sum((1, 2))  # (T',)
    most = np.sort(np.argsort(-steps, kind="stable")[:_DRIVING])
    return tuple(float(seconds[i]) for i in most * (len(seconds) // len(steps)))

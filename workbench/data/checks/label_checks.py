"""Labels before training: classes too rare to learn or to test, and classes that a flip or a reversal would swap."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.data.tables import ClipTable

_IMBALANCE = 10
_MIRRORED = [
    ("left", "right"), ("leftward", "rightward"), ("leftwards", "rightwards"), ("lefthand", "righthand"), ("l", "r"),
    ("clockwise", "counterclockwise"), ("cw", "ccw"), ("east", "west"), ("port", "starboard"),
]  # fmt: skip
_REVERSED = [
    *(pair for pair in _MIRRORED if pair[0] != "l"), ("up", "down"), ("upward", "downward"), ("upwards", "downwards"),
    ("open", "close"), ("opening", "closing"), ("push", "pull"), ("pushing", "pulling"), ("in", "out"),
    ("into", "outof"), ("enter", "leave"), ("enter", "exit"), ("entering", "leaving"), ("entering", "exiting"),
    ("start", "stop"), ("on", "off"), ("put", "take"), ("putting", "taking"), ("pick", "drop"), ("picking", "dropping"),
    ("pickup", "putdown"), ("sit", "stand"), ("sitting", "standing"), ("sitdown", "standup"), ("approach", "depart"),
    ("approaching", "departing"), ("forward", "backward"), ("forwards", "backwards"), ("forward", "back"),
    ("front", "back"), ("insert", "remove"), ("inserting", "removing"), ("lift", "lower"), ("lifting", "lowering"),
    ("raise", "lower"), ("raising", "lowering"), ("fold", "unfold"), ("folding", "unfolding"), ("attach", "detach"),
    ("attaching", "detaching"), ("appear", "disappear"), ("appearing", "disappearing"), ("lock", "unlock"),
    ("load", "unload"), ("loading", "unloading"), ("towards", "away"), ("toward", "away"),
    ("ascend", "descend"), ("ascending", "descending"), ("rise", "fall"), ("rising", "falling"), ("zoomin", "zoomout"),
    ("cover", "uncover"), ("covering", "uncovering"), ("plug", "unplug"), ("plugging", "unplugging"),
    ("wrap", "unwrap"), ("connect", "disconnect"),
    ("stack", "unstack"), ("turnon", "turnoff"), ("dress", "undress"), ("grow", "shrink"),
]  # fmt: skip
_SIDE = {"left", "right", "leftward", "rightward", "leftwards", "rightwards", "clockwise", "counterclockwise"}
_NEIGHBOURS, _MOST_CLIPS, _FEWEST_GROUPS = 5, 3000, 10
FLIPS = {"mirror": "horizontal_flip", "reversal": "time_reversal"}


def label_warnings(table: ClipTable, name: str) -> list[str]:
    """Missing labels, classes without a train clip or without one to test on, and imbalance from ten to one."""
    task, warnings = table.task(name), []
    targets, split = table.targets(name), table.frame.split.to_numpy(object)
    missing = int(np.isnan(targets).reshape(len(table), task.num_targets).all(1).sum())
    if missing:
        warnings.append(f"task {name!r}: {missing} clip(s) have no label and are left out of its loss and metrics")
    if task.kind in ("regression", "multilabel"):
        return warnings
    classes = task.classes or ("0", "1")
    known = ~np.isnan(targets)
    train, other = (
        np.bincount(targets[known & side].astype(int), minlength=len(classes))
        for side in (split == "train", split != "train")
    )
    absent = [c for c, n in zip(classes, train, strict=True) if n == 0]
    if absent:
        warnings.append(f"task {name!r}: no train clip of {some(absent)}")
    untested = [c for c, n in zip(classes, other, strict=True) if n == 0]
    if untested:
        warnings.append(f"task {name!r}: no val or test clip of {some(untested)}")
    if train.min() and train.max() >= _IMBALANCE * train.min():
        large, small = classes[int(train.argmax())], classes[int(train.argmin())]
        warnings.append(
            f"task {name!r}: {large!r} has {train.max()} train clips, {small!r} only {train.min()}; "
            "read balanced metrics, not accuracy alone"
        )
    return warnings


def class_counts(table: ClipTable) -> pd.DataFrame:
    """Clips per task and class in each split: ``task, class, train, val, test``; no rows for regression. A clip counts
    for every class of a multilabel task that applies to it."""
    rows = []
    for task in table.tasks:
        if task.kind == "regression":
            continue
        targets, split = table.targets(task.name), table.frame.split.to_numpy(object)
        for code, name in enumerate(task.classes or ("0", "1")):
            clips = split[targets[:, code] == 1 if task.kind == "multilabel" else targets == code]
            rows.append((task.name, name, *(int((clips == s).sum()) for s in ("train", "val", "test"))))
    return pd.DataFrame(rows, columns=["task", "class", "train", "val", "test"])


def swapped_classes(classes: Sequence[str], flip: str) -> list[tuple[str, str]]:
    """Pairs of class names that say the same but for words that ``flip`` (``mirror`` or ``reversal``) swaps.

    >>> swapped_classes(["Swipe_Left", "Swipe_Right", "Stop"], "mirror")
    [('Swipe_Left', 'Swipe_Right')]
    """
    if flip not in FLIPS:
        raise ValueError(f"flip={flip!r} is not one of {', '.join(FLIPS)}")
    pairs = _MIRRORED if flip == "mirror" else _REVERSED
    opposites: dict[str, set[str]] = {}
    for one, two in pairs:
        opposites.setdefault(one, set()).add(two)
        opposites.setdefault(two, set()).add(one)
    spelled = {" ".join(_words(name)): name for name in classes}
    found = []
    for name in classes:
        for other in _flipped(_words(name), opposites):
            twin = spelled.get(other)
            if twin is not None and twin != name and (twin, name) not in found and (name, twin) not in found:
                found.append((name, twin))
    return found


def _words(name: str) -> list[str]:
    """Lower-case words of ``swipeLeft``, ``Swipe-left`` or ``swipe_left``; spellings of counterclockwise made one."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    text = re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()
    text = re.sub(r"\b(anti|counter) ?(clock ?wise)\b", "counterclockwise", text).replace("clock wise", "clockwise")
    text = re.sub(r"\b(zoom|turn|pick|put|sit|stand) (in|out|on|off|up|down)\b", r"\1\2", text).replace(
        "out of", "outof"
    )
    return text.split()


def _flipped(words: list[str], opposites: dict[str, set[str]]) -> list[str]:
    """Names with every swappable word swapped, and with just one swapped."""
    places = [i for i, word in enumerate(words) if word in opposites]
    swaps = [places, *([i] for i in places)] if len(places) > 1 else [places] if places else []
    names: list[str] = []
    for swap in swaps:
        options = [list(words)]
        for i in swap:
            options = [[*o[:i], new, *o[i + 1 :]] for o in options for new in sorted(opposites[words[i]])]
        names += [" ".join(option) for option in options[:8]]
    return names


@dataclass(frozen=True)
class FlipCheck:
    """How often the nearest clips by movement have a clip's label, as it is and flipped (balanced accuracies)."""

    task: str
    flip: str
    as_is: float
    flipped: float
    destroys: bool
    """Whether movement tells the classes, and tells them clearly worse once flipped."""


def flip_checks(table: ClipTable, signatures: np.ndarray, seed: int = 0) -> list[FlipCheck]:
    """Measure whether mirroring or reversing clips changes what their movement says of the label.

    ``signatures`` uint8 ``(n, 8, 16, 16)``, one per row. Where things move over time (the centre of change between
    frames) is compared with the clips of *other* groups, five neighbours voting; flipped clips meet unflipped ones.
    It sees coarse movement only: no finding is no proof that a flip is safe.
    """
    paths = motion_paths(signatures)
    checks = []
    for task in table.tasks:
        if task.kind == "multilabel":
            continue
        targets = table.targets(task.name)
        known = np.flatnonzero(~np.isnan(targets))
        groups = pd.factorize(table.frame.group)[0]
        if task.kind == "regression" or len(set(groups[known])) < _FEWEST_GROUPS or len(set(targets[known])) < 2:
            continue
        if len(known) > _MOST_CLIPS:
            known = np.sort(np.random.default_rng(seed).choice(known, _MOST_CLIPS, replace=False))
        here, labels, group = paths[known], targets[known].astype(int), groups[known]
        as_is = _hits(here, here, labels, group)
        for flip, other in (("mirror", here * [-1.0, 1.0]), ("reversal", here[:, ::-1])):
            hits = _hits(here, other, labels, group)
            chance = 1 / len(set(labels))
            error = np.sqrt(sum(as_is[labels == c].var() / (labels == c).sum() for c in set(labels))) / len(set(labels))
            plain, flipped = _balanced(as_is, labels), _balanced(hits, labels)
            destroys = plain > chance + 3 * error and plain - flipped > max(3 * error, (plain - chance) / 3)
            checks.append(FlipCheck(task.name, flip, plain, flipped, bool(destroys)))
    return checks


def motion_paths(signatures: np.ndarray) -> np.ndarray:
    """(n, 7, 2): where in the picture (x, y in -1..1) the grey levels change between neighbouring frames."""
    change = np.abs(np.diff(signatures.astype(np.float32), axis=1))
    # What changes everywhere (exposure, a moving camera) and coding noise are no place.
    change = np.maximum(change - np.median(change, axis=(2, 3), keepdims=True) - 2, 0)
    weight = change.sum((2, 3)) + 1e-3
    across = np.linspace(-1, 1, change.shape[-1])
    down = np.linspace(-1, 1, change.shape[-2])[:, None]
    return np.stack([(change * across).sum((2, 3)) / weight, (change * down).sum((2, 3)) / weight], -1)


def _hits(known: np.ndarray, asked: np.ndarray, labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    """1.0 where most of a clip's nearest neighbours from other groups have its label."""
    a, b = asked.reshape(len(asked), -1), known.reshape(len(known), -1)
    distance = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distance[group[:, None] == group[None]] = np.inf
    nearest = np.argpartition(distance, min(_NEIGHBOURS, len(b) - 1), axis=1)[:, :_NEIGHBOURS]
    votes = np.zeros((len(a), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(a))[:, None], labels[nearest]), 1)
    return (votes.argmax(1) == labels).astype(float)


def _balanced(hits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([hits[labels == c].mean() for c in np.unique(labels)]))


def flip_warnings(table: ClipTable, checks: Sequence[FlipCheck]) -> tuple[list[str], list[str]]:
    """(warnings, notes): a flip that the table calls label-safe and is not; and why others must stay off."""
    warnings: list[str] = []
    notes: list[str] = []
    for flip, field in FLIPS.items():
        said_safe = bool(getattr(table.info, field))
        for task in table.tasks:
            pairs = swapped_classes(task.classes, flip)
            named = some([f"{a!r} and {b!r}" for a, b in pairs])
            measured = next((c for c in checks if (c.task, c.flip) == (task.name, flip) and c.destroys), None)
            why = [f"it swaps {named}"] if pairs else []
            why += [_measured_words(measured)] if measured else []
            if not why:
                continue
            text = f"task {task.name!r}: a {flip} destroys labels: {'; '.join(why)}"
            (warnings if said_safe else notes).append(text + (f"; set {field} = false" if said_safe else ""))
    return warnings, notes


def _measured_words(check: FlipCheck) -> str:
    return f"movement alone tells the classes at {check.as_is:.2f} balanced accuracy, flipped at {check.flipped:.2f}"


def some(names: Sequence[str], limit: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")

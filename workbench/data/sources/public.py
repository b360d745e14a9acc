"""Public data sets as their makers lay them out: which file says what, official splits, and who belongs together.

Every reader returns the rows that the official lists name. A video may lie anywhere below the folder; one that is not
there is quarantined with its reason (public sets lose videos every year), and only when none is there it is an error.
``datasets/*.md`` says what each set is and where to get it.
"""

import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.data.sources.folders import SPLIT_NAMES, is_video, walk
from workbench.data.sources.listings import filled, need, read_table
from workbench.data.tables import Task

log = logging.getLogger(__name__)

FOLDS = ("ucf101", "hmdb51")
"""Sets with several official splits."""
_KINETICS = ("label", "youtube_id", "time_start", "time_end")
_HMDB_NAME = re.compile(r"(.+)_[hulf]_[cn]m_np\d_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+")
_SNIFFED_ENTRIES = 500
"""Files looked at in each sub-folder to recognise a set; the lists lie in folders of their own."""

Found = tuple[pd.DataFrame, list[Task], Path, pd.DataFrame]


def detect(path: Path) -> str | None:
    """The public layout that ``path`` (a folder, or an annotation CSV) has the files of, or None."""
    if not path.is_dir():
        header = _header(path)
        if set(_KINETICS) <= header:
            return "kinetics"
        return "konvid1k" if {"flickr_id", "mos"} <= {h.lower() for h in header} else None
    files = _lists(path)
    names = {f.name for f in files}
    if "classInd.txt" in names and any(re.fullmatch(r"trainlist\d+\.txt", n) for n in names):
        return "ucf101"
    if any(re.search(r"_test_split\d\.txt$", n) for n in names):
        return "hmdb51"
    if _ssv2_list(files, "labels") and _ssv2_list(files, "train"):
        return "ssv2"
    if any(re.fullmatch(r"(?i)konvid_1k_(attributes|mos)\.csv", n) for n in names):
        return "konvid1k"
    tables = [f for f in files if f.suffix.lower() == ".csv"]
    return "kinetics" if any(set(_KINETICS[1:]) <= _header(f) for f in tables) else None


def read(
    kind: str, path: Path, *, root: str | os.PathLike[str] | None = None, fold: int | None = None,
    task: str | None = None,
) -> Found:  # fmt: skip
    """Frame, tasks, root and quarantine of the public set ``kind`` below ``path`` (``root``: where its videos lie)."""
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist; give the folder of {PUBLIC[kind].about['name']}")
    base = Path(root) if root is not None else (path if path.is_dir() else path.parent)
    listed, made = PUBLIC[kind].read(path, 1 if fold is None else fold)
    if listed[["path", "stem"]].isna().any(axis=None) or listed[made.name].isna().any():
        raise ValueError(f"{str(path)!r}: a row of its lists has no {made.name}, or does not say which video it is of")
    if task is not None:
        listed, made = listed.rename(columns={made.name: task}), Task(task, made.kind, made.classes)
    frame, gone = _with_files(listed, base, PUBLIC[kind].stem)
    if not len(frame):
        raise FileNotFoundError(
            f"none of the {len(gone)} listed clips lies below {str(base)!r}, e.g. {gone.path.iloc[0]!r}; "
            "give the folder that the videos lie in as root"
        )
    if len(gone):
        log.warning("%s: %d of %d listed clips have no file; they are quarantined", path, len(gone), len(listed))
    return filled(frame), [made], base, gone


def facts(kind: str) -> dict[str, Any]:
    """``name, licence, source, horizontal_flip, time_reversal`` of a public set."""
    return dict(PUBLIC[kind].about)


def _lists(folder: Path) -> list[Path]:
    """Files that may be annotations: in the folder itself and one below, without the videos."""
    found = [folder / e.name for e in sorted(os.scandir(folder), key=lambda e: e.name)]
    below = [
        p / e.name for p in found if p.is_dir() for e in itertools.islice(os.scandir(p), _SNIFFED_ENTRIES)
    ]  # fmt: skip
    return [p for p in (*found, *sorted(below)) if p.suffix.lower() in (".txt", ".csv", ".json") and p.is_file()]


def _header(file: Path) -> set[str]:
    if file.suffix.lower() != ".csv":
        return set()
    with file.open(encoding="utf-8", errors="replace") as lines:
        return {c.strip().strip('"') for c in lines.readline(10_000).split(",")}


def _the(files: Iterable[Path], name: str, folder: Path) -> Path:
    found = next((f for f in files if f.name == name), None)
    if found is None:
        raise FileNotFoundError(f"{name!r} is neither in {str(folder)!r} nor in one of its folders")
    return found


def _stem_of(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]


def _with_files(listed: pd.DataFrame, base: Path, stem: Callable[[str], str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows whose video is there, with its path, and the others as a quarantine.

    ``listed`` brings ``path``, the place that the lists name, and ``stem``, what ``stem`` makes of its file name. Where
    there is only the file of ``whole``, the uncut video, the row keeps its times. Of two files of one name, the one in
    the folder that the lists name counts.
    """
    places: dict[str, list[str]] = {}
    for name in walk(base):
        if is_video(name):
            places.setdefault(stem(name), []).append(name)
    paths = np.full(len(listed), None, dtype=object)
    for row, (path, cut, whole) in enumerate(
        zip(listed.path, listed.stem, listed.get("whole", listed.stem), strict=True)
    ):
        found = places.get(cut) or places.get(whole)
        if found:
            folder = path.rpartition("/")[0]
            paths[row] = next((f for f in found if f.rpartition("/")[0].endswith(folder)), found[0])
    there = np.array([p is not None for p in paths], bool)
    gone = listed.path[~there].astype(object)
    ids = gone
    if "whole" in listed:
        ids = listed.stem[~there].astype(object)
        is_cut = listed.stem.isin(list(places)).to_numpy()
        listed = listed.assign(**{c: listed[c].where(~is_cut) for c in ("start_seconds", "end_seconds")})
    frame = listed.assign(path=paths)[there].drop(columns=["stem", "whole"], errors="ignore")
    lost = pd.DataFrame({"clip_id": ids, "path": gone, "reason": "the file does not exist"})
    return frame, lost.reset_index(drop=True)


def _ucf101(folder: Path, fold: int) -> tuple[pd.DataFrame, Task]:
    files = _lists(folder)
    classes = [fields[1] for fields in _fields(_the(files, "classInd.txt", folder), 2)]
    parts = []
    for split in ("train", "test"):
        file = _the(files, f"{split}list{fold:02d}.txt", folder)
        paths = pd.Series([line.split()[0] for line in _lines(file)], dtype=object)
        parts.append(pd.DataFrame({"path": paths, "action": paths.str.split("/").str[0], "split": split}))
    frame = pd.concat(parts, ignore_index=True)
    stem = _stem(frame.path)
    # The 25 groups of a class are the videos its clips were cut from; numbers start anew in each class.
    return frame.assign(stem=stem, group=stem.str.replace(r"_c\d+$", "", regex=True)), Task(
        "action", "multiclass", tuple(classes)
    )


def _hmdb51(folder: Path, fold: int) -> tuple[pd.DataFrame, Task]:
    lists = {f.name.removesuffix(f"_test_split{fold}.txt"): f for f in _lists(folder) if
             f.name.endswith(f"_test_split{fold}.txt")}  # fmt: skip
    if not lists:
        raise FileNotFoundError(f"{str(folder)!r} has no list '<class>_test_split{fold}.txt'")
    rows = []
    for label, file in sorted(lists.items()):
        for *words, code in _fields(file, 2):
            line, name = " ".join((*words, code)), " ".join(words)
            if code not in ("0", "1", "2"):
                raise ValueError(f"{str(file)!r}: {line!r} ends in none of 0 (unused), 1 (train) and 2 (test)")
            if code != "0":
                rows.append((f"{label}/{name}", label, "train" if code == "1" else "test"))
    frame = pd.DataFrame(rows, columns=["path", "action", "split"])
    stem = _stem(frame.path)
    # <source>_<action>_<body>_<camera>_np<people>_<view>_<quality>_<number>: all but the attributes is the source
    matched = [_HMDB_NAME.fullmatch(s) for s in stem]
    group = [m[1] if m else s for m, s in zip(matched, stem, strict=True)]
    return frame.assign(stem=stem, group=group), Task("action", "multiclass", tuple(sorted(lists)))


def _kinetics(path: Path, fold: int) -> tuple[pd.DataFrame, Task]:
    files = [path] if path.is_file() else [f for f in _lists(path) if set(_KINETICS[1:]) <= _header(f)]
    parts = []
    for file in files:
        part = read_table(file)
        need(part, _KINETICS[1:], file)
        if "label" not in part:
            log.warning("%s: %d clips without a label are left out", file, len(part))
            continue
        named = part["split"] if "split" in part else pd.Series(re.split(r"[_\-.]", file.stem)[-1], part.index)
        split = named.astype(str).str.lower().map(SPLIT_NAMES)
        if split.isna().any():
            raise ValueError(f"{str(file)!r}: split {named[split.isna()].iloc[0]!r} is none of train, val and test")
        parts.append(part.assign(split=split))
    if not parts:
        raise FileNotFoundError(f"{str(path)!r} has no CSV with the columns {', '.join(_KINETICS)}")
    frame = pd.concat(parts, ignore_index=True).drop_duplicates(["youtube_id", "time_start", "time_end"])
    start, end = _floats(frame.time_start, files[0]), _floats(frame.time_end, files[0])
    if frame[["label", "youtube_id"]].isna().any(axis=None):
        raise ValueError(f"{str(files[0])!r} has rows without a label or a youtube_id, which are needed in each")
    stem = [f"{i}_{s:06.0f}_{e:06.0f}" for i, s, e in zip(frame.youtube_id, start, end, strict=True)]
    made = pd.DataFrame(
        {
            "path": [f"{label}/{s}.mp4" for label, s in zip(frame.label, stem, strict=True)], "stem": stem,
            "whole": frame.youtube_id.to_numpy(), "start_seconds": start.to_numpy(), "end_seconds": end.to_numpy(),
            "split": frame.split.to_numpy(), "group": frame.youtube_id.to_numpy(), "action": frame.label.to_numpy(),
        }
    )  # fmt: skip
    return made, Task("action", "multiclass", tuple(sorted(frame.label.unique())))


def _ssv2_list(files: list[Path], part: str) -> Path | None:
    return next((f for f in files if re.fullmatch(rf"(something-something-v2-)?{part}\.json", f.name)), None)


def _ssv2(folder: Path, fold: int) -> tuple[pd.DataFrame, Task]:
    files = _lists(folder)
    labels = _ssv2_list(files, "labels")
    if labels is None:
        raise FileNotFoundError(f"{str(folder)!r} has no labels.json of Something-Something v2")
    numbers = {name: int(number) for name, number in _json(labels).items()}
    rows: list[tuple[str | None, ...]] = []
    for part, split in (("train", "train"), ("validation", "val")):
        file = _ssv2_list(files, part)
        if file is None:
            raise FileNotFoundError(f"{str(folder)!r} has no {part}.json of Something-Something v2")
        for clip in _json(file):
            if not {"id", "template"} <= set(clip):
                raise ValueError(f"{str(file)!r}: every clip needs an id and a template; found {clip}")
            rows.append((str(clip["id"]), re.sub(r"[\[\]]", "", clip["template"]), clip.get("label"), split))
    answers = next((f for f in files if f.name.endswith("test-answers.csv")), None)
    if answers is not None:
        rows += [(*line.split(";", 1), None, "test") for line in _lines(answers)]
    frame = pd.DataFrame(rows, columns=["stem", "action", "caption", "split"])
    made = frame.assign(path=frame.stem + ".webm", group=frame.stem)
    return made, Task("action", "multiclass", tuple(sorted(numbers, key=lambda n: numbers[n])))


def _konvid1k(path: Path, fold: int) -> tuple[pd.DataFrame, Task]:
    files = [path] if path.is_file() else _lists(path)
    lists = [f for f in files if {"mos"} <= {h.lower() for h in _header(f)}]
    if not lists:
        raise FileNotFoundError(f"{str(path)!r} has no CSV with a column MOS, such as KoNViD_1k_attributes.csv")
    table = read_table(lists[0])
    columns = {c.strip().lower(): c for c in table.columns}
    key = columns.get("flickr_id") or columns.get("file_name")
    if key is None:
        raise ValueError(f"{str(lists[0])!r} has neither flickr_id nor file_name; it has {list(table.columns)}")
    stem = table[key].astype(str).str.replace(r"\.\w+$", "", regex=True).map(_konvid_stem)
    frame = pd.DataFrame({"path": "KoNViD_1k_videos/" + stem + ".mp4", "stem": stem, "group": stem})
    return frame.assign(quality=_floats(table[columns["mos"]], lists[0]), split=None), Task("quality", "regression")


def _konvid_stem(name: str) -> str:
    """``3015363182`` of ``3015363182.mp4`` and of ``3015363182_original_centercrop_960x540_8s.mp4``."""
    base = name.rpartition("/")[2].rpartition(".")[0] if "." in name else name
    return base.partition("_")[0]


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _fields(file: Path, least: int) -> list[list[str]]:
    rows = [line.split() for line in _lines(file)]
    if short := [row for row in rows if len(row) < least]:
        raise ValueError(f"{str(file)!r}: {' '.join(short[0])!r} should be {least} fields with a space between")
    return rows


def _floats(values: pd.Series, file: Path) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    if (numbers.isna() & values.notna()).any():
        odd = values[numbers.isna() & values.notna()].iloc[0]
        raise ValueError(f"{str(file)!r}: {values.name} must be numbers; found {odd!r}")
    return numbers


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON: {error}") from error


def _stem(paths: pd.Series) -> pd.Series:
    return paths.map(_stem_of)


@dataclass(frozen=True)
class _Layout:
    """How a public set is read: ``read(folder, fold)`` gives rows and task; ``stem`` names the clip of a file."""

    read: Callable[[Path, int], tuple[pd.DataFrame, Task]]
    about: dict[str, Any]
    stem: Callable[[str], str] = _stem_of


PUBLIC: dict[str, _Layout] = {
    "ucf101": _Layout(_ucf101, {
        "name": "UCF101", "source": "https://www.crcv.ucf.edu/data/UCF101.php", "licence": "none stated; research use",
        "horizontal_flip": True, "time_reversal": False,
    }),
    "hmdb51": _Layout(_hmdb51, {
        "name": "HMDB51", "licence": "CC BY 4.0", "horizontal_flip": True, "time_reversal": False,
        "source": "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
    }),
    "kinetics": _Layout(_kinetics, {
        "name": "Kinetics", "source": "https://github.com/cvdfoundation/kinetics-dataset",
        "licence": "annotations CC BY 4.0; videos belong to their uploaders",
        "horizontal_flip": True, "time_reversal": False,
    }),
    "ssv2": _Layout(_ssv2, {
        "name": "Something-Something v2", "licence": "Qualcomm research licence, non-commercial",
        "source": "https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
        "horizontal_flip": False, "time_reversal": False,
    }),
    "konvid1k": _Layout(_konvid1k, {
        "name": "KoNViD-1k", "source": "http://database.mmsp-kn.de/konvid-1k-database.html",
        "licence": "Creative Commons, per video (YFCC100m)", "horizontal_flip": True, "time_reversal": True,
    }, _konvid_stem),
}  # fmt: skip
"""Layout: how it is read, and what a table made from it says of itself."""

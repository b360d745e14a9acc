"""Where does a run fail: confusions, scores per class, and the mistakes it was surest of."""

import html
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from workbench.analysis.mistakes.outcomes import Outcomes, outcomes
from workbench.analysis.predictions import Predicted, TaskRows, quarantined
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

SHOWN_MISTAKES = 20


@dataclass(frozen=True, repr=False)
class ErrorTable:
    """What went wrong on one task and split.

    ``confusion``: counts, rows the truth and columns the prediction, all classes in the task's order (empty for
    regression). ``per_class``: ``class, precision, recall, f1, support, predicted`` (empty for regression; NaN where
    undefined). ``mistakes``: ``clip_id, path, truth, predicted, confidence``, the most confident first, where
    confidence is the probability of the predicted class (NaN without probabilities); for regression all clips by size
    of the ``residual`` (predicted - truth), largest first: ``clip_id, path, truth, predicted, residual``.
    """

    run: str
    task: Task
    protocol: Protocol
    confusion: pd.DataFrame
    per_class: pd.DataFrame
    mistakes: pd.DataFrame
    n: int
    """Labelled clips."""
    missing: int
    """Clips without a label for this task, left out."""
    quarantined: int
    """Clips that could not be decoded, left out."""
    rule: str
    """How a score became a prediction, or what a residual is."""
    clips: pd.DataFrame = field(default_factory=pd.DataFrame)
    """All labelled clips, right ones too; see :class:`~workbench.analysis.mistakes.outcomes.Outcomes`."""

    @property
    def caption(self) -> str:
        """What was counted, and what was not."""
        wrong = "" if self.task.kind == "regression" else f"{len(self.mistakes)} wrong of "
        return (
            f"Run {self.run!r}, task {self.task.name!r}: {wrong}{self.n} clips; {self.rule}. {self.missing} without a "
            f"label and {self.quarantined} quarantined are left out. Protocol: {self.protocol.describe()}."
        )

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        title = "Largest residuals" if self.task.kind == "regression" else "Most confident mistakes"
        shown = self.mistakes.head(SHOWN_MISTAKES)
        parts = [(f"{title} ({len(shown)} of {len(self.mistakes)})", shown)]
        if self.task.kind != "regression":
            counts = self.confusion.rename_axis(index="truth \\ predicted").reset_index()
            parts = [("Confusion", counts), ("Per class", self.per_class), *parts]
        return parts

    def __str__(self) -> str:
        parts = [f"{title}\n{table.to_string(index=False, float_format=_short)}" for title, table in self._tables()]
        return "\n\n".join([self.caption, *parts])

    __repr__ = __str__  # what a shell shows

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.caption)}</p>"]
        with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
            for title, table in self._tables():
                body = table.to_html(
                    index=False, escape=True, border=0, float_format=_short, classes="workbench-errors"
                )
                parts.append(f"<h4>{html.escape(title)}</h4>{body}")
        return "".join(parts)


def errors(run: Predicted, *, task: str | None = None, split: str = "test") -> ErrorTable:
    """Collect the errors of a run on one task (its first unless named) and split.

    Works on a Run or on :class:`~workbench.analysis.evaluate.Predictions`. Raises ``ValueError`` for a task or split
    that is not there, or when no clip of the split carries the label.
    """
    return errors_of(run, outcomes(run, task=task, split=split))


def errors_of(run: Predicted, out: Outcomes) -> ErrorTable:
    """:func:`errors` of a run whose outcomes are known already."""
    one, rows = out.task, out.rows
    empty = pd.DataFrame()
    if one.kind == "regression":
        confusion, per_class, rule = empty, empty, "residual = predicted - truth"
    else:
        confusion, per_class, rule = _confusion(out.names, rows), _per_class(out.names, rows), _rule(one, rows)
    return ErrorTable(
        run=run.name,
        task=one,
        protocol=out.protocol,
        confusion=confusion,
        per_class=per_class,
        mistakes=_mistakes(out.table),
        n=len(rows),
        missing=rows.missing,
        quarantined=quarantined(run),
        rule=rule,
        clips=out.table,
    )


def _confusion(names: tuple[str, ...], rows: TaskRows) -> pd.DataFrame:
    counts = confusion_matrix(rows.target.astype(int), rows.prediction.astype(int), labels=range(len(names)))
    return pd.DataFrame(
        counts,
        index=pd.Index(names, name="truth", dtype=object),
        columns=pd.Index(names, name="predicted", dtype=object),
    )


def _per_class(names: tuple[str, ...], rows: TaskRows) -> pd.DataFrame:
    said = rows.prediction.astype(int)
    precision, recall, f1, support = precision_recall_fscore_support(
        rows.target.astype(int), said, labels=range(len(names)), zero_division=np.nan
    )
    predicted = np.bincount(said, minlength=len(names))
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": support, "predicted": predicted}
    return pd.DataFrame({"class": list(names)} | columns)


def _mistakes(clips: pd.DataFrame) -> pd.DataFrame:
    # The clips come sorted by clip_id, and a stable sort keeps that order among equals.
    if "residual" in clips:
        order = np.argsort(-clips.loss.to_numpy(), kind="stable")
        return clips[["clip_id", "path", "truth", "predicted", "residual"]].iloc[order].reset_index(drop=True)
    wrong = clips.loc[clips.wrong, ["clip_id", "path", "truth", "predicted", "confidence"]]
    return wrong.sort_values("confidence", ascending=False, kind="stable").reset_index(drop=True)


def _rule(task: Task, rows: TaskRows) -> str:
    if rows.probabilities is None:
        return "predictions as given, without probabilities"
    if task.kind == "multiclass":
        odd = int((rows.probabilities.argmax(1) != rows.prediction).sum())
        return f"{odd} prediction(s) are not the most probable class" if odd else "the most probable class is predicted"
    odd = int(((rows.probabilities[:, 1] >= 0.5) != (rows.prediction == 1)).sum())
    positive = (task.classes or ("0", "1"))[1]
    if odd:
        return f"predictions as given: {odd} do not follow threshold 0.5 on p({positive})"
    return f"threshold 0.5: {positive!r} is predicted where its probability is at least 0.5"


def _short(value: float) -> str:
    return f"{value:.3g}"

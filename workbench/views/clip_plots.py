"""Pictures of clips as data: which frames a policy takes, and rows of frames side by side."""

import textwrap
from collections.abc import Mapping

import matplotlib.axes
import numpy as np

from workbench.data.frames import Sampling
from workbench.views.plots import ShownFigure
from workbench.views.style import GREY, OKABE_ITO

_LABEL_INCHES = 1.7
MAX_INCHES = 12.0


def timeline(times: np.ndarray, samplings: Mapping[str, Sampling]) -> ShownFigure:
    """Each policy's frames on the clip's own time axis: a tick per frame there is, a dot per frame taken.

    ``times`` are the seconds (n,) of the clip's frames; a policy of several windows has a line for each. A frame taken
    more than once says how often.
    """
    rows = [(name, w, window) for name, s in samplings.items() for w, window in enumerate(s.indices(times))]
    if not rows:
        raise ValueError("timeline needs at least one Sampling, as {'uniform': Sampling(num_frames=16)}")
    figure = ShownFigure(figsize=(9.0, 0.34 * len(rows) + 0.65), dpi=100)
    ax: matplotlib.axes.Axes = figure.add_axes(
        (0.24, 0.55 / figure.get_figheight(), 0.74, 1 - 0.6 / figure.get_figheight())
    )
    colours = {name: OKABE_ITO[i % len(OKABE_ITO)] for i, name in enumerate(samplings)}
    for line, (name, _, window) in enumerate(rows):
        ax.vlines(times, line - 0.16, line + 0.16, color=GREY, lw=0.8, alpha=0.5)
        taken, counts = np.unique(window, return_counts=True)
        ax.plot(times[taken], np.full(len(taken), line), "o", ms=6, color=colours[name])
        for frame, count in zip(taken, counts, strict=True):
            if count > 1:
                ax.annotate(
                    f"×{count}", (times[frame], line), (5, 3), textcoords="offset points", fontsize=8, color=GREY
                )
    labels = [name if w == 0 else "" for name, w, _ in rows]
    ax.set_yticks(range(len(rows)), [textwrap.shorten(label, 30, placeholder=" …") for label in labels])
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_xlabel("seconds")
    _plain_axes(ax)
    figure.patch.set_alpha(0)
    return figure


def frame_grid(rows: Mapping[str, np.ndarray], *, columns: int = 8, titles: bool = True) -> ShownFigure:
    """Clips uint8 ``(T, H, W, 3)`` under each other, the same ``columns`` frames of each; the names stand on the left.

    Rows may differ in size, not in their number of frames.
    """
    lengths = {len(clip) for clip in rows.values()}
    if len(lengths) != 1:
        raise ValueError(
            f"the rows of a grid need the same number of frames, at least one; these have {sorted(lengths)}"
        )
    frames = lengths.pop()
    picks = np.unique(((np.arange(columns) + 0.5) * frames / columns).astype(int))
    ratio = max(clip.shape[1] / clip.shape[2] for clip in rows.values())
    cell = min(1.3, (MAX_INCHES - _LABEL_INCHES) / len(picks))
    top = 0.25 if titles else 0.02
    width, height = _LABEL_INCHES + cell * len(picks), cell * ratio * len(rows) + top
    figure = ShownFigure(figsize=(width, height), dpi=100)
    axes = figure.subplots(len(rows), len(picks), squeeze=False)
    for r, (name, clip) in enumerate(rows.items()):
        for c, t in enumerate(picks):
            axes[r, c].imshow(clip[t])
            axes[r, c].set_axis_off()
            if titles and r == 0:
                axes[r, c].set_title(f"frame {t}", fontsize=9, color=GREY)
        label = "\n".join(textwrap.wrap(name, 22, max_lines=3, placeholder=" …"))
        axes[r, 0].text(-0.08, 0.5, label, transform=axes[r, 0].transAxes, ha="right", va="center", fontsize=9,
                        color=GREY, parse_math=False)  # fmt: skip
    figure.patch.set_alpha(0)
    figure.subplots_adjust(_LABEL_INCHES / width, 0, 1, 1 - top / height, 0.03, 0.03)
    return figure


def _plain_axes(ax: matplotlib.axes.Axes) -> None:
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, colors=GREY, labelsize=9)
    ax.xaxis.label.set_color(GREY)
    ax.patch.set_alpha(0)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)

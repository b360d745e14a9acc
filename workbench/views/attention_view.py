"""Where a model looked: a clip beside itself under a heat map, with method, clip, layer and head to choose."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from workbench.views.mailing import MailableBox
from workbench.views.parts import FigureBox, dropdown, frozen, note, row
from workbench.views.players import (
    BEYOND,
    ClipPlayer,
    gallery,
    heat_scale,
    overlay,
    robust_scale,
    scale_note,
    side_by_side,
)
from workbench.views.plots import heat_curve
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, shorten
from workbench.views.trust_plots import evidence_html

MEAN = "mean"
CONVERGED = 0.01  # completeness error under which analysis/explain.py calls one clip's map converged
METHOD_NAMES = {
    "attention": "attention weights", "rollout": "attention rollout", "task_attention": "task query attention",
    "gradient_attention": "gradient-weighted attention", "attnlrp": "AttnLRP",
    "integrated_gradients": "integrated gradients", "gradient_x_activation": "gradient x activation",
    "grad_cam": "Grad-CAM", "occlusion": "occlusion", "ablation": "ablation", "shapley": "Shapley values",
}  # fmt: skip
ATTENTION = ("attention", "rollout", "task_attention")
"""Methods that say where the model looked, whatever the class; their maps sum to 1 over a clip."""
CAUTION = {
    True: "Attention is not an explanation: the weights say where tokens were mixed, not what changed the output.",
    False: "An attribution says what moved the output, by its method's own rules; another method or baseline gives "
    "another map.",
}


def named_maps(maps: Any) -> dict[str, Any]:
    """Maps by a unique readable name, whether one, a list or a mapping of them is given."""
    if isinstance(maps, Mapping):
        named = {str(k): v for k, v in maps.items()}
    else:
        named = {}
        for one in maps if isinstance(maps, Sequence) else [maps]:
            name = METHOD_NAMES.get(one.method, one.method) + (f" · {one.task}" if one.task else "")
            same = sum(k == name or k.startswith(f"{name} (") for k in named)
            named[f"{name} ({same + 1})" if same else name] = one
    if not named:
        raise ValueError("no maps to show; make some with workbench.explain(run, clips)")
    return named


def map_caption(maps: Any, clip: int) -> str:
    """What one map shows, and what it does not."""
    parts = [METHOD_NAMES.get(maps.method, maps.method)]
    if maps.task:
        parts.append(f"task {maps.task}")
    target = maps.target[clip] if maps.target is not None and len(maps.target) else None
    if target is not None and maps.method not in ATTENTION:
        parts.append(f"for the output “{target}”")
    if maps.baseline:
        parts.append(f"baseline {maps.baseline}")
    if maps.completeness_error is not None:
        error = float(maps.completeness_error[clip])
        # Maps say of all clips together whether they converged; this clip may be one that did.
        odd = " (NOT converged: do not read this map)" if not maps.converged and error >= CONVERGED else ""
        parts.append(f"completeness error {100 * error:.2g} %{odd}")
    return ", ".join(parts) + "."


def map_legend(maps: Any, scale: tuple[float, float], *, shared: bool) -> str:
    """What the colours stand for; attention sums to 1 over a clip, so it is told in multiples of an even share."""
    if maps.method not in ATTENTION:
        return scale_note(scale, signed=maps.signed, shared=shared)
    share = int(np.prod(maps.grid))
    return scale_note((scale[0] * share, scale[1] * share), signed=False, shared=shared, unit=" x an even share")


def map_player(
    maps: Any,
    clip: int,
    *,
    layer: int | None = None,
    head: int | None = None,
    opacity: float = 0.7,
    shared_scale: bool = True,
    width_px: int = 460,
    caption: str | None = None,
) -> ClipPlayer:
    """One clip and, to its right and in step with it, the same clip under its heat map.

    Full colour of attention is its 99th percentile: one token that a head stares at would leave the rest untinted.
    """
    heat = maps.upsampled(clip, layer=layer, head=head)
    compared = range(len(maps.clip_ids)) if shared_scale else [clip]
    attention = maps.method in ATTENTION
    scale_of = robust_scale if attention else heat_scale
    scale = scale_of([maps.map(i, layer, head) for i in compared], signed=maps.signed)
    tinted = overlay(maps.frames[clip], heat, signed=maps.signed, opacity=opacity, scale=scale)
    legend = f"Colours: {map_legend(maps, scale, shared=shared_scale)}{f'; {BEYOND}' if attention else ''}."
    return ClipPlayer(
        side_by_side(maps.frames[clip], tinted),
        title=str(maps.clip_ids[clip]),
        caption=(map_caption(maps, clip) if caption is None else caption) + "\n" + legend,
        width_px=width_px,
        panels=("the clip as the model saw it", METHOD_NAMES.get(maps.method, maps.method)),
    )


def taught_gallery(influence: Any, clip_id: str, train_clips: Any, *, top: int = 4) -> Html:
    """Players of the training clips with the largest positive influence on one test clip, strongest first.

    ``train_clips``: the table that the influence was taken from. Raises ValueError for a clip it was not taken on, or
    another table.
    """
    if clip_id not in influence.test_ids:
        raise ValueError(f"influence was not taken on {clip_id!r}; it knows {list(influence.test_ids)}")
    rows = influence.table(top)
    rows = rows[(rows.test_clip == clip_id) & (rows.effect == "helpful") & (rows.score > 0)]
    position = {str(name): i for i, name in enumerate(train_clips.frame.clip_id)}
    strangers = sorted(set(influence.train_ids) - set(position))
    if strangers or influence.task not in train_clips.frame:
        odd = f"lacks the clips {strangers[:3]}" if strangers else f"has no labels of {influence.task!r}"
        raise ValueError(f"train_clips {odd}; give the table that the influence was taken from")
    players = []
    for line in rows.itertuples():
        one = train_clips[[position[line.train_clip]]]
        label = one.frame.iloc[0][influence.task]
        words = f"labelled {label}\ninfluence {line.score:.3g}"
        players.append(ClipPlayer(one, title=str(line.train_clip), caption=words))
    words = f"By gradients of the last layer of task {influence.task}; the encoder's part is not seen."
    return Html(gallery(players, empty="No training clip lowers the loss on this one.") + note(words))


class AttentionView(MailableBox):
    """Browse maps of :func:`workbench.explain`: one ``Maps``, a list of them, or a mapping from your own names.

    The layer and head menus work for maps by layer and head (``attention``, ``task_attention``); the other methods have
    one map per clip. ``report``: an ``ExplanationReport`` whose verdict and metrics are shown beside the map.
    ``influence`` (of :func:`workbench.influence`, on these clips) and ``train_clips`` (the table it was taken from): a
    button shows the training clips that taught the model most about the clip shown.
    """

    method = traitlets.Unicode(help="name of the maps shown")
    clip = traitlets.Int(0, help="position of the clip shown")
    layer = traitlets.Any(MEAN, help="layer from 0, or 'mean'")
    head = traitlets.Any(MEAN, help="head from 0, or 'mean'")
    opacity = traitlets.Float(0.7, min=0.0, max=1.0)
    shared_scale = traitlets.Bool(True, help="one colour scale for every clip of the method")

    def __init__(self, maps: Any, *, report: Any = None, influence: Any = None, train_clips: Any = None) -> None:
        self.maps = named_maps(maps)
        self.report, self.influence, self.train_clips = report, influence, train_clips
        if (influence is None) != (train_clips is None):
            raise ValueError("influence= and train_clips= belong together: the scores, and the clips to show for them")
        self._player = functools.lru_cache(maxsize=64)(self._make_player)
        self._pick_method = dropdown("Method", list(self.maps))
        self._pick_clip, self._pick_layer, self._pick_head = (
            dropdown(label, [("-", v)]) for label, v in (("Clip", 0), ("Layer", MEAN), ("Head", MEAN))
        )
        self._opacity = ipywidgets.FloatSlider(
            description="Opacity", min=0, max=1, step=0.05, readout_format=".2f", continuous_update=False
        )
        self._shared = ipywidgets.Checkbox(description="Same colour scale for all clips", indent=False)
        self._video, self._curve, self._taught = ipywidgets.HTML(), FigureBox(), ipywidgets.HTML()
        self._teach = ipywidgets.ToggleButton(
            description="Training clips that taught it this",
            layout=ipywidgets.Layout(width="max-content", display=None if influence is not None else "none"),
        )
        menus = row(self._pick_method, self._pick_clip, self._pick_layer, self._pick_head)
        sliders = row(self._opacity, self._shared)
        super().__init__(
            [ipywidgets.HTML(VIEW_CSS), menus, sliders, self._video, self._curve.box, self._teach, self._taught]
        )
        self.add_class("wb-view")
        self.method = next(iter(self.maps))
        self._offer()
        for trait, control in self._controls().items():
            traitlets.link((self, trait), (control, "value"))
        self.observe(self._on_change, list(self._controls()))
        self._teach.observe(lambda _change: self._show_taught(), "value")
        self._refresh()

    def _controls(self) -> dict[str, ipywidgets.Widget]:
        return {
            "method": self._pick_method, "clip": self._pick_clip, "layer": self._pick_layer, "head": self._pick_head,
            "opacity": self._opacity, "shared_scale": self._shared,
        }  # fmt: skip

    @traitlets.validate("method")
    def _known_method(self, proposal: Any) -> str:
        if proposal["value"] not in self.maps:
            raise traitlets.TraitError(f"no maps {proposal['value']!r}; there are {list(self.maps)}")
        return str(proposal["value"])

    @traitlets.validate("clip", "layer", "head")
    def _offered(self, proposal: Any) -> Any:
        """Only what the chosen maps have; their menus say what that is."""
        allowed = [value for _, value in self._controls()[proposal["trait"].name].options]
        if proposal["value"] not in allowed:
            raise traitlets.TraitError(f"{proposal['trait'].name}={proposal['value']!r} is not one of {allowed}")
        return proposal["value"]

    @property
    def shown(self) -> Any:
        """The maps of the chosen method."""
        return self.maps[self.method]

    def _on_change(self, change: Any) -> None:
        if change["name"] == "method":
            self._offer()
        self._refresh()

    def _offer(self) -> None:
        """Fill the menus with what the chosen maps have."""
        maps = self.shown
        clips = [(f"{i + 1}: {shorten(str(c), 50)}", i) for i, c in enumerate(maps.clip_ids)]
        layers, heads = maps.values.shape[1:3] if maps.values.ndim == 6 else (0, 0)
        kept = self.clip if self.clip < len(clips) else 0
        with self.hold_trait_notifications():
            self._pick_clip.options = clips
            for menu, count in ((self._pick_layer, layers), (self._pick_head, heads)):
                menu.options = [("mean of all", MEAN), *((str(i), i) for i in range(count))]
                menu.value, menu.disabled = MEAN, not count
            self._pick_clip.value = kept
            self.clip, self.layer, self.head = kept, MEAN, MEAN

    def _chosen(self) -> tuple[int | None, int | None]:
        layer, head = (None if v == MEAN else int(v) for v in (self.layer, self.head))
        return layer, head

    def _make_player(self, method: str, clip: int, layer: Any, head: Any, opacity: float, shared: bool) -> ClipPlayer:
        settings = {"layer": layer, "head": head, "opacity": opacity, "shared_scale": shared}
        return map_player(self.maps[method], clip, **settings)

    def player(self) -> ClipPlayer:
        """The player now shown."""
        return self._player(self.method, self.clip, *self._chosen(), self.opacity, self.shared_scale)

    def _curve_figure(self) -> Any:
        layer, head = self._chosen()
        return heat_curve({self.method: self.shown.upsampled(self.clip, layer=layer, head=head)})

    def _caution(self) -> str:
        return note(CAUTION[self.shown.method in ATTENTION]) + evidence_html(self.report, self.method, self.shown)

    def _show_taught(self) -> None:
        known = self.influence is not None and str(self.shown.clip_ids[self.clip]) in self.influence.test_ids
        unknown = note("The influence was not taken on this clip.")
        self._taught.value = (self.taught() if known else unknown) if self._teach.value else ""

    def taught(self, top: int = 4) -> Html:
        """Players of the ``top`` training clips that most helped the model to say what it says of the clip shown.

        Raises ValueError without ``influence``, or where it knows nothing of this clip.
        """
        if self.influence is None:
            raise ValueError("no influence to show; pass influence= and train_clips= to AttentionView")
        return taught_gallery(self.influence, str(self.shown.clip_ids[self.clip]), self.train_clips, top=top)

    def _refresh(self) -> None:
        self._video.value = self.player().html() + self._caution()
        self._curve.show(self._curve_figure())
        self._show_taught()

    def freeze(self, *, max_clips: int = 8) -> Html:
        """Static HTML: up to ``max_clips`` clips of the method shown, playing beside their maps, and the curve."""
        layer, head = self._chosen()
        players = [
            self._player(self.method, i, layer, head, self.opacity, self.shared_scale)
            for i in range(min(max_clips, len(self.shown.clip_ids)))
        ]
        curve = still(self._curve_figure(), label="heat by frame")
        where = note(f"Mean heat by frame of {self.shown.clip_ids[self.clip]}:")
        title = "Where it looked" if self.shown.method in ATTENTION else "What moved the output"
        return frozen(f"{title}: {self.method}", gallery(players, columns=2), self._caution(), where, curve)

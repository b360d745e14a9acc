"""Where a model looked: a clip beside itself under a heat map, with method, clip, layer and head to choose."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from workbench.views.parts import FigureBox, dropdown, frozen, note, row
from workbench.views.players import ClipPlayer, gallery, heat_scale, overlay, scale_note, side_by_side
from workbench.views.plots import heat_curve
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, shorten

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
    """One clip and, to its right and in step with it, the same clip under its heat map."""
    heat = maps.upsampled(clip, layer=layer, head=head)
    compared = range(len(maps.clip_ids)) if shared_scale else [clip]
    scale = heat_scale([maps.map(i, layer, head) for i in compared], signed=maps.signed)
    tinted = overlay(maps.frames[clip], heat, signed=maps.signed, opacity=opacity, scale=scale)
    legend = "Colours: " + map_legend(maps, scale, shared=shared_scale) + "."
    return ClipPlayer(
        side_by_side(maps.frames[clip], tinted),
        title=str(maps.clip_ids[clip]),
        caption=(map_caption(maps, clip) if caption is None else caption) + "\n" + legend,
        width_px=width_px,
        panels=("the clip as the model saw it", METHOD_NAMES.get(maps.method, maps.method)),
    )


class AttentionView(ipywidgets.VBox):
    """Browse maps of :func:`workbench.explain`: one ``Maps``, a list of them, or a mapping from your own names.

    The layer and head menus work for method ``attention`` only; the other methods have one map per clip.
    """

    method = traitlets.Unicode(help="name of the maps shown")
    clip = traitlets.Int(0, help="position of the clip shown")
    layer = traitlets.Any(MEAN, help="layer from 0, or 'mean'")
    head = traitlets.Any(MEAN, help="head from 0, or 'mean'")
    opacity = traitlets.Float(0.7, min=0.0, max=1.0)
    shared_scale = traitlets.Bool(True, help="one colour scale for every clip of the method")

    def __init__(self, maps: Any) -> None:
        self.maps = named_maps(maps)
        self._player = functools.lru_cache(maxsize=64)(self._make_player)
        self._pick_method = dropdown("Method", list(self.maps))
        self._pick_clip, self._pick_layer, self._pick_head = (
            dropdown(label, [("-", v)]) for label, v in (("Clip", 0), ("Layer", MEAN), ("Head", MEAN))
        )
        self._opacity = ipywidgets.FloatSlider(
            description="Opacity", min=0, max=1, step=0.05, readout_format=".2f", continuous_update=False
        )
        self._shared = ipywidgets.Checkbox(description="Same colour scale for all clips", indent=False)
        self._video, self._curve = ipywidgets.HTML(), FigureBox()
        menus = row(self._pick_method, self._pick_clip, self._pick_layer, self._pick_head)
        sliders = row(self._opacity, self._shared)
        super().__init__([ipywidgets.HTML(VIEW_CSS), menus, sliders, self._video, self._curve.box])
        self.add_class("wb-view")
        self.method = next(iter(self.maps))
        self._offer()
        for trait, control in self._controls().items():
            traitlets.link((self, trait), (control, "value"))
        self.observe(self._on_change, list(self._controls()))
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
        return note(CAUTION[self.shown.method in ATTENTION])

    def _refresh(self) -> None:
        self._video.value = self.player().html() + self._caution()
        self._curve.show(self._curve_figure())

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

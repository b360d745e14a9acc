"""Train another setup from a notebook, in a process of its own: start, watch, stop, go on."""

import asyncio
import logging
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import traitlets

from workbench.data.tables import ClipTable
from workbench.models.strategies import STRATEGIES, parse_strategy
from workbench.training.launch import STATES, Launched, find_jobs, launch
from workbench.training.runs import Run
from workbench.training.setup import Setup
from workbench.views.mailing import MailableBox
from workbench.views.parts import FigureBox, dropdown, frozen, heading, note, row
from workbench.views.plots import learning_curves
from workbench.views.still import still
from workbench.views.style import VIEW_CSS, Html, escape

log = logging.getLogger(__name__)

IDLE = "idle"
BUSY = ("starting", "running")
_WORDS = {
    IDLE: "Nothing is training.", "starting": "The process is starting.", "running": "Training.",
    "stopped": "Stopped; Resume goes on from the checkpoint.", "finished": "Finished.",
    "failed": "Failed; the log says why. Resume goes on from the last checkpoint.",
}  # fmt: skip
_LOG_STYLE = (
    "margin:4px 0;padding:8px;max-height:160px;overflow:auto;font-size:12px;line-height:1.4;white-space:pre-wrap;"
    "overflow-wrap:anywhere;border:1px solid rgba(128,128,128,.4);border-radius:4px;color:inherit;background:none"
)


class LaunchPanel(MailableBox):
    """Choose strategy, learning rate and epochs; Start trains them by :func:`workbench.launch`.

    Args:
        clips: what to train on. runs_dir: where the run goes.
        base: the setup that is changed; default: ``Setup()``.
        on_finished: called with the finished Run, once per training that this panel saw end.
        device, workers: as for ``launch``. poll_seconds: how often a training is looked after.

    A training that still runs in ``runs_dir`` (of a kernel that was restarted, say) is taken over. Looking after it is
    an asyncio task of the kernel: other cells run meanwhile, and it ends with the training or the panel. Without a
    running event loop (a script) call :meth:`refresh`.
    """

    state = traitlets.Enum([IDLE, *STATES], IDLE, help="how the training stands")
    run_folder = traitlets.Unicode("", help="folder of the run, once known")
    strategy = traitlets.Unicode(help="strategy to train")
    lr = traitlets.Float(help="peak rate of the backbone; of the head where the backbone is frozen")
    epochs = traitlets.Int(min=1, help="passes over the train clips")

    def __init__(
        self,
        clips: ClipTable,
        *,
        runs_dir: str | Path,
        base: Setup | None = None,
        on_finished: Callable[[Run], Any] | None = None,
        device: str = "auto",
        workers: int = 2,
        poll_seconds: float = 1.0,
    ) -> None:
        self.clips, self.runs_dir, self.base = clips, Path(runs_dir), base or Setup()
        self.on_finished, self.poll_seconds = on_finished, poll_seconds
        self._options: dict[str, Any] = {"device": device, "workers": workers}
        self.launched: Launched | None = None
        self._task: asyncio.Task[None] | None = None
        self._drawn = 0
        self._build()
        self.strategy, self.epochs = self.base.strategy, self.base.epochs
        for trait, control in self._controls.items():
            traitlets.link((self, trait), (control, "value"))
        self.observe(self._on_strategy, "strategy")
        self.observe(lambda _: self._show_state(), ["state", "run_folder"])
        self._on_strategy()
        if running := [job for job in find_jobs(self.runs_dir) if job.alive]:
            self.follow(running[0])
        self._show_state()

    def _build(self) -> None:
        names = list(dict.fromkeys([*(str(s) for s in STRATEGIES.values()), self.base.strategy]))
        wide: dict[str, Any] = {"style": {"description_width": "initial"}, "layout": ipywidgets.Layout(width="190px")}
        self._controls: dict[str, Any] = {
            "strategy": dropdown("Strategy", names, value=self.base.strategy),
            "lr": ipywidgets.BoundedFloatText(description="Learning rate", min=0, max=10, step=1e-4, **wide),
            "epochs": ipywidgets.BoundedIntText(description="Epochs", min=1, max=100_000, **wide),
        }
        self._buttons = {
            "start": ipywidgets.Button(description="Start", icon="play"),
            "stop": ipywidgets.Button(description="Stop", icon="stop"),
            "resume": ipywidgets.Button(description="Resume", icon="step-forward"),
        }
        for name, button in self._buttons.items():
            button.on_click(partial(self._tried, getattr(self, name)))
        self._status, self._trouble, self._log = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._curves = FigureBox()
        super().__init__(
            [
                ipywidgets.HTML(VIEW_CSS), row(*self._controls.values(), *self._buttons.values()), self._status,
                self._trouble, self._curves.box, self._log,
            ]
        )  # fmt: skip
        self.add_class("wb-view")

    @traitlets.validate("strategy")
    def _known_strategy(self, proposal: Any) -> str:
        try:
            return str(parse_strategy(proposal["value"]))
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error

    def setup(self) -> Setup:
        """What Start would train. A rate left as it is stays the strategy's own."""
        chosen = self.base.replace(strategy=self.strategy, epochs=self.epochs, lr=None, head_lr=None)
        frozen_backbone = parse_strategy(self.strategy).frozen
        own = chosen.rates[1] if frozen_backbone else chosen.rates[0]
        if self.lr == own:
            return chosen
        return chosen.replace(**{"head_lr" if frozen_backbone else "lr": self.lr})

    def _on_strategy(self, _: Any = None) -> None:
        if self.strategy not in self._controls["strategy"].options:
            self._controls["strategy"].options = [*self._controls["strategy"].options, self.strategy]
        rates = Setup(strategy=self.strategy).rates
        self.lr = rates[1] if parse_strategy(self.strategy).frozen else rates[0]
        asked = self.base.head_lr if parse_strategy(self.strategy).frozen else self.base.lr
        if self.strategy == self.base.strategy and asked is not None:
            self.lr = asked

    def start(self) -> None:
        """Train the chosen setup. Raises what :func:`workbench.launch` raises."""
        self.follow(launch(self.setup(), self.clips, runs_dir=self.runs_dir, **self._options))

    def stop(self) -> None:
        """Ask the training to end with a checkpoint, see :meth:`Launched.stop`; in a notebook without waiting."""
        if self.launched is None:
            return
        if self._task is not None and not self._task.done():
            self._buttons["stop"].disabled = True
            asyncio.get_running_loop().run_in_executor(None, self.launched.stop)  # whoever looks after it sees the end
            return
        self.launched.stop()
        self.refresh()

    def resume(self) -> None:
        """Go on from the last checkpoint."""
        if self.launched is not None:
            self.launched.resume()
            self.follow(self.launched)

    def follow(self, launched: Launched) -> None:
        """Show this training, and look after it until it ends."""
        self.launched, self._drawn = launched, 0
        self.set_trait("state", "starting")  # so that an end that was not seen here is told, too
        self.refresh()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop: a script, which calls refresh
            return
        if self._task is None or self._task.done():
            self._task = loop.create_task(_look_after(weakref.ref(self), self.poll_seconds))

    def refresh(self) -> None:
        """Read how the training stands, and show it."""
        if self.launched is None:
            return
        before, state = self.state, self.launched.state
        self.run_folder = str(self.launched.run_folder or "")
        self._draw()
        self._log.value = (
            f'<pre tabindex="0" role="region" aria-label="log of the training" style="{_LOG_STYLE}">'
            f"{escape(self.launched.log(8))}</pre>"
        )
        self.state = state
        if state == "finished" and before in BUSY and self.on_finished is not None:
            self.on_finished(self.launched.run())

    def _draw(self) -> None:
        if len(history := self._history()) != self._drawn:
            self._drawn = len(history)
            self._curves.show(self._figure())

    def _history(self) -> Any:
        return self.launched.history() if self.launched is not None else ()

    def _figure(self) -> Any:
        history = self._history()
        name = self.launched.name if self.launched is not None else ""
        return learning_curves({name: SimpleNamespace(history=history, record={})} if len(history) else {})

    def _tried(self, act: Callable[[], None], _button: Any = None) -> None:
        """What a click asks for; a refusal is said in the panel, since a callback's error would reach nobody."""
        self._trouble.value = ""
        try:
            act()
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            log.warning("%s", error)
            self._trouble.value = f'<div role="alert" class="wb-note"><strong>Not done:</strong> {escape(error)}</div>'

    def _sentence(self) -> str:
        words, where = _WORDS[self.state], f" Run folder: {self.run_folder}" if self.run_folder else ""
        if self.launched is not None:
            words = f"{self.launched.name}: {words[0].lower()}{words[1:]}"
            words += f" {self._drawn} of {self.launched.job['epochs']} epochs."
        return words + where

    def _show_state(self) -> None:
        busy = self.state in BUSY
        self._buttons["start"].disabled = busy
        self._buttons["stop"].disabled = not busy
        self._buttons["resume"].disabled = self.state not in ("stopped", "failed")
        for control in self._controls.values():
            control.disabled = busy
        self._curves.box.layout.display = "block" if self._drawn else "none"
        self._status.value = f'<div role="status" class="wb-note">{escape(self._sentence())}</div>'

    def close(self) -> None:
        """Take the panel away; the training goes on."""
        if self._task is not None:
            self._task.cancel()
        super().close()

    def freeze(self) -> Html:
        """How the training stands, as static HTML with its curves."""
        curves = still(self._figure(), label="learning curves") if self._drawn else ""
        return frozen("Training", note(self._sentence()), heading("Learning curves") if curves else "", curves)


async def _look_after(panel: "weakref.ref[LaunchPanel]", seconds: float) -> None:
    """Refresh the panel until its training has ended or nobody holds it any more."""
    while (view := panel()) is not None:
        try:
            view.refresh()
        except Exception:
            # E.g. the caller's on_finished: a task's error would otherwise be told when it is collected, if ever.
            log.exception("looking after the training failed")
            view._trouble.value = note("Looking after the training failed; the kernel's log says why.")
            return
        view._show_state()
        if view.state not in BUSY:
            return
        del view
        await asyncio.sleep(seconds)

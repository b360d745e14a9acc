"""How a setup spells the way in which several losses become one step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

AGGREGATORS = {
    "upgrad": "UPGrad, https://arxiv.org/abs/2406.16232",
    "dualproj": "DualProj, the projection of the mean gradient: GEM, https://arxiv.org/abs/1706.08840",
    "pcgrad": "PCGrad, https://arxiv.org/abs/2001.06782",
    "cagrad": "CAGrad, https://arxiv.org/abs/2110.14048",
    "mgda": "MGDA, https://arxiv.org/abs/1810.04650",
    "nash": "Nash-MTL, https://arxiv.org/abs/2202.01017",
    "imtl_g": "IMTL-G, https://openreview.net/forum?id=IMPnRXEWpvr",
    "aligned": "Aligned-MTL, https://arxiv.org/abs/2305.19000",
}
# What a method needs besides torchjd, and the extra of torchjd that brings it. ecos is GPL-licensed.
_SOLVERS = {"cagrad": (("cvxpy", "clarabel"), "cagrad"), "nash": (("cvxpy", "ecos"), "nash_mtl")}
SCALARIZERS = {
    "sum": "the plain sum of the losses",
    "static": "static:<task>=<weight>,...: a fixed weight per task, 1 where none is given",
    "uncertainty": "a learned log variance per task, https://arxiv.org/abs/1705.07115",
    "dwa": "dwa:<temperature>: by how fast each loss fell lately, https://arxiv.org/abs/1803.10704",
    "random": "new random weights at each step, https://arxiv.org/abs/2111.10603",
    "gradnorm": "gradnorm:<alpha>: gradients of like size, larger for tasks that lag, https://arxiv.org/abs/1711.02257",
    "geometric": "the geometric mean of the losses (torchjd's GeometricMean)",
    "stch": "stch:<mu>: a smooth maximum of the losses, https://arxiv.org/abs/2402.19078 (torchjd's STCH)",
}
# dwa: the paper's temperature; stch: one of the paper's 0.01 to 1. gradnorm's and cagrad's are ours, within what the
# papers try; tune them before drawing conclusions.
_VALUES = {"dwa": 2.0, "gradnorm": 1.5, "stch": 0.1, "cagrad": 0.4}
_SPELLING = re.compile(r"(?P<method>[a-z_]+)(?::(?P<value>[^@]*))?(?:@(?P<at>\w+))?")


@dataclass(frozen=True)
class BalanceSpec:
    """What a string such as ``"upgrad@weights"``, ``"dwa:2"`` or ``"static:safety=2"`` says; ``str`` gives it back."""

    method: str
    value: float | None = None
    at: str | None = None
    """Of gradient methods: ``tokens`` (the encoder's, one backward pass of the heads per task) or ``weights`` (all that
    the tasks share, one whole backward pass per task)."""
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def aggregates(self) -> bool:
        return self.method in AGGREGATORS

    @property
    def needs_gradients(self) -> bool:
        """Whether each task's own gradient is computed at every step."""
        return self.at is not None

    def __str__(self) -> str:
        value = "" if self.value is None else f":{self.value:g}"
        if self.weights:
            value = ":" + ",".join(f"{task}={weight:g}" for task, weight in self.weights)
        return f"{self.method}{value}{f'@{self.at}' if self.at else ''}"


def parse_balance(text: str, tasks: Sequence[str] | None = None, *, solvers: bool = True) -> BalanceSpec:
    """Read a balance as it is spelled in a setup; with ``tasks`` also check that static weights name some of them.

    Raises ValueError on an unknown method, value or place and, unless ``solvers=False``, ImportError where a method's
    solver is not installed.
    """
    match = _SPELLING.fullmatch(text.strip()) if isinstance(text, str) else None
    method = match["method"] if match else ""
    if match is None or method not in (*SCALARIZERS, *AGGREGATORS):
        raise ValueError(f"balance={text!r} is not known; use one of {', '.join((*SCALARIZERS, *AGGREGATORS))}")
    at, value = match["at"], match["value"]
    if at is not None and at not in ("tokens", "weights"):
        raise ValueError(f"balance={text!r}: gradients are compared at 'tokens' or at 'weights', not at {at!r}")
    if method in AGGREGATORS or method == "gradnorm":
        at = at or "tokens"
    elif at is not None:
        raise ValueError(f"balance={text!r}: {method} weighs losses, not gradients; leave out @{at}")
    if method == "static":
        return BalanceSpec(method, weights=_static(text, value, tasks))
    if value is not None and method not in _VALUES:
        raise ValueError(f"balance={text!r}: {method} takes no value")
    number = _VALUES.get(method)
    if value is not None:
        try:
            number = float(value)
        except ValueError as error:
            raise ValueError(f"balance={text!r}: {value!r} is no number") from error
        if not 0 < number < 1e6 and not (number == 0 and method in ("gradnorm", "cagrad")):
            raise ValueError(f"balance={text!r}: the value must be above 0")
    if solvers:
        check_solvers(method)
    return BalanceSpec(method, number, at)


def _static(text: str, value: str | None, tasks: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    pairs = []
    for item in (value or "").split(","):
        task, equals, weight = item.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = -1.0
        if not equals or not 0 <= number < 1e6:
            raise ValueError(f"balance={text!r}: write static:<task>=<weight>,<task>=<weight> with weights from 0 up")
        if tasks is not None and task.strip() not in tasks:
            raise ValueError(f"balance={text!r} weighs the task {task.strip()!r}; there are {list(tasks)}")
        pairs.append((task.strip(), number))
    return tuple(pairs)


def check_solvers(method: str) -> None:
    """Raise ImportError with what to install where ``method`` needs a solver that is absent."""
    needed, extra = _SOLVERS.get(method, ((), ""))
    if absent := [name for name in needed if find_spec(name) is None]:
        licence = " (ecos is licensed under the GPL)" if "ecos" in needed else ""
        raise ImportError(f'balance={method!r} needs {" and ".join(absent)}{licence}: pip install "torchjd[{extra}]"')

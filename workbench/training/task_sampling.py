"""Which clips an epoch shows, where several tasks have labels on different ones."""

import numpy as np
from scipy.optimize import nnls

LEAST_CHANCE = 0.1
"""Under task-balanced sampling every labelled clip keeps at least this share of the chance it has without."""
_NEAR_UNIFORM = 1e-4  # what distance from uniform costs, against unevenness: enough to choose among the even
_EXACTLY = 1e3  # weight of the equation that masses sum to one; they are normalised after it


def task_balanced(labelled: np.ndarray) -> np.ndarray:
    """Chances (n,) with which to draw clips so that each task has as many labelled ones on average.

    ``labelled`` bool (n, tasks): which clip has which label. Clips with the same labels are alike. Among the chances
    that leave each labelled clip at least :data:`LEAST_CHANCE` of what it had, those with the most even shares of
    labelled clips (least squares), and of these the nearest to uniform. Where data sets with a task each are joined,
    each gets its part; a task that all clips have is seen always, whatever is drawn; a clip without any label never.
    Raises ValueError where no clip has a label.
    """
    patterns, kind, counts = np.unique(labelled, axis=0, return_inverse=True, return_counts=True)
    some = patterns.any(1)
    if not some.any():
        raise ValueError("task_sampling='balanced': no clip has a label of any task")
    even = counts[some] / counts[some].sum()  # the mass of each kind of clip, drawn uniformly
    # The tasks' shares of labelled clips, each less their mean; and the distance from uniform.
    uneven = (patterns[some] - patterns[some].mean(1, keepdims=True)).T
    pull = np.sqrt(_NEAR_UNIFORM / even)
    matrix = np.concatenate([uneven, np.diag(pull), np.full((1, len(even)), _EXACTLY)])
    target = np.concatenate([np.zeros(len(uneven)), pull * even, [_EXACTLY]])
    least = LEAST_CHANCE * even
    found = least + nnls(matrix, target - matrix @ least)[0]
    masses = np.zeros(len(patterns))
    masses[some] = found / found.sum()
    return np.asarray((masses / counts)[kind.reshape(-1)])

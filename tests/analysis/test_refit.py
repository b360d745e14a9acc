"""The last layer fitted anew: against scikit-learn's own predictions, and the penalty that held-out clips choose."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from workbench.analysis.explaining.refit import ABSENT, PENALTIES, refitted
from workbench.data.tables import Task

ABC = Task("action", "multiclass", ("a", "b", "c"))


def blobs(n=90, classes=3, width=6, spread=0.6, seed=0):
    rng = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(7).standard_normal((classes, width))
    labels = np.arange(n) % classes
    return torch.from_numpy(20 * (centres[labels] + spread * rng.standard_normal((n, width)))).float(), labels * 1.0


def test_refitted_layer_says_what_scikit_learn_says():
    x, y = blobs()
    linear, penalty = refitted(nn.Linear(6, 3), ABC, x, y)
    scale = float(np.sqrt((x.double().numpy() ** 2).mean()))
    model = LogisticRegression(C=1 / (2 * penalty * len(y)), max_iter=300).fit(x.double().numpy() / scale, y)
    with torch.no_grad():
        chances = linear(x).softmax(-1).numpy()
    np.testing.assert_allclose(chances, model.predict_proba(x.double().numpy() / scale), atol=1e-4)


def test_refitted_chooses_a_weak_penalty_where_classes_lie_apart_and_a_strong_one_for_noise():
    clean = refitted(nn.Linear(6, 3), ABC, *blobs())[1]
    noise = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    assert clean <= 1e-3 < refitted(nn.Linear(6, 3), ABC, noise, blobs()[1])[1] == PENALTIES[0]


def test_refitted_gives_a_class_without_a_clip_no_chance_and_handles_two_classes():
    x, y = blobs(classes=2)
    linear, _ = refitted(nn.Linear(6, 3), ABC, x, np.where(y == 1, 2.0, 0.0))
    assert linear.bias[1] == ABSENT
    with torch.no_grad():
        np.testing.assert_array_equal(linear(x).argmax(-1).numpy(), np.where(y == 1, 2, 0))
    binary, _ = refitted(nn.Linear(6, 1), Task("safety", "binary", ("safe", "unsafe")), x, y)
    with torch.no_grad():
        np.testing.assert_array_equal((binary(x)[:, 0] > 0).numpy(), y == 1)


def test_refitted_regression_recovers_a_line_and_leaves_the_given_layer_alone():
    x, _ = blobs()
    truth = x[:, 0].double().numpy() * 0.3 - 2
    given = nn.Linear(6, 1)
    before = given.weight.clone()
    linear, _ = refitted(given, Task("quality", "regression"), x, truth)
    with torch.no_grad():
        np.testing.assert_allclose(linear(x)[:, 0], truth, atol=1e-2)
    assert torch.equal(given.weight, before)


def test_refitted_holds_whole_groups_out():
    """Features that only tell the group: with groups held out they foretell nothing, so the penalty must be strong."""
    groups = np.repeat(np.arange(15), 6)
    labels = np.random.default_rng(0).integers(0, 3, 15)[groups] * 1.0
    x = torch.eye(15)[groups]
    linear = nn.Linear(15, 3)
    leaky, kept = refitted(linear, ABC, x, labels)[1], refitted(linear, ABC, x, labels, [str(g) for g in groups])[1]
    assert kept > leaky


@pytest.mark.parametrize("labels", [np.zeros(20), np.arange(4) % 2])
def test_refitted_refuses_too_little(labels):
    with pytest.raises(ValueError, match="too few to refit"):
        refitted(nn.Linear(6, 3), ABC, torch.zeros(len(labels), 6), labels * 1.0)

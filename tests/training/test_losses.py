import numpy as np
import pytest
import torch

from workbench.data.mix import Pairing
from workbench.data.tables import Task
from workbench.training.losses import (
    Criterion,
    criterion_of,
    decide,
    labelled_clips,
    mixed_loss,
    parse_loss,
    standardisation,
    task_loss,
    task_losses,
    total_loss,
)

ACTION = Task("action", "multiclass", ("a", "b", "c"))
FLAG = Task("flag", "binary")
SCORE = Task("score", "regression")
STANDARD = {"score": (10.0, 2.0)}
NAN = float("nan")


def test_task_loss_equals_torch_on_the_labelled_clips() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2.0, NAN, 0.0, NAN], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([2, 0]))
    assert torch.equal(task_loss(ACTION, logits, target, STANDARD), expected)


def test_task_loss_of_a_value_is_squared_error_in_standard_units() -> None:
    # Targets 12 and 6 are +1 and -2 standard deviations from 10; outputs 0 and 1: errors 1 and 9.
    loss = task_loss(SCORE, torch.tensor([0.0, 1.0]), torch.tensor([12.0, 6.0], dtype=torch.float64), STANDARD)
    assert loss.item() == pytest.approx((1 + 9) / 2)


def test_task_loss_of_a_flag_is_binary_cross_entropy() -> None:
    loss = task_loss(FLAG, torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0], dtype=torch.float64), STANDARD)
    assert loss.item() == pytest.approx((np.log(2) + np.log1p(np.exp(2.0))) / 2)


def test_total_loss_sends_no_gradient_from_a_missing_label() -> None:
    outputs = {
        "action": torch.randn(3, 3, requires_grad=True),
        "flag": torch.randn(3, requires_grad=True),
        "score": torch.randn(3, requires_grad=True),
    }
    targets = torch.tensor([[0.0, NAN, NAN], [NAN, 1.0, NAN], [1.0, NAN, NAN]], dtype=torch.float64)
    total_loss((ACTION, FLAG, SCORE), outputs, targets, STANDARD).backward()
    assert outputs["action"].grad is not None and outputs["flag"].grad is not None
    assert outputs["action"].grad[1].abs().max() == 0 and outputs["action"].grad[0].abs().max() > 0
    assert outputs["flag"].grad[[0, 2]].abs().max() == 0 and outputs["flag"].grad[1] != 0
    # No clip of the batch has a score: exactly zero, and still a graph that backward can run through.
    assert outputs["score"].grad is not None and outputs["score"].grad.abs().max() == 0


PAIRING = Pairing(torch.tensor([1, 2, 3, 0]), 0.7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_loss_is_cross_entropy_with_soft_labels(smoothing: float) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    soft = 0.7 * torch.eye(3)[[2, 1, 0, 0]] + 0.3 * torch.eye(3)[[1, 0, 0, 2]]
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    ours = mixed_loss(ACTION, logits, target, STANDARD, PAIRING, label_smoothing=smoothing)
    torch.testing.assert_close(ours, expected)


def test_mixed_loss_of_a_flag_is_binary_cross_entropy_with_soft_labels() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0])
    soft = torch.tensor([0.7, 0.3, 1.0, 1.0])  # of 1 0 1 1: 0.7 of a clip's own, 0.3 of the next one's
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft)
    ours = mixed_loss(FLAG, logits, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64), STANDARD, PAIRING)
    torch.testing.assert_close(ours, expected)


def test_mixed_loss_leaves_out_a_missing_label_on_its_side_only() -> None:
    # At logit 0 every label costs log 2; the four logits make each clip's cost tell which side counted.
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    target = torch.tensor([NAN, 1.0, NAN, 0.0], dtype=torch.float64)

    def cost(logit: float, label: float) -> float:
        return float(np.log1p(np.exp(logit)) - label * logit)

    own = (cost(1.0, 1.0) + cost(3.0, 0.0)) / 2  # clips 1 and 3 have a label
    partners = (cost(0.0, 1.0) + cost(2.0, 0.0)) / 2  # clips 0 and 2 have a partner with one
    ours = mixed_loss(FLAG, logits, target, STANDARD, PAIRING)
    assert ours.item() == pytest.approx(0.7 * own + 0.3 * partners)


def test_mixed_loss_of_a_value_is_that_of_the_interpolated_target() -> None:
    # Targets 12, 6, missing, 10: only clip 0 (12 and 6: 10.2) and clip 3 (10 and 12: 10.6) have both, 0.1 and 0.3
    # standard deviations above 10.
    target = torch.tensor([12.0, 6.0, NAN, 10.0], dtype=torch.float64)
    ours = mixed_loss(SCORE, torch.tensor([0.1, 9.0, 9.0, 1.3]), target, STANDARD, PAIRING)
    assert ours.item() == pytest.approx((0 + 1) / 2, abs=1e-6)


def test_total_loss_with_a_pairing_sums_the_mixed_losses() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = {"action": torch.randn(4, 3, generator=generator), "score": torch.randn(4, generator=generator)}
    targets = torch.tensor([[2.0, 12.0], [NAN, 9.0], [0.0, NAN], [1.0, 8.0]], dtype=torch.float64)
    parts = [
        mixed_loss(task, outputs[task.name], targets[:, i], STANDARD, PAIRING) for i, task in enumerate((ACTION, SCORE))
    ]
    assert torch.equal(total_loss((ACTION, SCORE), outputs, targets, STANDARD, pairing=PAIRING), sum(parts))
    whole = Pairing(PAIRING.partner, 1.0)  # a mix that takes nothing from the partners, where all labels are known
    known = targets.nan_to_num(1.0)
    plain = total_loss((ACTION, SCORE), outputs, known, STANDARD)
    assert torch.equal(total_loss((ACTION, SCORE), outputs, known, STANDARD, pairing=whole), plain)


def test_standardisation_ignores_missing_labels(tiny_table) -> None:
    known = tiny_table.train.frame.speed.dropna()
    stats = standardisation(tiny_table.train, tiny_table.tasks)
    assert stats == {"speed": (pytest.approx(known.mean()), pytest.approx(known.std(ddof=0)))}


def test_decide_turns_logits_into_predictions() -> None:
    index, probabilities = decide(ACTION, torch.tensor([[0.0, 2.0, 0.0]]), STANDARD)
    assert index.tolist() == [1.0]
    assert probabilities[0] == pytest.approx(np.exp([0, 2, 0]) / np.exp([0, 2, 0]).sum())
    flags, pairs = decide(FLAG, torch.tensor([-1.0, 3.0]), STANDARD)
    assert flags.tolist() == [0.0, 1.0]
    assert pairs[1] == pytest.approx([1 - 1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-3.0))])
    values, none = decide(SCORE, torch.tensor([1.5]), STANDARD)
    assert values.tolist() == [13.0] and none == [[]]


def some_logits(*shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


LABELS = torch.tensor([2.0, 1.0, 0.0, 0.0, 1.0, NAN], dtype=torch.float64)
FLAGS = torch.tensor([1.0, 0.0, 0.0, 1.0, NAN, 0.0], dtype=torch.float64)


def test_task_loss_with_weights_equals_torchs_weighted_cross_entropy() -> None:
    weight = torch.tensor([1.0, 3.0, 0.5])
    logits = some_logits(6, 3)
    ours = task_loss(
        ACTION, logits, LABELS, STANDARD, label_smoothing=0.1, criterion=Criterion(weights={"action": weight})
    )
    expected = torch.nn.functional.cross_entropy(logits[:5], LABELS[:5].long(), weight=weight, label_smoothing=0.1)
    torch.testing.assert_close(ours, expected)


def test_task_loss_of_a_weighted_flag_is_that_of_two_weighted_classes() -> None:
    # A logit x is two classes with logits 0 and x, so torch's weighted cross entropy is an independent answer.
    logits, weight, known = some_logits(6), torch.tensor([1.0, 4.0]), ~torch.isnan(FLAGS)
    ours = task_loss(FLAG, logits, FLAGS, STANDARD, criterion=Criterion(weights={"flag": weight}))
    two = torch.stack([torch.zeros(6), logits], 1)
    expected = torch.nn.functional.cross_entropy(two[known], FLAGS[known].long(), weight=weight)
    torch.testing.assert_close(ours, expected)


def test_task_loss_focal_by_hand() -> None:
    # Logits log 3 and 0: probability 3/4 for a label of class 0, 1/4 for one of class 1.
    task, logits = Task("t", "multiclass", ("a", "b")), torch.tensor([[np.log(3.0), 0.0]] * 2)
    labels = torch.tensor([0.0, 1.0], dtype=torch.float64)
    by_hand = (0.25**2 * np.log(4 / 3) + 0.75**2 * np.log(4)) / 2
    assert task_loss(task, logits, labels, {}, criterion=Criterion("focal", 2.0)).item() == pytest.approx(by_hand)
    flag = task_loss(FLAG, torch.tensor([-np.log(3.0)] * 2), labels, {}, criterion=Criterion("focal", 2.0))
    assert flag.item() == pytest.approx(by_hand)
    weighted = Criterion("focal", 2.0, {"t": torch.tensor([1.0, 3.0])})
    by_hand = (0.25**2 * np.log(4 / 3) + 3 * 0.75**2 * np.log(4)) / 4
    assert task_loss(task, logits, labels, {}, criterion=weighted).item() == pytest.approx(by_hand)


@pytest.mark.parametrize(("task", "labels", "shape"), [(ACTION, LABELS, (6, 3)), (FLAG, FLAGS, (6,))])
def test_task_loss_focal_without_gamma_is_cross_entropy(task: Task, labels: torch.Tensor, shape: tuple[int]) -> None:
    focal = task_loss(task, some_logits(*shape), labels, STANDARD, criterion=Criterion("focal", 0.0))
    torch.testing.assert_close(focal, task_loss(task, some_logits(*shape), labels, STANDARD))


def test_task_loss_focal_has_a_finite_gradient_where_the_model_is_certain() -> None:
    logits = torch.tensor([[80.0, -80.0, -80.0], [-80.0, 80.0, -80.0]], requires_grad=True)
    labels = torch.tensor([0.0, 0.0], dtype=torch.float64)
    task_loss(ACTION, logits, labels, STANDARD, criterion=Criterion("focal", 0.5)).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_task_loss_logit_adjusted_is_cross_entropy_of_shifted_logits() -> None:
    targets = torch.stack([LABELS, FLAGS], 1)  # 2, 2 and 1 labels of the classes; 3 negatives, 2 positives
    criterion = criterion_of("logit_adjusted:0.5", {}, (ACTION, FLAG), targets)
    shift = 0.5 * torch.tensor([2 / 5, 2 / 5, 1 / 5]).log()
    logits = some_logits(6, 3)
    ours = task_loss(ACTION, logits, LABELS, STANDARD, criterion=criterion)
    torch.testing.assert_close(ours, task_loss(ACTION, logits + shift, LABELS, STANDARD))
    flags = some_logits(6)
    ours = task_loss(FLAG, flags, FLAGS, STANDARD, criterion=criterion)
    torch.testing.assert_close(ours, task_loss(FLAG, flags + 0.5 * np.log((2 / 5) / (3 / 5)), FLAGS, STANDARD))


def test_logit_adjusted_loss_learns_even_logits_from_uneven_labels() -> None:
    """Where the clips tell nothing, cross entropy ends at the log priors; with tau = 1 every class gets the same."""
    labels = torch.tensor([0.0] * 14 + [1.0] * 5 + [2.0], dtype=torch.float64)
    learned = {}
    for loss in ("ce", "logit_adjusted:1"):
        logits = torch.zeros(3, requires_grad=True)
        criterion = criterion_of(loss, {}, (ACTION,), labels[:, None])
        for _ in range(3000):
            value = task_loss(ACTION, logits.expand(20, 3), labels, STANDARD, criterion=criterion)
            (step,) = torch.autograd.grad(value, logits)
            logits = (logits - step).detach().requires_grad_()
        learned[loss] = logits.softmax(0)
    torch.testing.assert_close(learned["ce"], torch.tensor([0.7, 0.25, 0.05]), rtol=0, atol=1e-3)
    torch.testing.assert_close(learned["logit_adjusted:1"], torch.full((3,), 1 / 3), rtol=0, atol=1e-3)


def test_criterion_of_balanced_weights_equal_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    targets = torch.tensor([[0.0, 1.0]] * 7 + [[2.0, 0.0]] * 2 + [[NAN, 0.0]] + [[2.0, NAN]], dtype=torch.float64)
    criterion = criterion_of("ce", {"*": "balanced"}, (ACTION, FLAG), targets)
    for i, task in enumerate((ACTION, FLAG)):
        labels = targets[:, i][~torch.isnan(targets[:, i])].numpy()
        expected = utils.compute_class_weight("balanced", classes=np.unique(labels), y=labels)
        # No action is of class 1: the others' weights still have mean 1 over the labels.
        np.testing.assert_allclose(criterion.weights[task.name][np.unique(labels)].numpy(), expected, rtol=1e-6)


def test_criterion_of_takes_weights_by_class_name_and_leaves_other_tasks() -> None:
    targets = torch.zeros(4, 3, dtype=torch.float64)
    criterion = criterion_of("ce", {"action": {"b": 3.0}, "flag": {"1": 2.0}}, (ACTION, FLAG, SCORE), targets)
    assert criterion.weights["action"].tolist() == [1.0, 3.0, 1.0]
    assert criterion.weights["flag"].tolist() == [1.0, 2.0]
    assert set(criterion.weights) == {"action", "flag"}
    assert criterion_of("focal", {"flag": "balanced"}, (ACTION, FLAG, SCORE), targets).weights.keys() == {"flag"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"score": "balanced"}, r"class_weights for \['score'\]: the tasks with classes are \['action', 'flag'\]"),
        ({"action": {"z": 2.0}}, r"class_weights of task 'action' name \['z'\]; its classes are \['a', 'b', 'c'\]"),
    ],
)
def test_criterion_of_refuses_what_is_not_there(weights: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        criterion_of("ce", weights, (ACTION, FLAG, SCORE), torch.zeros(2, 3, dtype=torch.float64))


def test_criterion_of_stays_finite_for_a_class_without_labels() -> None:
    targets = torch.tensor([[0.0]] * 3 + [[1.0]], dtype=torch.float64)
    criterion = criterion_of("logit_adjusted", {"*": "balanced"}, (ACTION,), targets)
    assert torch.isfinite(criterion.log_priors["action"]).all() and torch.isfinite(criterion.weights["action"]).all()


def test_parse_loss_takes_the_usual_value_of_a_bare_name() -> None:
    assert [parse_loss(s) for s in ("ce", "focal", "focal:1.5", "logit_adjusted")] == [
        ("ce", 0.0), ("focal", 2.0), ("focal", 1.5), ("logit_adjusted", 1.0)
    ]  # fmt: skip


def test_total_loss_of_a_multilabel_task_is_binary_cross_entropy_over_the_known_classes() -> None:
    tags = Task("tags", "multilabel", ("x", "y"))
    outputs = {"tags": torch.zeros(3, 2, requires_grad=True), "flag": torch.zeros(3)}
    with torch.no_grad():
        outputs["tags"][0, 1] = 1.5
    targets = torch.tensor([[0.0, 1.0, 1.0], [NAN, 0.0, 1.0], [NAN, NAN, 0.0]], dtype=torch.float64)
    loss = total_loss((tags, FLAG), outputs, targets, STANDARD)
    tag_loss = (np.log(2) + np.log1p(np.exp(-1.5)) + np.log(2)) / 3
    assert loss.item() == pytest.approx(tag_loss + np.log(2))
    loss.backward()
    assert outputs["tags"].grad is not None
    assert (outputs["tags"].grad == 0).tolist() == [[False, False], [True, False], [True, True]]
    predicted, probabilities = decide(tags, outputs["tags"], STANDARD)
    assert predicted.tolist() == [1.0, 0.0, 0.0] and probabilities[1] == [0.5, 0.5]


def test_total_loss_is_the_sum_of_the_task_losses() -> None:
    outputs = {"action": torch.randn(4, 3), "flag": torch.randn(4), "score": torch.randn(4)}
    targets = torch.tensor([[0, 1, 2.0], [NAN, 0, 1.0], [2, NAN, 0.5], [1, 1, NAN]])
    losses = task_losses((ACTION, FLAG, SCORE), outputs, targets, STANDARD)
    assert list(losses) == [ACTION.name, FLAG.name, SCORE.name]
    assert torch.equal(total_loss((ACTION, FLAG, SCORE), outputs, targets, STANDARD), sum(losses.values()))


def test_labelled_clips_counts_a_mixed_clip_by_both_sides() -> None:
    tags = Task("tags", "multilabel", ("a", "b"))
    nan = NAN
    #                          action flag score tags
    targets = torch.tensor([[0, nan, 2.0, nan, 1], [nan, nan, nan, nan, nan], [2, nan, 0.5, nan, nan]])
    tasks = (ACTION, FLAG, SCORE, tags)
    assert list(labelled_clips(tasks, targets).values()) == [2, 0, 2, 1]
    # clip 0 with 1, 1 with 2, 2 with 0: every mix shows a labelled clip; only the last has two values
    pairing = Pairing(torch.tensor([1, 2, 0]), 0.3)
    assert list(labelled_clips(tasks, targets, pairing).values()) == [3, 0, 1, 2]

import hashlib
import json
import re
from typing import Any

import pytest

from workbench.training.setup import Setup


def test_setup_survives_json() -> None:
    setup = Setup(strategy="linear", tasks=["a", "b"], epochs=3, lr=1e-3, seed=4)
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    assert setup.tasks == ("a", "b")
    assert hash(setup) == hash(setup.replace())


def test_setup_holds_class_weights_so_that_it_can_be_hashed_and_written() -> None:
    weights = {"safe": "balanced", "action": {"run": 2, "fall": 3.0}}
    setup = Setup(class_weights=weights)
    assert setup.weights_by_task == {"safe": "balanced", "action": {"run": 2.0, "fall": 3.0}}
    assert setup == Setup(class_weights={"action": {"fall": 3, "run": 2}, "safe": "balanced"})
    assert hash(setup) == hash(setup.replace())
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    assert Setup(class_weights="balanced").weights_by_task == {"*": "balanced"}
    assert Setup().weights_by_task == Setup(class_weights={}).weights_by_task == {}


def test_setup_spells_the_loss_out() -> None:
    assert [Setup(loss=loss).loss for loss in ("ce", "focal", "focal:0.50", "logit_adjusted")] == [
        "ce", "focal:2", "focal:0.5", "logit_adjusted:1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "spelled"),
    [("dwa", "dwa:2"), ("upgrad", "upgrad@tokens"), ("static: b=2,a=0.50", "static:b=2,a=0.5"), ("sum", "sum")],
)
def test_setup_spells_the_balance_out(given: str, spelled: str) -> None:
    setup = Setup(balance=given, tasks=("a", "b"))
    assert setup.balance == spelled and setup.replace() == setup
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


def test_setup_refuses_a_weight_of_a_task_that_it_does_not_learn() -> None:
    assert Setup(balance="static:c=2").balance == "static:c=2"  # its tasks are not known yet
    with pytest.raises(ValueError, match=re.escape("weighs the task 'c'; there are ['a', 'b']")):
        Setup(balance="static:c=2", tasks=("a", "b"))


def test_setup_of_a_run_can_be_read_where_its_solver_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.training import balance_spec

    monkeypatch.setattr(balance_spec, "find_spec", lambda name: None)
    assert Setup.from_json({"balance": "nash@tokens"}).balance == "nash@tokens"


def test_setup_gives_a_probe_no_head_but_its_own() -> None:
    assert Setup(strategy="attentive", head="query").head == "query"
    with pytest.raises(ValueError, match="head='query', but strategy='linear' is a probe with head='mean'"):
        Setup(strategy="linear", head="query")


@pytest.mark.parametrize("option", [{"balance": "upgrad"}, {"balance": "gradnorm"}, {"measure_conflict": 2}])
def test_setup_compares_no_gradients_before_a_frozen_encoder(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="freezes the encoder: nothing before its tokens trains"):
        Setup(strategy="attentive", **option)
    assert Setup(strategy="attentive", balance="upgrad@weights").balance == "upgrad@weights"
    with pytest.raises(ValueError, match="under strategy='linear' the tasks share nothing that trains"):
        Setup(strategy="linear", balance="upgrad@weights")


def test_setup_names_what_compares_gradients_before_a_frozen_encoder() -> None:
    with pytest.raises(ValueError, match="^measure_conflict=2 compares .* or measure_conflict=0$"):
        Setup(strategy="attentive", measure_conflict=2)
    # A balance at the weights measures at each step, where it can.
    assert Setup(strategy="attentive", balance="pcgrad@weights", measure_conflict=2).measure_conflict == 2


def test_setup_of_an_older_run_is_read_and_keeps_its_fingerprint() -> None:
    # written before heads and balances were fields
    later = ("head", "decoder_layers", "task_attention", "balance", "task_sampling", "measure_conflict")
    old = {name: value for name, value in Setup(tasks=("a",), lr=1e-3).to_json().items() if name not in later}
    read = Setup.from_json(old)
    assert (read.head, read.balance, read.decoder_layers, read.task_attention) == (None, "sum", 1, True)
    assert read.fingerprint() == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()[:8]


def test_setup_wants_only_the_rates_that_sgd_uses() -> None:
    assert Setup(strategy="linear", optimizer="sgd", head_lr=0.1).rates == (0.0, 0.1)
    with pytest.raises(ValueError, match="needs lr: the defaults"):
        Setup(optimizer="sgd", head_lr=0.1)


def test_setup_fingerprint_changes_with_every_field() -> None:
    base = Setup()
    changes: list[dict[str, Any]] = [
        {"strategy": "linear"}, {"backbone": "x/y"}, {"tasks": ("a",)}, {"epochs": 3}, {"batch_size": 3}, {"lr": 0.1},
        {"head_lr": 0.1}, {"weight_decay": 0.1}, {"warmup": 0.2}, {"clip_norm": 2.0}, {"accumulation": 2},
        {"label_smoothing": 0.1}, {"augment": False}, {"crop_scale": 0.5}, {"patience": 2}, {"sampling": "single"},
        {"fit": "pad"}, {"rand_augment": 2}, {"magnitude": 5.0}, {"erasing": 0.25}, {"mixup": 0.8}, {"cutmix": 1.0},
        {"mix_regression": True}, {"sampling": "fps", "fps": 5.0}, {"sampling": "dense", "sampling_rate": 2},
        {"short": "wrap"}, {"test_clips": 2}, {"test_crops": 3}, {"decoder": "pyav"}, {"precision": "fp32"},
        {"seed": 1}, {"num_frames": 8}, {"size_px": 32}, {"optimizer": "adam"}, {"betas": (0.9, 0.99)},
        {"momentum": 0.5}, {"schedule": "plateau"}, {"ema": 0.9}, {"loss": "focal"}, {"class_weights": "balanced"},
        {"drop_path": 0.1}, {"strategy": "linear", "feature_views": 1}, {"head": "query"}, {"decoder_layers": 2},
        {"task_attention": False}, {"balance": "dwa"}, {"task_sampling": "balanced"}, {"measure_conflict": 4},
    ]  # fmt: skip
    assert {field for change in changes for field in change} == set(base.to_json()), "a field is missing from this test"
    prints = {base.replace(**change).fingerprint() for change in changes} | {base.fingerprint()}
    assert len(prints) == len(changes) + 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("strategy", "magic", "strategy='magic' is not known; use one of scratch, linear"),
        ("epochs", 0, "epochs=0 must be a whole number of at least 1"),
        ("lr", -1.0, "lr=-1.0 must lie between 0 and 10"),
        ("warmup", 1.5, "warmup=1.5 must lie between 0 and 1"),
        ("precision", "fp8", "precision='fp8' is not one of"),
        ("sampling", "random", "sampling='random' is not one of uniform, dense, fps, single"),
        ("patience", -1, "patience=-1"),
        ("rand_augment", -1, "rand_augment=-1 must be a whole number of at least 0"),
        ("epochs", 1.5, "epochs=1.5 must be a whole number"),
        ("batch_size", "16", "batch_size='16' must be a whole number"),
        ("seed", -1, "seed=-1 must be a whole number of at least 0"),
        ("lr", "fast", "lr='fast' must lie between 0 and 10"),
        ("decoder", "opencv", "decoder='opencv' is not one of auto, decord, pyav, torchcodec"),
        ("magnitude", 11.0, "magnitude=11.0 must lie between 0 and 10"),
        ("erasing", 1.5, "erasing=1.5 must lie between 0 and 1"),
        ("mixup", -0.1, "mixup=-0.1 must lie between 0 and 100"),
        ("cutmix", -0.1, "cutmix=-0.1 must lie between 0 and 100"),
        ("optimizer", "lion", "optimizer='lion' is not one of adamw, adam, sgd"),
        ("optimizer", "sgd", "optimizer='sgd' needs lr and head_lr: the defaults are for Adam"),
        ("schedule", "step", "schedule='step' is not one of cosine, one_cycle, plateau, constant"),
        ("betas", (0.9, 1.0), "betas=(0.9, 1.0) must be two numbers, each at least 0 and below 1"),
        ("betas", 0.9, "betas=0.9 must be two numbers"),
        ("ema", 1.0, "ema=1.0 must lie between 0 and 0.99999"),
        ("drop_path", 1.0, "drop_path=1.0 must lie between 0 and 0.9"),
        ("head", "cls", "head='cls' is not one of None, mean, query"),
        ("decoder_layers", 0, "decoder_layers=0 must be a whole number of at least 1"),
        ("task_attention", 1, "task_attention=1 must be True or False"),
        ("balance", "mean", "balance='mean' is not known; use one of sum, static"),
        ("balance", None, "balance=None is not known"),
        ("balance", "static:a=-1", "write static:<task>=<weight>"),
        ("task_sampling", "even", "task_sampling='even' is not one of proportional, balanced"),
        (
            "measure_conflict",
            -1,
            "measure_conflict=-1 must be a whole number of at least 0 (steps between measurements",
        ),
        ("loss", "hinge", "loss='hinge' is not known; use ce, focal:2, logit_adjusted:1"),
        ("loss", "focal:-1", "loss='focal:-1': '-1' is no number from 0 to 100"),
        ("loss", "ce:1", "loss='ce:1' is not known"),
        ("class_weights", "even", "class_weights='even' must be None, 'balanced'"),
        ("class_weights", {"action": {"run": 0.0}}, "must be None, 'balanced', or by task"),
        ("class_weights", {"action": {"run": "much"}}, "must be None, 'balanced', or by task"),
    ],
)
def test_setup_says_what_is_wrong(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Setup(**{field: value})


@pytest.mark.parametrize("option", [{"rand_augment": 1}, {"erasing": 0.5}])
def test_setup_refuses_augmentations_without_augment(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="these need augment=True"):
        Setup(augment=False, **option)


def test_setup_is_not_mixed_or_strongly_augmented_unless_asked() -> None:
    plain = Setup()
    assert (plain.rand_augment, plain.erasing, plain.mixup, plain.cutmix, plain.mix_regression) == (0, 0, 0, 0, False)


def test_setup_from_json_names_an_unknown_field() -> None:
    with pytest.raises(ValueError, match=r"unknown setup field\(s\) \['learning_rate'\]"):
        Setup.from_json({"learning_rate": 1.0})


def test_setup_rates_are_the_strategys_unless_given() -> None:
    assert Setup(strategy="linear").rates[0] == 0.0
    assert Setup(strategy="full", lr=1e-5).rates[0] == 1e-5
    assert Setup(strategy="full", lr=1e-5).rates[1] == Setup(strategy="full").rates[1]


def test_setup_takes_one_task_by_its_name() -> None:
    assert Setup(tasks="action").tasks == ("action",)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("label_smoothing", None, "label_smoothing=None must lie between 0 and 0.99"),
        ("warmup", None, "warmup=None must lie between 0 and 1"),
        ("lr", True, "lr=True must lie between 0 and 10"),
        ("augment", "no", "augment='no' must be True or False"),
        ("mix_regression", 1, "mix_regression=1 must be True or False"),
    ],
)
def test_setup_takes_no_none_or_truth_value_for_a_number(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Setup(**{field: value})

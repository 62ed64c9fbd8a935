"""Training passes with adapters: the base stays to the bit, promised zeros too, and little is trained and stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import compressor.passes  # noqa: F401  # fills the registry
from compressor.families import merged_weights, open_adapter
from compressor.passes import Pass
from compressor.passes.dense_sparse import DenseSparse
from compressor.passes.distill import Distill
from compressor.passes.factorize import Factorize
from compressor.passes.quantize import Quantize
from compressor.passes.sparsify import Sparsify
from compressor.ranker.cost import linear_weights
from compressor.ranker.forms import layer_linears
from compressor.registry import registered
from compressor.training import loop
from tests import tiny
from tests.families.adapter_folders import PEFT_PREFIX, write_adapter
from tests.laws.cases import CASES
from tests.passes.students import QUICK, applied, check_exact_resume, cut, score_rmse, supply_for

LOSSES: dict[str, Any] = {**QUICK, "losses": {"mse": 1}, "representations": {}}
LORA: dict[str, Any] = {"kind": "lora", "rank": 4}
RANDLORA: dict[str, Any] = {"kind": "randlora", "rank": 4}
KINDS = pytest.mark.parametrize("adapters", [LORA, RANDLORA], ids=["lora", "randlora"])


@pytest.fixture(scope="module")
def teacher():
    return tiny.build_ranker(seed=3)


@pytest.fixture(scope="module")
def student(teacher):
    return cut(teacher, [1])


def step_of(adapters: dict[str, Any], **settings: Any) -> Distill:
    return Distill.model_validate({**LOSSES, "epochs": 3, "adapters": adapters, **settings})


def trained(step: Pass, ranker, teacher, data, notes: dict[str, Any] | None = None):
    assert step.plan(ranker.spec) == ranker.spec
    supply = supply_for(step, data, teacher)
    result = step.apply(ranker, supply)
    if notes is not None:
        notes.update(supply.notes)
    return result


def changed(before, after) -> set[str]:
    assert before.weights.keys() == after.weights.keys()
    return {name for name, weight in before.weights.items() if not torch.equal(weight, after.weights[name])}


def matrices(spec, which: str = "") -> set[str]:
    return {f"{name}.weight" for name in layer_linears(spec) if which in name}


@KINDS
def test_the_base_stays_until_updates_are_merged(adapters, student, teacher, tiny_data, monkeypatch):
    bases, during = {name: weight.clone() for name, weight in student.weights.items()}, []
    one_step = loop._Run._one_step

    def watching(self: Any, lists: Any) -> Any:
        found = one_step(self, lists)
        during.append({name: one.clone() for name, one in self.module.state_dict().items() if name in bases})
        return found

    monkeypatch.setattr(loop._Run, "_one_step", watching)
    result = trained(step_of(adapters), student, teacher, tiny_data)
    assert len(during) > 5
    for state in (during[0], during[-1]):
        assert state.keys() == bases.keys()
        assert all(torch.equal(state[name], base) for name, base in bases.items())
    assert changed(student, result) == matrices(student.spec)
    assert score_rmse(result, teacher, tiny_data) < 0.5 * score_rmse(student, teacher, tiny_data)


@KINDS
def test_merged_scores_are_those_of_training(adapters, student, teacher, tiny_data, tiny_pairs, monkeypatch):
    last: list[Any] = []
    initialize = loop._Run.__post_init__

    def keeping(self: Any) -> None:
        initialize(self)
        last.append(self.module)

    monkeypatch.setattr(loop._Run, "__post_init__", keeping)
    result = trained(step_of(adapters), student, teacher, tiny_data)
    batch = tiny.batch_of(student.spec, [5, 17, 40, 9])
    with torch.no_grad():
        torch.testing.assert_close(result.module(**batch), last[0].eval()(**batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("adapters", "predicted"),
    [
        (LORA, (4 * 4 * 32 + 2 * 4 * 48)),  # four squares of 16, and 16 to 32 and back
        ({**LORA, "linears": "ffn"}, 2 * 4 * 48),
        ({**LORA, "linears": ["layers.*.attention.query"], "rank": 2}, 2 * 32),
        (RANDLORA, 6 * 4 * (4 + 16)),
        ({**RANDLORA, "rank": 5}, 6 * 4 * (5 + 16)),
        ({**LORA, "also": ["norms", "head"]}, 4 * 4 * 32 + 2 * 4 * 48 + 3 * 32 + 17 * 16 + 17),
        ({**LORA, "also": ["biases"]}, 4 * 4 * 32 + 2 * 4 * 48 + 5 * 16 + 32 + 17),
        (
            {**LORA, "rank": 8},
            4 * 16 * 16 + 2 * 8 * 48,
        ),  # an adapter of a square would be as large: it is trained itself
    ],
)
def test_as_many_parameters_are_trained_as_foretold(adapters, predicted, student, teacher, tiny_data):
    notes: dict[str, Any] = {}
    step = step_of(adapters, epochs=0.3)
    result = trained(step, student, teacher, tiny_data, notes)
    assert notes["trained_parameters"] == predicted
    names = step.adapters.adapted(student.spec) if step.adapters else {}
    assert notes["adapted_linears"] == len(names)
    beside = {name.rsplit(".", 1)[0] for name in changed(student, result)} - names.keys()
    if adapters.get("also") == ["norms", "head"]:
        assert beside == {
            "embeddings.norm",
            "layers.0.attention_norm",
            "layers.0.ffn_norm",
            "head.dense",
            "head.output",
        }
    elif adapters.get("also") == ["biases"]:
        assert beside == {"head.dense", "head.output"}
    elif adapters["rank"] == 8:
        assert beside == {f"layers.0.attention.{name}" for name in ("query", "key", "value", "output")}
    else:
        assert not beside


@pytest.mark.parametrize("adapters", [LORA, RANDLORA, {**LORA, "rank": 8}], ids=["lora", "randlora", "and_squares"])
def test_promised_zeros_stay_and_what_is_between_them_learns(adapters, teacher, student, tiny_data):
    step = Sparsify(method="magnitude", sparsity=0.6)
    sparse = applied(step, student)
    [promise] = step.promises(sparse)
    result = trained(step_of(adapters, epochs=6, ema=0.5), sparse, teacher, tiny_data)
    assert promise.check(result) is None
    for name in matrices(sparse.spec):
        assert torch.equal(result.weights[name] == 0, sparse.weights[name] == 0), name
    assert score_rmse(result, teacher, tiny_data) < 0.5 * score_rmse(sparse, teacher, tiny_data)


@pytest.mark.parametrize("scheme", ["int4_blocks", "int8_static"])
def test_behind_rounding_the_sum_is_rounded(scheme, teacher, student, tiny_data):
    settings: dict[str, Any] = {"n_pairs": 16} if scheme == "int8_static" else {"block_size": 128}
    rounded = applied(Quantize(scheme=scheme, **settings), student, tiny_data)
    result = trained(step_of(LORA), rounded, teacher, tiny_data)
    assert result.spec == rounded.spec
    assert changed(rounded, result) == matrices(rounded.spec)  # ranges of activations stay, too
    assert score_rmse(result, teacher, tiny_data) < 0.7 * score_rmse(rounded, teacher, tiny_data)


@pytest.mark.parametrize(
    ("shrink", "kinds"),
    [
        (Factorize(rank=4, linears=("layers.*.ffn.*",), method="svd", compensate="none"), {"up", "down"}),
        (DenseSparse(share=0.7, linears=("layers.*.ffn.*",), epochs=0, sweeps=2), {"atoms", "values"}),
    ],
    ids=["low_rank", "dense_sparse"],
)
def test_factors_are_trained_as_they_are(shrink, kinds, teacher, student, tiny_data):
    thin = applied(shrink, student, tiny_data)
    notes: dict[str, Any] = {}
    step = step_of(LORA)
    result = trained(step, thin, teacher, tiny_data, notes)
    factors = {f"layers.0.ffn.{name}.{kind}" for name in ("up", "down") for kind in kinds}
    assert changed(thin, result) == matrices(thin.spec, "attention") | factors
    size = sum(linear_weights(one) for name, one in layer_linears(thin.spec).items() if ".ffn." in name)
    assert notes["trained_parameters"] == 4 * 4 * 32 + size
    attention = trained(step_of({**LORA, "linears": "attention"}), thin, teacher, tiny_data)
    assert changed(thin, attention) == matrices(thin.spec, "attention")


@KINDS
@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "evaluate_every": 2, "dev_measure": "kendall_tau"}])
def test_a_killed_training_ends_as_an_unbroken_one(adapters, changes, student, teacher, tiny_data, monkeypatch):
    step = step_of({**adapters, "dropout": 0.2}, epochs=1.5, checkpoint_every_s=1e-9, **changes)
    check_exact_resume(step, student, teacher, tiny_data, monkeypatch, call=4)


@KINDS
def test_checkpoints_hold_what_is_trained_and_nothing_else(adapters, student, teacher, tiny_data):
    step = step_of(adapters, epochs=1, ema=0.9, evaluate_every=2)
    supply = supply_for(step, tiny_data, teacher)
    step.apply(student, supply)
    stored = load_file(supply.scratch / "checkpoint" / "state.safetensors")
    sizes = {name: tensor.numel() for name, tensor in stored.items()}
    kinds = {name.split(".")[0] for name in stored}
    assert kinds == {"module", "best", "average", "optimizer", "random"}
    for kind in kinds - {"random"}:
        assert all(".adapter.parts." in name for name in stored if name.startswith(kind)), kind
    weights = sum(size for name, size in sizes.items() if name.startswith("module."))
    moments = sum(size for name, size in sizes.items() if name.endswith(("exp_avg", "exp_avg_sq")))
    assert weights == supply.notes["trained_parameters"]
    assert moments == 2 * weights


def test_equal_seeds_give_equal_results_and_others_do_not(student, teacher, tiny_data):
    step = step_of({**RANDLORA, "bases": "sparse"}, epochs=0.5)
    one, same, other = (
        step.apply(student, replace(supply_for(step, tiny_data, teacher), seed=seed)) for seed in (1, 1, 2)
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_an_adapter_in_a_file_is_merged_alike(student, tiny_data, teacher, tmp_path, monkeypatch):
    """What training makes of its parts, and `merge_adapters` of the same parts as PEFT would write them."""
    last: list[Any] = []
    result_of = loop._Run.result

    def keeping(self: Any) -> Any:
        last.append(self.module)
        return result_of(self)

    monkeypatch.setattr(loop._Run, "result", keeping)
    adapters = {**RANDLORA, "linears": ["layers.*.attention.*", "layers.*.ffn.up"]}
    result = trained(step_of(adapters, epochs=0.5), student, teacher, tiny_data)
    stock = {"attention.query": "attention.self.query", "attention.key": "attention.self.key",
             "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
             "ffn.up": "intermediate.dense"}  # fmt: skip
    tensors: dict[str, torch.Tensor] = {}
    for name, theirs in stock.items():
        adapter = last[0].get_submodule(f"layers.0.{name}").adapter
        own = f"{PEFT_PREFIX}bert.encoder.layer.0.{theirs}.randlora_"
        tensors |= {f"{own}{kind}": part.detach().clone() for kind, part in adapter.parts.items()}
        bases = adapter._bases.like(adapter.parts["gamma"])
    tensors |= {f"base_model.randlora_{name.upper()}": base for name, base in bases.items()}
    config = {"peft_type": "RANDLORA", "r": 4, "randlora_alpha": 80, "bias": "none"}
    folder = write_adapter(tmp_path / "adapter", tensors, config)
    merged = merged_weights(open_adapter(folder), student.spec, student.weights)
    for name in changed(student, result):
        torch.testing.assert_close(merged[name], result.weights[name], atol=1e-7, rtol=0)
    assert changed(student, student.changed(weights=merged)) == changed(student, result)


@pytest.mark.parametrize("verb", ["finetune", "learn_thresholds", "learn_widths", "nest_widths"])
def test_other_passes_train_adapters_too(verb, tiny_data):
    teacher = tiny.build_ranker()
    active = {**CASES[verb].active, "adapters": LORA, "epochs": 1, "lists": {"list_size": 4}, "learning_rate": 1e-2}
    extra = {"losses": {"mse": 1}, "representations": {}} if verb != "finetune" else {}
    step = registered()[verb].model_validate({**active, **extra})
    assert isinstance(step, Pass)
    planned = step.plan(teacher.spec)
    supply = supply_for(step, tiny_data, teacher)
    result = step.apply(teacher, supply)
    assert supply.notes["trained_parameters"] == 2 * (4 * 4 * 32 + 2 * 4 * 48)
    if verb != "learn_widths":  # which cuts, and folds gates into what it keeps
        assert [layer.ffn_width for layer in planned.layers] == [layer.ffn_width for layer in result.spec.layers]
        touched = changed(teacher, result)
        ordered = {f"layers.{index}.ffn.up.bias" for index in (0, 1)} if verb == "nest_widths" else set()
        assert touched == matrices(teacher.spec) | ordered

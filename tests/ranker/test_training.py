"""The encoder trains: gradients exist, are finite whatever the padding, and are the same however they are computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.ranker import tokens
from compressor.ranker.encoder import Encoder
from compressor.ranker.spec import DropoutSpec, Int8Dynamic, Int8Rows, RankerSpec, WindowPattern
from compressor.ranker.tokens import TokenLayout
from tests.ranker.cases import SPECS
from tests.tiny import batch_of, build_ranker, lively_weights

LENGTHS = [1, 12, 30, 5]
WANTED = torch.tensor([1.0, -1.0, 2.0, 0.5])[:, None]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> RankerSpec:
    return SPECS[request.param]


def quiet(spec: RankerSpec) -> Encoder:
    """Return a training module without dropout."""
    return build_ranker(spec.changed(dropout=DropoutSpec())).trainable()


def loss_of(module: Encoder, batch: dict[str, Tensor]) -> Tensor:
    if not module.spec.exit_layers:
        return F.mse_loss(module(**batch).float()[:, :1], WANTED)
    trace = module.trace(**batch)
    return torch.stack([F.mse_loss(logits.float(), WANTED) for logits in (trace.logits, *trace.exits.values())]).sum()


def gradients(module: Encoder, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    module.zero_grad()
    loss_of(module, batch).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def int8(spec: RankerSpec) -> RankerSpec:
    """Return the spec with its layers' plain linears and its token table in int8."""
    data = spec.model_dump()
    for layer in data["layers"]:
        for part in ("query", "key", "value", "output"):
            layer["attention"][part]["precision"] = Int8Dynamic()
        for part in ("up", "down"):
            layer["ffn"][part]["precision"] = Int8Dynamic()
    data["embeddings"]["tokens"]["precision"] = Int8Rows()
    return RankerSpec.model_validate(data)


def test_every_weight_that_matters_has_a_finite_gradient(spec):
    found = gradients(quiet(spec), batch_of(spec, LENGTHS))
    for name, gradient in found.items():
        if ".token_rule." in name:  # a choice has no gradient
            assert gradient is None, name
            continue
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    still = {name for name, gradient in found.items() if gradient is not None and gradient.abs().max() < 1e-6}
    # A key's bias shifts all logits of a softmax alike; a first token that sees only itself has one logit.
    without_choice = ("key.bias", "key.weight", "query.bias", "query.weight")
    may_be_still = without_choice if spec == SPECS["causal_first"] else without_choice[:1]
    assert {name for name in still if not name.endswith(may_be_still)} == set()


def test_padding_changes_no_gradient(spec):
    module = quiet(spec)
    narrow = gradients(module, batch_of(spec, LENGTHS))
    wide = gradients(module, batch_of(spec, LENGTHS, columns=spec.max_length))
    for name, expected in narrow.items():
        torch.testing.assert_close(wide[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_rows_of_other_lengths_change_no_gradient(spec, monkeypatch):
    """Attention is computed for rows of like length apart."""
    module, batch = quiet(spec), batch_of(spec, [3, 34, 7, 2])
    groups = TokenLayout.of(batch["attention_mask"]).length_groups
    assert len(groups) > 1
    found, loss = gradients(module, batch), loss_of(module, batch)
    monkeypatch.setattr(tokens, "_WORTHWHILE", 0)
    torch.testing.assert_close(loss_of(module, batch), loss)
    for name, expected in gradients(module, batch).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("reach", [1, 3])
def test_windows_of_padding_poison_nothing(reach):
    """Padding may stand far from every real token; a softmax over no key at all would be NaN."""
    data = SPECS["window"].model_dump()
    for layer in data["layers"]:
        layer["attention"]["pattern"] = WindowPattern(reach=reach)
    spec = RankerSpec.model_validate(data)
    for name, gradient in gradients(quiet(spec), batch_of(spec, [1, 40, 2, 1])).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("name", ["bert", "modernbert", "low_rank", "similarity_mean"])
def test_loss_decreases(name):
    module = build_ranker(SPECS[name]).trainable()
    module.load_state_dict(lively_weights(SPECS[name], seed=5))
    batch = batch_of(SPECS[name], LENGTHS)
    wanted = WANTED / 4 if SPECS[name].output_name == "embedding" else WANTED
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.mse_loss(module(**batch)[:, :1], wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses


def test_int8_simulation_trains():
    spec = int8(SPECS["bert"])
    module = quiet(spec)
    batch = batch_of(spec, LENGTHS)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_dropout_is_on_in_training_and_off_in_scoring():
    ranker = build_ranker()
    batch = batch_of(ranker.spec, LENGTHS)
    module = ranker.trainable()
    torch.manual_seed(0)
    assert not torch.equal(module(**batch), module(**batch))
    module.eval()
    assert torch.equal(module(**batch), module(**batch))
    torch.testing.assert_close(module(**batch), ranker.module(**batch))


@pytest.mark.parametrize("place", ["hidden", "attention", "head"])
def test_each_dropout_share_acts_alone(place):
    spec = SPECS["bert"].changed(dropout=DropoutSpec.model_validate({place: 0.5}))
    module = build_ranker(spec).trainable()
    batch = batch_of(spec, LENGTHS)
    torch.manual_seed(0)
    assert not torch.equal(module(**batch), module(**batch))


def test_gradient_checkpointing_gives_equal_gradients(spec):
    module = build_ranker(spec).trainable()  # dropout on: the second forward pass must draw the same numbers
    batch = batch_of(spec, LENGTHS)
    torch.manual_seed(0)
    expected = gradients(module, batch)
    runs: list[int] = []
    module.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    module.gradient_checkpointing = True
    torch.manual_seed(0)
    found = gradients(module, batch)
    assert len(runs) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_bf16_autocast_trains(spec):
    module = quiet(spec)
    batch = batch_of(spec, LENGTHS)
    expected = gradients(module, batch)
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(module, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    rough = torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])
    exact = torch.cat([gradient.flatten() for gradient in expected.values() if gradient is not None])
    assert rough.isfinite().all()
    # Eight bits a product: the direction of the whole gradient stays, its single entries do not.
    assert float(F.cosine_similarity(rough, exact, dim=0)) > math.cos(math.radians(12))


@pytest.mark.gpu
def test_scores_on_a_gpu_are_the_scores_on_the_cpu(spec):
    batch = batch_of(spec, LENGTHS)
    module = quiet(spec).eval()
    with torch.inference_mode():
        expected = module(**batch)
        found = module.cuda()(**{name: tensor.cuda() for name, tensor in batch.items()})
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)

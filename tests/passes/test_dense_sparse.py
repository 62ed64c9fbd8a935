"""dense_sparse: bytes as promised, learned codes beat frozen ones, a killed run goes on, what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.algorithms.sparse_coding import as_atoms_and_codes
from compressor.errors import InputError
from compressor.passes import PlanError
from compressor.passes.dense_sparse import DenseSparse
from compressor.ranker.cost import macs, parameters
from compressor.ranker.forms import layer_linears
from compressor.ranker.linears import Linear
from compressor.ranker.spec import DenseSparseForm, LinearSpec
from compressor.ranker.store import load_ranker, save_ranker
from compressor.training.stand_ins import StraightThroughLinear
from tests import tiny
from tests.passes.students import QUICK, applied, check_exact_resume, distilled, score_rmse
from tests.ranker.cases import SPECS

LOSSES: dict[str, Any] = {"losses": {"mse": 1.0}, "representations": {}}


def step_of(**settings: Any) -> DenseSparse:
    return DenseSparse.model_validate({**QUICK, **LOSSES, "share": 0.5, "learning_rate": 3e-3, **settings})


@pytest.fixture(scope="module")
def whole():
    """A ranker of two layers, width 16 and 32 neurons."""
    return tiny.build_ranker(seed=3)


@pytest.mark.parametrize("share", [0.4, 0.8])
@pytest.mark.parametrize("blocks", [1, 2])
def test_no_more_bytes_are_stored_than_the_share(whole, tiny_data, share, blocks):
    small = applied(step_of(share=share, blocks=blocks, epochs=0, sweeps=2), whole, tiny_data)
    for name, linear in layer_linears(small.spec).items():
        assert isinstance(linear.form, DenseSparseForm)
        stored = [tensor for each, tensor in small.weights.items() if each.startswith(f"{name}.") and tensor.dim() == 3]
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in stored)
        assert len(stored) == 3
        assert n_bytes == linear.form.stored_bytes(linear.inputs, linear.outputs)
        # One atom more would have been too many.
        assert share - 0.2 < n_bytes / (4 * linear.inputs * linear.outputs) <= share


def test_floats_are_counted_as_stored_and_products_as_computed(whole, tiny_data):
    small = applied(step_of(epochs=0, sweeps=0), whole, tiny_data)
    n_floats = sum(tensor.numel() for tensor in small.weights.values() if tensor.is_floating_point())
    assert parameters(small.spec) == n_floats < parameters(whole.spec)
    assert macs(small.spec, 20) == macs(whole.spec, 20)


def test_codes_are_learned_or_frozen(whole, tiny_data):
    """From the same coarse start: values and atoms learn in both, the choice of atoms in one.

    Which of the two comes nearer in so few steps depends on the CPU's rounding; for one matrix it does not, see below.
    """
    coarse: dict[str, Any] = {"share": 0.6, "nonzeros": 0.5, "sweeps": 0}
    start = applied(step_of(epochs=0, **coarse), whole, tiny_data)
    quick: dict[str, Any] = {"learning_rate": 2e-2, "epochs": 10}
    frozen = distilled(start, whole, tiny_data, **LOSSES, **quick)
    learned = applied(step_of(**coarse, **quick), whole, tiny_data)
    assert learned.spec == start.spec
    begin, before, after = (score_rmse(one, whole, tiny_data) for one in (start, frozen, learned))
    assert max(before, after) < begin
    names = [name for name in start.weights if name.endswith(".indices")]
    assert all(torch.equal(frozen.weights[name], start.weights[name]) for name in names)
    assert not any(torch.equal(learned.weights[name], start.weights[name]) for name in names)


@pytest.mark.parametrize("seed", range(3))
def test_learned_codes_come_nearer_to_a_matrix(seed):
    """The same for one matrix and plain least squares, where nothing else can make the difference."""
    form = DenseSparseForm(codes="rows", atoms=12, nonzeros=3)
    wanted = torch.randn(40, 10, generator=torch.Generator().manual_seed(seed))
    stored, missed = as_atoms_and_codes(wanted, form, sweeps=0, seed=seed)
    n_steps, errors = 300, []
    for learns in (False, True):
        part = Linear(LinearSpec(inputs=10, outputs=40, form=form, bias=False))
        part.load_state_dict(stored)
        part = StraightThroughLinear(part, n_steps, frozen_share=0.2) if learns else part
        optimizer = torch.optim.AdamW(part.parameters(), lr=3e-3, weight_decay=0)
        for step in range(n_steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / n_steps)
            optimizer.zero_grad()
            ((part.matrix() - wanted).square().sum() / wanted.square().sum()).backward()
            optimizer.step()
            if isinstance(part, StraightThroughLinear):
                part.after_step()
        errors.append(float((part.matrix() - wanted).detach().square().sum() / wanted.square().sum()))
    assert errors[1] < 0.95 * errors[0] < missed


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_killed_run_goes_on_to_the_same_bits(whole, tiny_data, monkeypatch, ema):
    step = step_of(epochs=4, sweeps=1, frozen_share=0.5, checkpoint_every_s=1e-9, ema=ema)
    check_exact_resume(step, whole, whole, tiny_data, monkeypatch, call=6)


def test_frozen_codes_are_averaged_without_their_indices(whole, tiny_data):
    start = applied(step_of(epochs=0, sweeps=1), whole, tiny_data)
    found = distilled(start, whole, tiny_data, **LOSSES, ema=0.5, epochs=2)
    assert {name: tensor.dtype for name, tensor in found.weights.items()} == {
        name: tensor.dtype for name, tensor in start.weights.items()
    }


def straight_through_linear(frozen_share: float = 0.5) -> StraightThroughLinear:
    torch.manual_seed(3)
    form = DenseSparseForm(codes="rows", atoms=5, nonzeros=2)
    linear = Linear(LinearSpec(inputs=6, outputs=8, form=form))
    for parameter in linear.parameters():
        torch.nn.init.normal_(parameter)
    linear.indices.copy_(torch.rand(1, 8, 5).argsort(dim=2)[..., :2].sort(dim=2).values)
    return StraightThroughLinear(linear, 4, frozen_share=frozen_share)


def test_gradients_reach_codes_that_are_not_used_until_the_choice_is_frozen():
    part = straight_through_linear()
    used = part.latent != 0
    assert used.sum() == 16
    part.matrix().square().sum().backward()
    assert part.latent.grad is not None
    expected = 2 * part.matrix().detach()[None] @ part.atoms.transpose(1, 2)  # as if all were used
    torch.testing.assert_close(part.latent.grad, expected.detach())
    with torch.no_grad():
        part.latent.add_(0.01 * torch.randn(part.latent.shape))
    before = part.matrix().detach()
    assert (part.latent != 0).all()
    part.after_step()
    assert (part.latent != 0).all(), "three steps are left, of which the last two are frozen"
    part.after_step()
    assert (part.latent != 0).sum() == 16
    torch.testing.assert_close(part.matrix(), before)
    with torch.no_grad():
        part.latent.add_(10.0)
    part.after_step()
    assert torch.equal(part.latent != 0, part.support)


@pytest.mark.parametrize("frozen_share", [0.0, 0.5])
def test_what_settles_stands_for_the_same_matrix(frozen_share):
    part = straight_through_linear(frozen_share)
    with torch.no_grad():
        part.latent.add_(0.3 * torch.randn(part.latent.shape))
    for _ in range(3):
        part.after_step()
    plain = Linear(part.spec)
    plain.load_state_dict(part.settled(part.state_dict()))
    torch.testing.assert_close(plain.matrix(), part.matrix())


def test_broken_codes_are_refused_when_loaded(whole, tiny_data, tmp_path):
    from safetensors.torch import load_file, save_file

    small = applied(step_of(epochs=0, sweeps=0), whole, tiny_data)
    save_ranker(small, tmp_path / "stage")
    weights = load_file(tmp_path / "stage" / "model.safetensors")
    name = "layers.1.ffn.up.indices"
    atoms = weights["layers.1.ffn.up.atoms"].shape[1]
    for broken, message in (
        (torch.full_like(weights[name], atoms), f"expected 0 to {atoms - 1}, found {atoms} to {atoms}"),
        (weights[name].float(), "expected uint8, found torch.float32"),
        (weights[name][:, :-1], "expected"),
    ):
        save_file({**weights, name: broken.contiguous()}, tmp_path / "stage" / "model.safetensors")
        with pytest.raises(InputError, match=message):
            load_ranker(tmp_path / "stage")


@pytest.mark.parametrize(
    ("settings", "found", "setting"),
    [
        ({"share": 0.01}, "no room for two atoms", "share"),
        ({"blocks": 3}, "3 blocks for layers.0.attention.query", "blocks"),
        ({"linears": ["layers.9.*"]}, "names no linear", "linears"),
    ],
)
def test_what_cannot_be_is_refused(whole, settings, found, setting):
    with pytest.raises(PlanError, match=found) as caught:
        step_of(**settings).plan(whole.spec)
    assert caught.value.setting == setting


def test_what_is_factorized_is_refused():
    with pytest.raises(PlanError, match="all of them factorized already"):
        step_of().plan(SPECS["low_rank"])

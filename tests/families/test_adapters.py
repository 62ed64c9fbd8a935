"""Adapters merged into rankers of every family score as the stock models do with the adapters beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.families import load_teacher, merged_weights, open_adapter
from tests.families.adapter_folders import (
    PEFT_PREFIX,
    Drawn,
    Forward,
    adapted,
    linears,
    lora_config,
    low_rank,
    n_bases,
    random_bases,
    with_magnitudes,
    with_parameters,
    write_adapter,
)
from tests.families.stock_models import build_stock, ragged_inputs

TOLERANCE = 1e-5
FAMILIES = ("bert", "electra_projected", "roberta", "distilbert", "modernbert_first", "modernbert_biases")


@pytest.fixture(scope="module", params=FAMILIES)
def stock(request, tmp_path_factory):
    return build_stock(request.param, tmp_path_factory.mktemp(request.param))


def assert_merges(stock, folder, forwards=None, values=None):
    """Compare the merged ranker with the stock model that has its adapter beside it, and with the base."""
    ranker = load_teacher(str(stock.folder), folder)
    inputs = ragged_inputs(ranker.spec.pad_id, segments=ranker.spec.embeddings.segments is not None)
    base = stock.logits(inputs)
    with adapted(stock.model, forwards or {}), with_parameters(stock.model, values or {}):
        expected = stock.logits(inputs)
    merged = ranker.changed(weights=merged_weights(open_adapter(folder), ranker.spec, ranker.weights))
    with torch.inference_mode():
        found = merged.module(**inputs).numpy()
        exact = merged.module.double()(**inputs).numpy()
    assert np.abs(expected - base).max() > 1e-2, "an adapter that changes nothing shows nothing"
    # Large updates magnify the rounding of fp32, on each kind of CPU in its own way: by as much as the ranker shows.
    np.testing.assert_allclose(found, expected, atol=max(TOLERANCE, 4 * np.abs(found - exact).max()), rtol=0)


def lora_of(modules, draw, scaling, rank=3):
    """Return PEFT's tensors of LoRA on modules, and their forwards."""
    tensors: dict[str, Tensor] = {}
    forwards: dict[str, Forward] = {}
    for name, module in modules.items():
        down, up = draw(rank, module.in_features), draw(module.out_features, rank)
        tensors |= {f"{PEFT_PREFIX}{name}.lora_A.weight": down, f"{PEFT_PREFIX}{name}.lora_B.weight": up}
        forwards[name] = low_rank(down, up, scaling)
    return tensors, forwards


def new_head(model, draw):
    """Return other values for all that a model scores with; PEFT saves them by the names of the modules."""
    head = {n: p for n, p in model.named_parameters() if "classifier" in n or n.startswith("head.")}
    values = {name: parameter.data + draw(*parameter.shape) for name, parameter in head.items()}
    return {f"{PEFT_PREFIX}{name}": value for name, value in values.items()}, values


def test_lora_on_every_matrix_and_a_new_head(stock, tmp_path):
    draw = Drawn()
    tensors, forwards = lora_of(linears(stock.model), draw, scaling=2.0)
    head, values = new_head(stock.model, draw)
    config = lora_config(target_modules=sorted({name.split(".")[-1] for name in forwards}),
                         modules_to_save=["classifier", "score", "head.dense", "head.norm"])  # fmt: skip
    assert_merges(stock, write_adapter(tmp_path, {**tensors, **head}, config), forwards, values)


def test_ranks_and_alphas_by_pattern(stock_bert, tmp_path):
    draw, model = Drawn(), stock_bert.model
    one = {n: m for n, m in linears(model, "key").items() if ".1." in n}
    rest = {n: m for n, m in linears(model, "key", "value").items() if n not in one}
    tensors, forwards = lora_of(rest, draw, scaling=6 / 3)
    wider, their = lora_of(one, draw, scaling=10 / 5, rank=5)
    patterns = {"rank_pattern": {"layer.1.attention.self.key": 5}, "alpha_pattern": {r"layer\.1\..*\.key": 10}}
    write_adapter(tmp_path, {**tensors, **wider}, lora_config(target_modules=["key", "value"], **patterns))
    assert_merges(stock_bert, tmp_path, {**forwards, **their})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_stabilized_scaling_and_half_precision(stock_bert, tmp_path, dtype):
    tensors, _ = lora_of(linears(stock_bert.model, "query"), Drawn(), 1)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    forwards = {}
    for name in linears(stock_bert.model, "query"):
        down, up = (tensors[f"{PEFT_PREFIX}{name}.lora_{side}.weight"].float() for side in "AB")
        forwards[name] = low_rank(down, up, scaling=6 / math.sqrt(3))
    # PEFT switches fan_in_fan_out off for linear layers, whatever the file says.
    write_adapter(tmp_path, tensors, lora_config(use_rslora=True, fan_in_fan_out=True, target_modules=["query"]))
    assert_merges(stock_bert, tmp_path, forwards)


@pytest.mark.parametrize("end", ["", ".weight"])
def test_dora_rescales_rows_and_leaves_biases(stock_bert, tmp_path, end):
    draw, modules = Drawn(), linears(stock_bert.model, "query", "dense")
    tensors: dict[str, Tensor] = {}
    forwards: dict[str, Forward] = {}
    for name, module in modules.items():
        down, up = draw(3, module.in_features), draw(module.out_features, 3)
        magnitude = module.weight.norm(dim=1).detach() * (1 + draw(module.out_features))
        own = f"{PEFT_PREFIX}{name}.lora_"
        tensors |= {f"{own}A.weight": down, f"{own}B.weight": up, f"{own}magnitude_vector{end}": magnitude}
        forwards[name] = with_magnitudes(down, up, 2.0, magnitude)
    write_adapter(tmp_path, tensors, lora_config(use_dora=True))
    assert_merges(stock_bert, tmp_path, forwards)


def test_dora_on_stacked_projections(tmp_path_factory, tmp_path):
    stock = build_stock("modernbert_first", tmp_path_factory.mktemp("modernbert"))
    draw = Drawn()
    tensors: dict[str, Tensor] = {}
    forwards: dict[str, Forward] = {}
    for name, module in linears(stock.model, "Wqkv", "Wi").items():
        down, up, magnitude = draw(3, module.in_features), draw(module.out_features, 3), draw(module.out_features) + 1
        own = f"{PEFT_PREFIX}{name}.lora_"
        tensors |= {f"{own}A.weight": down, f"{own}B.weight": up, f"{own}magnitude_vector": magnitude}
        forwards[name] = with_magnitudes(down, up, 2.0, magnitude)
    assert_merges(stock, write_adapter(tmp_path, tensors, lora_config(use_dora=True)), forwards)


def test_a_table_and_a_bias_of_the_update(stock_bert, tmp_path):
    draw, model = Drawn(), stock_bert.model
    table = "bert.embeddings.word_embeddings"
    down, up = draw(3, model.get_submodule(table).num_embeddings), draw(16, 3)
    tensors, forwards = lora_of(linears(model, "value"), draw, scaling=2.0)
    biases = {name: draw(16) for name in forwards}
    tensors |= {f"{PEFT_PREFIX}{name}.lora_B.bias": bias for name, bias in biases.items()}
    tensors |= {f"{PEFT_PREFIX}{table}.lora_embedding_A": down, f"{PEFT_PREFIX}{table}.lora_embedding_B": up}

    def shifted_by(forward: Forward, bias: Tensor) -> Forward:
        return lambda module, x, y: forward(module, x, y) + 2.0 * bias

    shifted = {name: shifted_by(forward, biases[name]) for name, forward in forwards.items()}
    shifted[table] = lambda module, ids, y: y + 2.0 * torch.nn.functional.embedding(ids, down.T) @ up.T
    config = lora_config(target_modules=["value", "word_embeddings"], lora_bias=True)
    assert_merges(stock_bert, write_adapter(tmp_path, tensors, config), shifted)


@pytest.mark.parametrize("which", ["all", "lora_only"])
def test_trained_biases_take_the_place_of_the_base(stock_bert, tmp_path, which):
    draw, model = Drawn(), stock_bert.model
    tensors, forwards = lora_of(linears(model, "query"), draw, scaling=2.0)
    names = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    if which == "lora_only":
        names = [name for name in names if ".query." in name]
    values = {name: model.get_parameter(name).data + draw(*model.get_parameter(name).shape) for name in names}
    wrapped = {name: name.replace(".query.", ".query.base_layer.") for name in names}
    tensors |= {f"{PEFT_PREFIX}{wrapped[name]}": value for name, value in values.items()}
    write_adapter(tmp_path, tensors, lora_config(bias=which, target_modules=["query"]))
    assert_merges(stock_bert, tmp_path, forwards, values)


def test_names_of_a_bare_encoder(stock_bert, tmp_path):
    tensors, forwards = lora_of(linears(stock_bert.model, "query"), Drawn(), scaling=2.0)
    bare = {name.replace("bert.", ""): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    write_adapter(tmp_path, bare, lora_config(target_modules=["query"], bias="none"))
    assert_merges(stock_bert, tmp_path, forwards)


def test_what_no_score_depends_on_is_left_out(tmp_path_factory, tmp_path):
    stock = build_stock("roberta", tmp_path_factory.mktemp("roberta"))
    tensors, forwards = lora_of(linears(stock.model, "query"), Drawn(), scaling=2.0)
    bare = {name.replace("roberta.", ""): tensor for name, tensor in tensors.items()}
    bare |= {f"{PEFT_PREFIX}pooler.dense.lora_{side}.weight": torch.ones(shape)
             for side, shape in (("A", (3, 16)), ("B", (16, 3)))}  # fmt: skip
    write_adapter(tmp_path, bare, lora_config())
    assert_merges(stock, tmp_path, forwards)


RANDLORA = {"peft_type": "RANDLORA", "r": 3, "randlora_alpha": 60, "projection_prng_key": 5, "bias": "none"}


def scales(modules, draw, rank=3):
    return {
        name: (draw(rank, n_bases(module, rank)), draw(n_bases(module, rank), min(module.weight.shape), scale=0.1))
        for name, module in modules.items()
    }


@pytest.mark.parametrize("where", ["shared", "by_module"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_randlora_with_its_bases(stock_bert, tmp_path, where, dtype):
    draw = Drawn()
    modules = linears(stock_bert.model, "query", "dense")  # square, wide and tall ones
    assert {module.weight.shape for module in modules.values()} == {(16, 16), (40, 16), (16, 40)}
    a, b = draw(3, 1, 16, scale=1.0).to(dtype), draw(40, 6, 3, scale=1.0).to(dtype)
    tensors, forwards = {"base_model.randlora_A": a, "base_model.randlora_B": b}, {}
    for name, (lambdas, gamma) in scales(modules, draw).items():
        own = f"{PEFT_PREFIX}{name}.randlora_"
        tensors |= {f"{own}lambda": lambdas, f"{own}gamma": gamma}
        if where == "by_module":
            tensors |= {f"{own}A": a.clone(), f"{own}B": b.clone()}
        forwards[name] = random_bases(a.float(), b.float(), lambdas, gamma, 60 / 3)
    if where == "by_module":
        del tensors["base_model.randlora_A"], tensors["base_model.randlora_B"]
    assert_merges(stock_bert, write_adapter(tmp_path, tensors, RANDLORA), forwards)


# The sides are the most outputs and the most inputs of all targets, though no matrix is that large on both.
@pytest.mark.parametrize(("targets", "smaller", "larger"), [(["query"], 16, 16), (["query", "dense"], 40, 40)])
@pytest.mark.parametrize("kind", ["sparse", "very_sparse"])
def test_ternary_bases_of_randlora_are_drawn_again(stock_bert, tmp_path, kind, targets, smaller, larger):
    # As PEFT draws them: uniform numbers, cut at 1 / (2 s) on both sides, divided by their standard deviation.
    s, generator = (3 if kind == "sparse" else math.sqrt(smaller)), torch.Generator().manual_seed(5)
    bases = []
    for shape in ((3, 1, smaller), (larger, math.ceil(smaller / 3), 3)):
        uniform = torch.rand(shape, generator=generator)
        base = torch.zeros(uniform.shape)
        base[uniform < 1 / (2 * s)] = -1
        base[uniform > 1 - 1 / (2 * s)] = 1
        bases.append(base / base.std())
    tensors: dict[str, Tensor] = {}
    forwards: dict[str, Forward] = {}
    for name, (lambdas, gamma) in scales(linears(stock_bert.model, *targets), Drawn()).items():
        own = f"{PEFT_PREFIX}{name}.randlora_"
        tensors |= {f"{own}lambda": lambdas, f"{own}gamma": gamma}
        forwards[name] = random_bases(bases[0], bases[1], lambdas, gamma, scaling=60 / 3)
    write_adapter(tmp_path, tensors, {**RANDLORA, kind: True, "save_projection": False})
    assert_merges(stock_bert, tmp_path, forwards)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_shira(stock_bert, tmp_path, dtype):
    draw = Drawn()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    for name, module in linears(stock_bert.model, "value").items():
        places = torch.randperm(256, generator=draw.generator)[:20]
        indices, differences = torch.stack([places // 16, places % 16]), draw(20, scale=2.0)
        own = f"{PEFT_PREFIX}{name}.shira_"
        tensors |= {f"{own}weight": differences, f"{own}indices": indices.to(dtype)}
        weight = module.weight.data.clone()
        weight[indices[0], indices[1]] += differences
        values[f"{name}.weight"] = weight
    write_adapter(tmp_path, tensors, {"peft_type": "SHIRA", "r": 1, "target_modules": ["value"]})
    assert_merges(stock_bert, tmp_path, values=values)


def test_sparse_differences_of_matrices_norms_and_biases_and_a_whole_head(stock, tmp_path):
    draw = Drawn()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    head = stock.model.classifier if hasattr(stock.model.classifier, "weight") else stock.model.classifier.out_proj
    names = {id(parameter): name for name, parameter in stock.model.named_parameters()}
    for name, parameter in stock.model.named_parameters():
        if ".1." in name:
            difference = draw(*parameter.shape, scale=2.0)
            difference[draw(*parameter.shape) < 0.3] = 0
            sparse = difference.to_sparse().coalesce()
            tensors |= {f"{name}.indices": sparse.indices(), f"{name}.values": sparse.values()}
            values[name] = parameter.data + difference
    name = names[id(head.weight)]
    tensors[name] = values[name] = draw(*head.weight.shape)
    assert_merges(stock, write_adapter(tmp_path, tensors), values=values)


def shift_of(alpha: tuple[Tensor, Tensor], vector: Tensor) -> Forward:
    """AdapterBias: the token's weight, linear in what the matrix reads, times one vector."""
    return lambda module, x, y: y + torch.nn.functional.linear(x, *alpha) * vector


FEED_FORWARDS = {"bert": "bert.encoder.layer.{}.output.dense", "distilbert": "distilbert.transformer.layer.{}.ffn.lin2"}


@pytest.mark.parametrize("family", FEED_FORWARDS)
@pytest.mark.parametrize("shared", [False, True])
def test_adapter_bias(stock_bert, tmp_path_factory, tmp_path, family, shared):
    stock = stock_bert if family == "bert" else build_stock(family, tmp_path_factory.mktemp(family))
    draw = Drawn()
    tensors: dict[str, Tensor] = {}
    forwards: dict[str, Forward] = {}
    alpha, constant = draw(1, 40), draw(1)
    for index in range(3):
        module = FEED_FORWARDS[family].format(index)
        parent = module.rpartition(".")[0]
        vector = draw(16, scale=1.0)
        own = (alpha, constant) if shared else (draw(1, 40), draw(1))
        tensors[f"{parent}.adapter_vector"] = vector
        if not shared:
            tensors |= {f"{parent}.adapter_alpha.weight": own[0], f"{parent}.adapter_alpha.bias": own[1]}
        forwards[module] = shift_of(own, vector)
    if shared:
        holder = FEED_FORWARDS[family].split(".layer")[0]
        tensors |= {f"{holder}.adapter_alpha.weight": alpha, f"{holder}.adapter_alpha.bias": constant}
    norm = "bert.encoder.layer.0.output.LayerNorm.weight"
    values = {norm: draw(16) + 1} if family == "bert" else {}  # it trains norms along
    assert_merges(stock, write_adapter(tmp_path, {**tensors, **values}), forwards, values)

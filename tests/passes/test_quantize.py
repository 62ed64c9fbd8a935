"""`quantize`: schemes, what is kept, what is refused, and what comes out on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError

from compressor.algorithms.quantization import quantized
from compressor.errors import RunError
from compressor.export import export_folder, write_graph
from compressor.export.rounding import packed_blocks
from compressor.passes import PlanError
from compressor.passes.keep_tokens import KeepTokens
from compressor.passes.quantize import Quantize
from compressor.ranker.cost import linears_of, tables_of
from compressor.ranker.linears import Linear
from compressor.ranker.quantizers import block_activations, uint8_activations, weight_blocks
from compressor.ranker.spec import (
    BFloat16,
    Float16,
    Int4Blocks,
    Int8Blocks,
    Int8Dynamic,
    Int8Static,
    LinearPrecision,
    LinearSpec,
)
from compressor.runtime.ranker import OnnxRanker
from tests.laws.test_laws import supply_for
from tests.tiny import tiny_spec

SCHEMES = ["int8_dynamic", "int8_static", "int8_blocks", "int4_blocks", "fp16", "bf16"]
PRECISIONS = [Int8Dynamic(), Int8Static(), Int8Blocks(), Int4Blocks(), Float16(), BFloat16()]


def applied(ranker, data, **settings):
    step = Quantize.model_validate(settings)
    result = step.apply(ranker, supply_for(step, data, ranker))
    assert result.spec == step.plan(ranker.spec)
    return result


def kinds(spec):
    return {name: linear.precision.kind for name, linear in linears_of(spec)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_rounds_all_but_the_head(scheme, tiny_ranker, tiny_data):
    found = applied(tiny_ranker, tiny_data, scheme=scheme)
    assert Counter(kinds(found.spec).values()) == {scheme: 12, "fp32": 2}
    assert kinds(found.spec)["head.dense"] == "fp32"
    table = {"fp16": "fp16", "bf16": "bf16"}.get(scheme, "int8_rows")
    assert {part.precision.kind for _, part in tables_of(found.spec)} == {table}
    ranges = [name for name in found.weights if name.endswith(".input_ranges")]
    assert len(ranges) == (12 if scheme == "int8_static" else 0)


def test_ranges_behind_a_token_rule_are_of_the_tokens_that_are_left(tiny_ranker, tiny_data):
    twice = {name: f"{text} {text}" for name, text in tiny_data.documents.items()}
    data = replace(tiny_data, documents=twice)
    rule = KeepTokens.model_validate({"layers": {0: 0.3}})
    kept = rule.apply(tiny_ranker, supply_for(rule, data, tiny_ranker))
    whole, found = (applied(ranker, data, scheme="int8_static") for ranker in (tiny_ranker, kept))
    below, above = (f"layers.{part}.input_ranges" for part in ("0.ffn.down", "1.attention.key"))
    torch.testing.assert_close(found.weights[below], whole.weights[below])
    assert not torch.equal(found.weights[above], whole.weights[above])
    assert found.spec.rule_layers == (0,)
    assert np.isfinite(found.score(data.texts(data.pairs()))).all()


def test_tables_stay_where_they_are_not_asked_for(tiny_ranker, tiny_data):
    found = applied(tiny_ranker, tiny_data, scheme="int4_blocks", embeddings=False)
    assert {part.precision.kind for _, part in tables_of(found.spec)} == {"fp32"}


@pytest.mark.parametrize(("scheme", "size"), [("int8_dynamic", 64), ("int4_blocks", None)])
def test_the_token_table_alone_takes_4_bits(scheme, size, tiny_ranker, tiny_data):
    found = applied(tiny_ranker, tiny_data, scheme=scheme, embeddings="int4", block_size=size)
    tables = {name: part.precision for name, part in tables_of(found.spec)}
    assert tables.pop("embeddings.tokens") == Int4Blocks(block_size=size or 32)
    assert {precision.kind for precision in tables.values()} == {"int8_rows"}


def test_kept_linears_are_named_in_three_ways(tiny_ranker, tiny_data):
    keep = [-1, "layers.0.ffn.*", "layers.0.attention.query"]
    found = kinds(applied(tiny_ranker, tiny_data, scheme="int8_static", keep_fp32=keep).spec)
    assert {name for name, kind in found.items() if kind != "fp32"} == {
        f"layers.0.attention.{part}" for part in ("key", "value", "output")
    }


@pytest.mark.parametrize(
    ("entry", "found", "allowed"),
    [
        ("layers.0.ffn.dwn", "no linear is called", "patterns of layers.0"),
        (2, "layer 2", "-2 to 1"),
        ("head.*", "no linear is called", "layers.1.ffn.down"),
        ("*", "all linears", "some of them"),
    ],
)
def test_what_cannot_be_kept_is_refused(entry, found, allowed):
    with pytest.raises(PlanError) as refused:
        Quantize(keep_fp32=(entry,)).plan(tiny_spec())
    assert found in refused.value.found
    assert allowed in refused.value.allowed
    assert refused.value.setting == "keep_fp32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scheme": "int8_dynamic", "observer": "entropy"},
            "observer is a setting of int8_static, not of int8_dynamic",
        ),
        ({"scheme": "fp16", "n_pairs": 8}, "n_pairs is a setting of int8_static"),
        ({"scheme": "int8_static", "block_size": 32}, "block_size is a setting of int8_blocks and int4_blocks"),
        ({"scheme": "int4_blocks", "reduce_range": True}, "reduce_range is a setting of int8_dynamic and int8_static"),
        ({"scheme": "int8_static", "percentile": 99.0}, "percentile belongs to observer: percentile"),
        ({"scheme": "int8_static", "observer": "percentile", "percentile": 20}, "greater than 50"),
        ({"scheme": "fp16", "embeddings": "int4"}, "embeddings: int4 belongs to schemes of whole numbers, not to fp16"),
        ({"scheme": "none", "keep_fp32": [0]}, "scheme: none has none"),
        ({"scheme": "int4_blocks", "block_size": 48}, "Input should be 32, 64 or 128"),
    ],
)
def test_settings_of_other_schemes_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Quantize.model_validate(settings)


def test_only_fixed_ranges_need_calibration():
    assert {scheme: set(Quantize(scheme=scheme).needs()) for scheme in SCHEMES} == {
        scheme: {"calibration"} if scheme == "int8_static" else set() for scheme in SCHEMES
    }


def test_who_has_no_calibration_data_hears_which_scheme_needs_none():
    assert Quantize().without_data.startswith("scheme: int8_dynamic")
    assert not Quantize(scheme="int4_blocks", rounding="gptq").without_data, "weights are fitted with any scheme"


def test_each_linear_may_have_a_precision_of_its_own(tiny_ranker, tiny_pairs, tmp_path):
    names = [name for name, _ in linears_of(tiny_ranker.spec) if name.startswith("layers.")]
    four: list[LinearPrecision] = [Int8Dynamic(), Int4Blocks(), Int8Static(reduce_range=True), Int8Blocks()]
    chosen = dict(zip(names, four * 3, strict=True))
    ranges = {name: torch.tensor([[-3.0, 3.0]]) for name, one in chosen.items() if isinstance(one, Int8Static)}
    found = quantized(tiny_ranker, chosen, None, ranges)
    assert {name: linear.precision for name, linear in linears_of(found.spec) if name in chosen} == chosen
    report = export_folder(found, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    assert report.manifest["precision"]["linears"] == {
        "int8_dynamic": 3, "int4_blocks": 3, "int8_static": 3, "int8_blocks": 3, "fp32": 2,
    }  # fmt: skip
    with pytest.raises(RunError, match=r"input_ranges: missing, expected \[1, 2\]"):
        quantized(tiny_ranker, chosen)
    with pytest.raises(ValueError, match=r"no linears to round: head\.output"):
        quantized(tiny_ranker, {"head.output": Int8Dynamic()})


@pytest.mark.parametrize("scheme", ["int8_dynamic", "int4_blocks"])
def test_the_head_is_rounded_where_that_is_asked_for(tiny_ranker, scheme):
    asked, not_asked = (
        dict(linears_of(Quantize(scheme=scheme, head=head).plan(tiny_ranker.spec))) for head in (True, False)
    )
    assert asked["head.dense"].precision == asked["layers.0.ffn.up"].precision
    assert asked["head.output"].precision.kind == not_asked["head.dense"].precision.kind == "fp32"
    with pytest.raises(ValidationError, match="head belongs to schemes of whole numbers, not to fp16"):
        Quantize(scheme="fp16", head=True)


def test_half_precisions_do_not_mix_within_a_layer(tiny_ranker):
    with pytest.raises(ValidationError, match="fp16 and bf16 do not go together within a layer"):
        quantized(tiny_ranker, {"layers.0.ffn.up": Float16(), "layers.0.ffn.down": BFloat16()})


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda one: one.kind)
def test_batch_invariance_is_what_the_precision_says(precision):
    module = Linear(LinearSpec(inputs=40, outputs=6, precision=precision)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    if isinstance(precision, Int8Static):
        module.input_ranges.copy_(torch.tensor([[-3.0, 3.0]]))
    values = torch.randn(5, 40, generator=generator)
    mates = torch.cat([values, 9 * torch.randn(3, 40, generator=generator)])
    shift = float((module(values) - module(mates)[:5]).abs().max())
    assert (shift < 1e-5) == precision.is_batch_invariant, shift


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda one: one.kind)
def test_gradients_pass_straight_through_every_precision(precision):
    module = Linear(LinearSpec(inputs=4, outputs=3, precision=precision))
    for tensor in module.state_dict().values():
        tensor.copy_(torch.ones(tensor.shape))
    inputs = torch.ones(2, 4, requires_grad=True)
    module(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, torch.full((2, 4), 3.0))
    torch.testing.assert_close(module.weight.grad, torch.full((3, 4), 2.0))
    assert [name for name, _ in module.named_parameters()] == ["weight", "bias"], "ranges are no parameters"


def test_fixed_ranges_cut_off_what_lies_outside():
    values = torch.tensor([[-9.0, -1.0, 0.0, 0.5, 1.0, 99.0]])
    found = uint8_activations(values, torch.tensor(-1.0), torch.tensor(1.0))
    torch.testing.assert_close(found, torch.tensor([[-1.0, -1.0, 0.0, 0.5, 1.0, 1.0]]), atol=2 / 255, rtol=0)
    assert found[0, 2] == 0, "zero is exact"


def test_blocks_of_4_bits_are_packed_by_hand():
    weight = torch.zeros(1, 34)
    weight[0, :4] = torch.tensor([-8.0, 7.0, 1.0, -3.4])  # the largest magnitude is negative: scale 1
    weight[0, 32:] = torch.tensor([2.0, -1.9])  # of its own block, positive: scale -0.25, and -1.9 would be +7.6
    codes, scales = weight_blocks(weight, 4, 32)
    assert scales.tolist() == [[1.0, -0.25]]
    assert codes[0, 0, :5].tolist() == [-8, 7, 1, -3, 0]
    assert codes[0, 1, :3].tolist() == [-8, 7, 0]
    packed = packed_blocks(codes.numpy(), 4)
    assert (packed.shape, packed.dtype) == ((1, 2, 16), np.uint8)
    assert packed[0, 0, :3].tolist() == [0xF0, 0x59, 0x88]  # 0 and 15, 9 and 5, 8 and 8
    assert packed[0, 1, :2].tolist() == [0xF0, 0x88]


def test_activations_of_a_token_are_rounded_by_its_own_blocks():
    values = torch.tensor([[127.0, 0.4, 0.6, -127.0], [1.27, 0.014, 0.006, 0.0]])
    expected = torch.tensor([[127.0, 0.0, 1.0, -127.0], [1.27, 0.01, 0.01, 0.0]])
    torch.testing.assert_close(block_activations(values, 32), expected)


SIZES = {"int8_dynamic": 1.0, "int8_static": 1.0, "int8_blocks": 1.0, "int4_blocks": 0.5, "fp16": 2.0, "bf16": 2.0}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrices_take_the_bytes_of_their_bits(scheme, tiny_ranker, tiny_data):
    result = applied(tiny_ranker, tiny_data, scheme=scheme)
    graph = write_graph(result.spec, result.weights).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    name = "layer.0.ffn.down.weight" + (f".{scheme}" if scheme in ("fp16", "bf16") else "")
    inputs = 32  # a block; width and neurons fill one
    assert len(stored[name].raw_data) == SIZES[scheme] * 16 * inputs
    if scheme == "int4_blocks":
        assert numpy_helper.to_array(stored["layer.0.ffn.down.scale"]).shape == (16,)
    table = next(tensor for tensor in graph.initializer if tensor.name.startswith("embeddings.tokens.weight"))
    rows, width = tiny_ranker.weights["embeddings.tokens.weight"].shape
    assert len(table.raw_data) == rows * width * (2 if scheme in ("fp16", "bf16") else 1)


@pytest.mark.parametrize("scheme", ["int8_static", "int8_blocks", "int4_blocks"])
def test_folder_of_whole_numbers_scores_as_torch_does(scheme, tiny_ranker, tiny_data, tiny_pairs, tmp_path):
    result = applied(tiny_ranker, tiny_data, scheme=scheme)
    report = export_folder(result, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs, portable=True)
    assert report.manifest["precision"]["is_batch_invariant"]
    assert ("1.22" in report.manifest["precision"]["onnxruntime"]) == (scheme == "int8_blocks")
    card = (report.folder / "README.md").read_text()
    assert ("MatMulNBits" in card, "without VNNI" in card) == (
        (False, True) if scheme == "int8_static" else (True, False)
    )
    ranker = OnnxRanker.load(report.folder, threads=1)
    alone = np.concatenate([ranker.score([pair]) for pair in tiny_pairs])
    np.testing.assert_allclose(alone, ranker.score(tiny_pairs), atol=1e-3)
    np.testing.assert_allclose(alone, result.score(tiny_pairs), atol=5e-3)


@pytest.mark.parametrize("scheme", ["fp16", "bf16"])
def test_half_precision_is_a_file_of_its_own(scheme, tiny_ranker, tiny_data, tiny_pairs, tmp_path):
    result = applied(tiny_ranker, tiny_data, scheme=scheme)
    report = export_folder(result, tmp_path / "model", manifest={}, calibration_pairs=tiny_pairs)
    half = onnx.load(report.folder / f"onnx/model_{scheme}.onnx")
    main = onnx.load(report.folder / "onnx/model.onnx")
    kind = onnx.TensorProto.FLOAT16 if scheme == "fp16" else onnx.TensorProto.BFLOAT16
    assert {each.data_type for each in half.graph.initializer if each.name.startswith("layer.")} == {kind}
    assert kind not in {each.data_type for each in main.graph.initializer}
    assert half.graph.output == main.graph.output
    assert {each.data_type for each in half.graph.initializer if each.name.startswith("head.")} == {
        onnx.TensorProto.FLOAT
    }
    assert "model.safetensors" in report.manifest["files"], "the main file's weights are a stock checkpoint's"
    gap = report.manifest["parity"][1]
    far = gap["against_main_file"] if scheme == "fp16" else gap["simulation_against_main_file"]
    assert 0 < far["max_difference"] < (0.01 if scheme == "fp16" else 0.1)
    assert "for GPUs" in (report.folder / "README.md").read_text()
    found = OnnxRanker.load(report.folder, threads=1).score(tiny_pairs)
    np.testing.assert_allclose(found, result.score(tiny_pairs), atol=0.01 if scheme == "fp16" else 0.1)

"""The spec: its JSON gives it back, and every shape that cannot be built is refused with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from compressor.ranker.spec import (
    AttentionSpec,
    ClassifierHead,
    Int8Dynamic,
    Int8Rows,
    KeepShareRule,
    LinearSpec,
    LowRankForm,
    NormSpec,
    PoolRule,
    RankerSpec,
    RotarySpec,
)
from tests.ranker.cases import SPECS
from tests.tiny import tiny_layer, tiny_spec


@pytest.mark.parametrize("name", SPECS)
def test_json_gives_the_spec_back(name):
    spec = SPECS[name]
    again = RankerSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.model_dump_json() == spec.model_dump_json()
    assert RankerSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_forms_and_precisions_survive_json():
    linear = LinearSpec(
        inputs=4, outputs=6, bias=False, form=LowRankForm(rank=2), precision=Int8Dynamic(reduce_range=True)
    )
    assert LinearSpec.model_validate_json(linear.model_dump_json()) == linear
    tokens = tiny_spec().embeddings.tokens.changed(precision=Int8Rows())
    assert type(tokens).model_validate_json(tokens.model_dump_json()).precision == Int8Rows()


def test_records_are_frozen_and_hash_by_value():
    spec = tiny_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.width = 3  # type: ignore[misc]
    assert hash(spec) == hash(tiny_spec())
    assert spec != spec.changed(pad_id=1)


def test_changed_checks_like_a_new_record():
    with pytest.raises(ValidationError, match="residual width is 8"):
        tiny_spec().changed(width=8)


@pytest.mark.parametrize(
    ("name", "first_only", "output"),
    [("bert", True, "logits"), ("modernbert", False, "logits"), ("similarity_first", True, "embedding")],
)
def test_what_the_head_reads_and_gives(name, first_only, output):
    assert SPECS[name].reads_first_token_only is first_only
    assert SPECS[name].output_name == output


_LAYER, _ATTENTION, _FFN = ("layers", 1), ("layers", 1, "attention"), ("layers", 1, "ffn")
_LINEAR = {"inputs": 16, "outputs": 16}
_EXIT, _HEAD = ("layers", 0, "exit"), {"pool": "first", "output": {"inputs": 16, "outputs": 1}}

# Where in the tiny spec, what is written there, where the fault is reported, and its message.
REFUSALS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "unknown key": (("colour",), "red", "Extra inputs are not permitted"),
    "unknown key deep inside": ((*_ATTENTION, "query", "sparsity"), 0.5, "Extra inputs are not permitted"),
    "newer schema": (("schema_version",), 2, "Input should be 1"),
    "unknown family": (("family",), "t5", "Input should be 'bert', 'electra'"),
    "no layers": (("layers",), [], "at least 1 item"),
    "zero width": (("width",), 0, "greater than 0"),
    "negative pad": (("pad_id",), -1, "greater than or equal to 0"),
    "pad outside the table": (("pad_id",), 205, "pad_id 205 is outside the token table of 205 rows"),
    "no heads": ((*_ATTENTION, "heads"), 0, "greater than 0"),
    "heads that do not fit": ((*_ATTENTION, "heads"), 3, "query gives 16 values, heads × head_width is 24"),
    "output that does not fit": (
        (*_ATTENTION, "output", "inputs"), 12, "output takes 12 values, heads × head_width is 16",
    ),
    "odd rotary width": (
        _ATTENTION,
        AttentionSpec(
            heads=2, head_width=5, query=LinearSpec(inputs=16, outputs=10), key=LinearSpec(inputs=16, outputs=10),
            value=LinearSpec(inputs=16, outputs=10), output=LinearSpec(inputs=10, outputs=16),
        ).model_dump() | {"positions": {"kind": "rotary", "base": 10.0}},
        "rotary positions turn pairs of values, head_width 5 is odd",
    ),
    "base of zero": ((*_ATTENTION, "positions"), {"kind": "rotary", "base": 0}, "greater than 0"),
    "unknown pattern": ((*_ATTENTION, "pattern"), {"kind": "dilated"}, "'full', 'window', 'causal'"),
    "window of nothing": ((*_ATTENTION, "pattern"), {"kind": "window", "reach": 0}, "greater than 0"),
    "window without reach": ((*_ATTENTION, "pattern"), {"kind": "window"}, "Field required"),
    "unknown activation": ((*_FFN, "activation"), "swish", "Input should be 'gelu'"),
    "ffn widths": ((*_FFN, "down", "inputs"), 31, "up, gate and down disagree about the width (32)"),
    "gate width": ((*_FFN, "gate"), {"inputs": 16, "outputs": 8}, "up, gate and down disagree about the width (32)"),
    "gate inputs": (
        (*_FFN, "gate"), {"inputs": 8, "outputs": 32}, "residual width is 16, but layers.1.ffn.gate takes or gives 8",
    ),
    "rank of zero": ((*_FFN, "up", "form"), {"kind": "low_rank", "rank": 0}, "greater than 0"),
    "unknown form": ((*_FFN, "up", "form"), {"kind": "monarch"}, "'dense', 'low_rank'"),
    "unknown precision": ((*_FFN, "up", "precision"), {"kind": "int3"}, "'int8_dynamic', 'int8_static'"),
    "table in a linear's precision": (
        ("embeddings", "tokens", "precision"), {"kind": "int8_dynamic"}, "'bf16', 'int8_rows'",
    ),
    "norm placement": ((*_LAYER, "norm_placement"), "middle", "Input should be 'post' or 'pre'"),
    "norm kind": ((*_LAYER, "ffn_norm", "kind"), "batch", "Input should be 'layer' or 'rms'"),
    "norm left out": (_LAYER, {"norm_placement": "pre"}, "Field required"),
    "RMS norm with a bias": ((*_LAYER, "ffn_norm", "kind"), "rms", "an RMS norm has no bias"),
    "epsilon of zero": (("embeddings", "norm", "epsilon"), 0, "greater than 0"),
    "unknown token rule": ((*_LAYER, "token_rule"), {"kind": "keep"}, "'pool', 'keep_share'"),
    "token rule of the last layer": (
        (*_LAYER, "token_rule"), {"kind": "pool", "stride": 2}, "layers.1 is the last: no layer reads",
    ),
    "window of one token": (("layers", 0, "token_rule"), {"kind": "pool", "stride": 1}, "greater than or equal to 2"),
    "share of all tokens": (("layers", 0, "token_rule"), {"kind": "keep_share", "share": 1}, "less than 1"),
    "unknown scorer": (
        ("layers", 0, "token_rule"), {"kind": "keep_share", "share": 0.5, "scorer": {"kind": "length"}},
        "'attention', 'pagerank'",
    ),
    "token rule without attention": (
        ("layers", 0), tiny_layer(attention=None, token_rule=None).model_dump() | {
            "token_rule": {"kind": "keep_share", "share": 0.5}
        },
        "layers.0 has no attention, by which its token rule judges tokens",
    ),
    "windows that see tokens, judged": (
        ("layers",),
        [
            tiny_layer(token_rule=PoolRule(stride=2, queries_only=True)).model_dump(),
            tiny_layer(token_rule=KeepShareRule(share=0.5)).model_dump(),
            tiny_layer().model_dump(),
        ],
        "layers.1 has windows that see tokens and not each other",
    ),
    "exit of the last layer": ((*_LAYER, "exit"), _HEAD, "layers.1 is the last and ends in the head: it has no exit"),
    "exit inputs": (
        _EXIT, _HEAD | {"dense": {"inputs": 8, "outputs": 16}},
        "residual width is 16, but layers.0.exit takes or gives 8",
    ),
    "exit without dense": (
        _EXIT, _HEAD | {"output": {"inputs": 8, "outputs": 1}},
        "residual width is 16, but layers.0.exit takes or gives 8",
    ),
    "exit of two logits": (
        _EXIT, _HEAD | {"output": {"inputs": 16, "outputs": 2}}, "a ranker's head gives one logit, not 2",
    ),
    "exit that gives a vector": (_EXIT, {"kind": "similarity", "pool": "first"}, "Input should be 'classifier'"),
    "exit with a threshold": (_EXIT, _HEAD | {"threshold": 1}, "Extra inputs are not permitted"),
    "attention inputs": (
        (*_ATTENTION, "key", "inputs"), 8, "residual width is 16, but layers.1.attention.key takes or gives 8",
    ),
    "ffn inputs": ((*_FFN, "up", "inputs"), 8, "residual width is 16, but layers.1.ffn.up takes or gives 8"),
    "embedding widths": (("embeddings", "segments", "width"), 8, "the token table is 16 wide, but segments 8"),
    "projection inputs": (
        ("embeddings", "project"), {"inputs": 8, "outputs": 16}, "the token table is 16 wide, but project 8",
    ),
    "projection outputs": (
        ("embeddings", "project"), {"inputs": 16, "outputs": 8}, "width is 16, but embeddings takes or gives 8",
    ),
    "too few positions": (("max_length",), 41, "max_length 41 does not fit the position table of 40 rows"),
    "too few positions after the offset": (
        ("embeddings", "position_offset"), 1, "max_length 40 does not fit the position table of 40 rows",
    ),
    "two logits": (("head", "output", "outputs"), 2, "a ranker's head gives one logit, not 2"),
    "head inside": (("head", "dense", "outputs"), 8, "dense gives 8 values, output takes 16"),
    "head inputs": (("head", "dense"), {"inputs": 8, "outputs": 16}, "residual width is 16, but head takes or gives 8"),
    "unknown pool": (("head", "pool"), "max", "Input should be 'first' or 'mean'"),
    "unknown head": (("head", "kind"), "colbert", "'classifier', 'similarity'"),
    "dropout of everything": (("dropout", "hidden"), 1.0, "less than 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name):
    path, value, message = REFUSALS[name]
    data = json.loads(tiny_spec().model_dump_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError) as caught:
        RankerSpec.model_validate(data)
    assert message in str(caught.value)


def test_head_without_dense_is_checked_too():
    with pytest.raises(ValidationError, match="residual width is 16, but head takes or gives 8"):
        tiny_spec().changed(head=ClassifierHead(pool="mean", output=LinearSpec(inputs=8, outputs=1)))


def test_a_bi_encoder_has_no_exits():
    with pytest.raises(ValidationError, match="only cross-encoders have exits"):
        SPECS["exits"].changed(head=SPECS["similarity_first"].head)


def test_all_wrong_widths_are_told_at_once():
    data = json.loads(tiny_spec().model_dump_json())
    data["layers"][0]["ffn"]["up"]["inputs"] = 3
    data["layers"][1]["attention"]["query"]["inputs"] = 5
    with pytest.raises(ValidationError, match=r"layers\.0\.ffn\.up takes or gives 3, layers\.1\.attention\.query"):
        RankerSpec.model_validate(data)


def test_positive_by_name_where_a_default_would_mislead():
    with pytest.raises(ValidationError, match="epsilon"):
        NormSpec()  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="base"):
        RotarySpec()  # type: ignore[call-arg]

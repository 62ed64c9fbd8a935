"""Adapters that cannot be merged exactly, or were trained on another ranker, are refused with all reasons at once."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from safetensors.torch import save_file

from compressor.errors import InputError
from compressor.families import check_adapter, merged_weights, open_adapter
from tests.families.adapter_folders import PEFT_PREFIX, Drawn, lora_config, write_adapter
from tests.tiny import build_ranker, tiny_layer, tiny_spec

LAYER = PEFT_PREFIX + "bert.encoder.layer.{}."
QUERY = LAYER + "attention.self.query"


def query_lora(n_layers=2, width=16, rank=3):
    draw = Drawn()
    return {
        f"{QUERY.format(layer)}.{name}": draw(*shape)
        for layer in range(n_layers)
        for name, shape in (("lora_A.weight", (rank, width)), ("lora_B.weight", (width, rank)))
    }


def refusal(folder, tensors, config=None, spec=None):
    """Return what is said of an adapter that does not fit the tiny ranker."""
    write_adapter(folder, tensors, config)
    with pytest.raises(InputError) as refused:
        check_adapter(open_adapter(folder), spec or tiny_spec())
    return [str(fault) for fault in refused.value.faults]


def test_what_fits_is_not_refused(tmp_path):
    write_adapter(tmp_path, query_lora(), lora_config(target_modules=["query"]))
    check_adapter(open_adapter(tmp_path), tiny_spec())


def test_all_misfits_are_named_at_once_and_layers_joined(tmp_path):
    tensors = query_lora(n_layers=4, width=24)
    tensors[f"{PEFT_PREFIX}classifier.weight"] = torch.ones(3, 16)
    tensors[f"{PEFT_PREFIX}bert.encoder.layer.0.adapter.weight"] = torch.ones(3)
    found = refusal(tmp_path, tensors, lora_config(target_modules=["query"]))
    assert len(found) == 4, found
    told = "\n".join(found)
    assert "bert.encoder.layer.{2, 3}.attention.self.query.weight: found this ranker has no such tensor" in told
    assert (
        "bert.encoder.layer.{0, 1}.attention.self.query.weight: found down is [3, 24], for [16, 16] it would be "
        "[3, 16]; up is [24, 3], for [16, 16] it would be [16, 3]"
    ) in told
    assert "classifier.weight: found value is [3, 16], for [1, 16] it would be [1, 16]" in told
    assert "bert.encoder.layer.0.adapter.weight: found this ranker has no such tensor" in told


def test_a_shallower_base_is_noticed(tmp_path):
    spec = tiny_spec(layers=(tiny_layer(),) * 4)
    (found,) = refusal(tmp_path, query_lora(), lora_config(target_modules=["query"]), spec)
    assert "bert.encoder.layer.{2, 3}.attention.self.query: found a target of the adapter for which it holds" in found
    (found,) = refusal(tmp_path, query_lora(), lora_config(target_modules=r".*\.query"), spec)
    assert "{2, 3}" in found
    chosen = lora_config(target_modules=["query"], layers_to_transform=[0, 1])
    write_adapter(tmp_path, query_lora(), chosen)
    check_adapter(open_adapter(tmp_path), spec)  # it says itself that it leaves layers out


def test_another_family_is_noticed(tmp_path):
    renamed = {name.replace("bert.", "roberta."): tensor for name, tensor in query_lora().items()}
    assert "no such tensor" in refusal(tmp_path, renamed, lora_config())[0]


def test_ranks_are_those_of_the_config(tmp_path):
    found = refusal(tmp_path, query_lora(), lora_config(r=8))
    assert "down is [3, 16], for [16, 16] it would be [8, 16]" in found[0]


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("peft_type", "IA3", "allowed: LORA, RANDLORA, SHIRA"),
        ("peft_type", "PROMPT_TUNING", "allowed: LORA, RANDLORA, SHIRA"),
        ("alora_invocation_tokens", [5, 6], "cannot be merged: only tokens behind others"),
        ("layer_replication", [[0, 2], [0, 2]], "cannot be merged: layers are repeated"),
        ("trainable_token_indices", [3], "cannot be merged"),
        ("init_lora_weights", "pissa", "a start that leaves the base as it is"),
        ("r", 0, "a whole number from 1"),
        ("r", "8", "a whole number from 1"),
        ("lora_alpha", -1, "a positive number"),
        ("use_dora", "yes", "true or false"),
        ("bias", "some", "none, all, lora_only"),
        ("rank_pattern", {"(": 3}, "numbers by regular expressions"),
        ("rank_pattern", {"query": 0}, "a whole number from 1"),
        ("modules_to_save", "classifier", "a list of names"),
        ("target_modules", "(", "names or a regular expression"),
        ("use_dora", True, "lora_A, lora_B without lora_magnitude_vector"),
        ("bias", "lora_only", "bert.encoder.layer.{0, 1}.attention.self.query.bias: found a bias that was trained"),
        ("bias", "all", "classifier.bias: found a bias that was trained"),
        ("modules_to_save", ["classifier"], "classifier.weight: found trained whole (modules_to_save), and not in"),
    ],
)
def test_settings_that_cannot_be_merged(tmp_path, setting, value, said):
    assert said in "\n".join(refusal(tmp_path, query_lora(), lora_config(**{setting: value})))


def test_all_faults_of_a_config_are_named_at_once(tmp_path):
    config = lora_config(r=0, layer_replication=[[0, 1]], init_lora_weights="loftq", rank_pattern={"query": -1})
    assert len(refusal(tmp_path, query_lora(), config)) == 4


def test_incomplete_and_foreign_tensors(tmp_path):
    tensors = query_lora()
    assert "lora tensors without adapter_config.json" in refusal(tmp_path / "bare", tensors)[0]
    config = {"peft_type": "SHIRA"}
    assert "lora tensors, of which adapter_config.json says nothing" in refusal(tmp_path / "x", tensors, config)[0]
    del tensors[f"{QUERY.format(1)}.lora_B.weight"]
    assert "lora_A without lora_B" in refusal(tmp_path / "half", tensors, lora_config())[0]
    whole = {f"{PEFT_PREFIX}classifier.weight": torch.ones(1, 16)}
    assert "no tensors of an adapter among 1" in refusal(tmp_path / "whole", whole, lora_config())[0]


def test_numbers_that_are_none(tmp_path):
    tensors = query_lora()
    tensors[f"{QUERY.format(0)}.lora_A.weight"][0, 0] = math.nan
    assert "finite floating-point numbers" in refusal(tmp_path / "nan", tensors, lora_config())[0]
    rounded = {name: tensor.to(torch.int8) for name, tensor in query_lora().items()}
    assert len(refusal(tmp_path / "int8", rounded, lora_config())) == 4
    huge = {name: tensor * 1e30 for name, tensor in query_lora().items()}
    ranker = build_ranker()
    adapter = open_adapter(write_adapter(tmp_path / "huge", huge, lora_config()))
    with pytest.raises(InputError, match="NaN or infinite sums"):
        merged_weights(adapter, ranker.spec, ranker.weights)


def test_folders_that_hold_no_adapter(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_adapter(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors; allowed"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no such format")
    with pytest.raises(InputError, match="broken safetensors"):
        open_adapter(tmp_path)
    write_adapter(tmp_path, query_lora(), None)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="broken JSON"):
        open_adapter(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_diff.bin"])
def test_pickled_adapters_are_never_opened(tmp_path, name):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("was_run").touch, ())

    (tmp_path / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match="may run code"):
        open_adapter(tmp_path)
    assert not (tmp_path / "was_run").exists()


def test_dense_bases_of_randlora_that_were_not_saved(tmp_path):
    tensors = {
        f"{QUERY.format(0)}.randlora_lambda": torch.ones(4, 4),
        f"{QUERY.format(0)}.randlora_gamma": torch.ones(4, 16),
    }
    (found,) = refusal(tmp_path, tensors, {"peft_type": "RANDLORA", "r": 4, "save_projection": False})
    assert "save_projection: true" in found
    small = {"base_model.randlora_A": torch.ones(4, 1, 12), "base_model.randlora_B": torch.ones(16, 4, 4)}
    (found,) = refusal(tmp_path, {**tensors, **small}, {"peft_type": "RANDLORA", "r": 4})
    assert "a is [4, 1, 12], for [16, 16] it would be [4, 1, 16]" in found


def test_adapter_bias_that_no_matrix_can_hold(tmp_path):
    def tensors(place, inputs):
        return {f"{place}.adapter_vector": torch.ones(16), f"{place}.adapter_alpha.weight": torch.ones(1, inputs),
                f"{place}.adapter_alpha.bias": torch.ones(1)}  # fmt: skip

    feed_forward, layer = "bert.encoder.layer.0.output", "bert.encoder.layer.0"
    check_adapter(open_adapter(write_adapter(tmp_path, tensors(feed_forward, 32))), tiny_spec())
    (found,) = refusal(tmp_path, tensors(feed_forward, 16))  # reads what the matrix gives, or the layer: who knows
    assert "down is [1, 16], for [16, 32] it would be [1, 32]" in found
    (found,) = refusal(tmp_path, tensors(layer, 32))
    assert "no feed-forward ends here, so no matrix can hold a shift" in found
    missing = tensors(feed_forward, 32)
    del missing[f"{feed_forward}.adapter_alpha.bias"]
    assert "without adapter_alpha.bias" in refusal(tmp_path, missing)[0]


def test_sparse_differences_outside_their_tensor(tmp_path):
    name = "bert.encoder.layer.0.attention.self.query.weight"
    values = {f"{name}.values": torch.ones(2)}
    for indices, said in [
        ([[0, 16], [0, 0]], "indices go from [0, 0] to [16, 0] in a tensor of [16, 16]"),
        ([[0, -1], [0, 0]], "indices go from [-1, 0] to"),
        ([[0, 1]], "indices is [1, 2], for [16, 16] it would be [2, 2]"),
    ]:
        (found,) = refusal(tmp_path, {**values, f"{name}.indices": torch.tensor(indices)})
        assert said in found
    (found,) = refusal(tmp_path, {**values, f"{name}.indices": torch.full((2, 2), 0.5)})
    assert "whole numbers" in found


def test_whole_positions_where_a_segment_was_added_to_them(tmp_path):
    spec = tiny_spec()
    spec = spec.changed(family="roberta", embeddings=spec.embeddings.changed(segments=None))
    name = "roberta.embeddings.position_embeddings.weight"
    sparse = {"classifier.out_proj.bias.indices": torch.zeros(1, 1, dtype=torch.int64),
              "classifier.out_proj.bias.values": torch.ones(1)}  # fmt: skip
    (found,) = refusal(tmp_path, {**sparse, name: torch.ones(40, 16)}, spec=spec)
    assert "to which this ranker has added its only segment" in found


def test_a_stored_file_may_hold_unused_originals(tmp_path):
    tensors = query_lora() | {f"{PEFT_PREFIX}classifier.original_module.weight": torch.ones(3, 16)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    write_adapter(tmp_path, tensors, lora_config())
    assert open_adapter(tmp_path).replaced == {}

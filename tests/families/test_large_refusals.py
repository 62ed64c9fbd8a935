"""What is no large ranker, what may not be read, and which precision is loaded how."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from compressor.errors import InputError
from compressor.families import large_precision, large_ranker
from compressor.families.large_files import large_files, large_fingerprint
from compressor.families.large_precision import gptq_config, load_options
from compressor.families.large_teacher import open_large
from compressor.large_settings import LargeRanker
from tests.families.large_rankers import build_llama_head, build_qwen3
from tests.families.stock_models import build_stock

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return build_qwen3(tmp_path_factory.mktemp("stored") / "qwen3")


@pytest.fixture
def folder(stored, tmp_path):
    """A copy of a good checkpoint to spoil."""
    return shutil.copytree(stored, tmp_path / "qwen3")


@pytest.fixture
def packages(monkeypatch):
    """Say which packages are there."""
    return lambda *names: monkeypatch.setattr(large_precision, "is_installed", lambda name: name in names)


def settings(folder, **changes) -> LargeRanker:
    return LargeRanker.model_validate({"large": str(folder), **changes})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder, **changes) -> str:
    with pytest.raises(InputError) as caught:
        open_large(settings(folder, **changes)).open()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "'nowhere', no folder and no hub id; allowed: a folder with config.json and safetensors, or"),
        ("org/model", "'org/model', a hub id that is not pinned to a commit: what a branch or tag holds can change"),
        ("org/model@main", "allowed: organization/model@COMMIT, 40 hex digits; its page on the hub shows the commit"),
    ],
)
def test_a_hub_s_model_is_pinned(name, words):
    assert words in refusal(name)


def test_a_pinned_model_is_asked_of_the_hub_config_first(stored, monkeypatch):
    asked = list[tuple[str, bool]]()

    def fetch(reference, *, with_weights):
        asked.append((reference, with_weights))
        return stored

    monkeypatch.setattr("compressor.families.large_files.fetch", fetch)
    name = f"org/model@{COMMIT}"
    assert open_large(settings(name)).fingerprint == open_large(settings(stored)).fingerprint
    assert asked == [(name, False), (name, True)]
    asked.clear()
    assert "scoring: found head of a checkpoint of the class Qwen3ForCausalLM" in refusal(name, scoring="head")
    assert asked == [(name, False)], "no weights for what the config refuses already"


def test_only_safetensors_are_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "only a pickled checkpoint, which may run code when it is read" in said
    assert f"AutoModelForCausalLM (or ...ForSeq2SeqLM, ...ForSequenceClassification).from_pretrained({folder})" in said


def test_adapters_and_foreign_code_are_refused(folder):
    change_config(folder, model_type="of_its_own", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    assert "code from a checkpoint is never run" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter (LoRA or other PEFT weights), not a whole checkpoint; merge it" in refusal(folder)


def test_an_encoder_is_no_large_ranker(tmp_path):
    said = refusal(build_stock("bert", tmp_path / "bert").folder)
    assert "BertForSequenceClassification (bert)" in said
    assert "an encoder is a ranker like any other: name it under 'ranker:'" in said


def test_heads_are_not_made_up(folder, tmp_path):
    change_config(folder, architectures=["Qwen3ForSequenceClassification"])
    said = refusal(folder, prompt="rankllama")
    assert "1 weights of a Qwen3ForSequenceClassification missing (score.weight, ...)" in said
    two = build_llama_head(tmp_path / "two", n_logits=2)
    assert "a head of 2 logits; allowed: 1" in refusal(two, prompt="rankllama")


@pytest.mark.parametrize(
    ("precision", "there", "words"),
    [
        ("int8", ("accelerate",), "int8, and bitsandbytes, which it runs on, is not installed; pip install "
         "'rankpress[large]'"),
        ("int4", (), "int4, and bitsandbytes and accelerate, which it runs on, are not installed"),
        ("gptq", ("optimum", "accelerate"), "gptqmodel, which it runs on, is not installed; pip install "
         "'rankpress[large]' gptqmodel"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(stored, packages, precision, there, words):
    packages(*there)
    assert words in refusal(stored, precision=precision)


def test_bitsandbytes_is_told_what_to_round(stored, packages, monkeypatch):
    asked = dict[str, Any]()

    def load(kind, files, **options):
        if kind is large_ranker.AutoTokenizer:
            return kind.from_pretrained(files.folder)
        asked.update(options, kind=kind)
        raise InputError([])

    monkeypatch.setattr(large_ranker, "loaded", load)
    packages("bitsandbytes", "accelerate")
    for precision, dtype in (("int8", torch.float16), ("int4", torch.bfloat16)):
        asked.clear()
        refusal(stored, precision=precision)
        config = asked["quantization_config"].to_dict()
        assert asked["dtype"] == dtype
        assert asked["use_safetensors"] is True
        assert asked["device_map"] == {"": "cuda" if torch.cuda.is_available() else "cpu"}
        assert config["load_in_8bit"] is (precision == "int8")
        assert config["load_in_4bit"] is (precision == "int4")
        assert {"lm_head", "score"} <= set(config["llm_int8_skip_modules"])
    assert config["bnb_4bit_quant_type"] == "nf4"
    assert config["bnb_4bit_use_double_quant"] is True
    assert config["bnb_4bit_compute_dtype"] == "bfloat16"
    plain = load_options("fp32", torch.device("cpu"), is_stored=False)
    assert plain == {"dtype": torch.float32}
    assert load_options("bf16", torch.device("cuda"), is_stored=False)["device_map"] == {"": "cuda"}


def test_int8_asks_about_one_prompt_at_a_time(stored):
    """Its outlier columns are those of a whole batch: a score would depend on its mates."""
    scorer = open_large(settings(stored)).open()
    assert isinstance(scorer, large_ranker.PairScorer)
    sizes = list[int]()
    scorer._model.settings = settings(stored, precision="int8")
    scorer.score([("a", "b"), ("c", "d e"), ("f", "g")], sizes.append)
    assert sizes == [1, 1, 1]


def test_stored_precisions_are_taken_as_they_are(folder, packages):
    packages("bitsandbytes", "accelerate", "optimum", "gptqmodel")
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "precision: found fp32 of weights that are stored in gptq; allowed: gptq" in refusal(folder)
    found = open_large(settings(folder, precision="gptq"))
    assert not found.needs_quantizing
    calibrated = refusal(folder, precision="gptq", calibration="api-docs/train")
    assert "calibration: found weights that GPTQ has rounded; take 'calibration' away" in calibrated
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "found int4 of weights that are stored in int8; allowed: int8" in refusal(folder, precision="int4")
    change_config(folder, quantization_config={"quant_method": "fp8"})
    assert "weights that are stored by the method fp8; allowed: floats, bitsandbytes, gptq" in refusal(folder)


def test_gptq_rounds_a_float_checkpoint_on_prompts_once(stored, packages, monkeypatch, tmp_path):
    packages("optimum", "gptqmodel", "accelerate")
    assert "calibration: found none, for a checkpoint in floats" in refusal(stored, precision="gptq")
    found = open_large(settings(stored, precision="gptq", calibration="api-docs/train"))
    assert found.needs_quantizing
    rounded = list[Any]()

    class Model:
        def __init__(self, files, settings, quantization=None):
            rounded.append(quantization)

        def save(self, folder):
            shutil.copytree(stored, folder)
            change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})

    monkeypatch.setattr(large_ranker, "LargeModel", Model)
    pairs = [("green", "tree"), ("snow", "storm")]
    for _ in range(2):
        quantized = found.quantized(pairs, lambda name: tmp_path / name)
        assert quantized.files.quantized_by == "gptq"
        assert quantized.fingerprint != found.fingerprint
    (config,) = rounded
    assert config.bits == 4
    assert config.group_size == 128
    assert ["<Query>: green\n<Document>: tree<|im_end|>" in text for text in config.dataset] == [True, False]
    assert config.model_seqlen == 8192
    head = gptq_config(["a"], None, 10)
    assert head.dataset == ["a"]


def test_the_fingerprint_follows_files_and_settings(folder, stored):
    assert large_fingerprint(folder) == large_fingerprint(stored)
    same, first = open_large(settings(stored, batch_tokens=7)), open_large(settings(folder))
    assert same.fingerprint == first.fingerprint, "speed alone"
    named = open_large(settings(folder, prompt="qwen3_reranker", scoring="label_tokens"))
    assert named.fingerprint == first.fingerprint, "what auto means"
    assert named.fingerprint != open_large(settings(folder, precision="bf16")).fingerprint
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert open_large(settings(folder)).fingerprint != first.fingerprint
    (folder / "chat_template.jinja").write_text("other")
    assert large_files(str(folder)).scoring(settings(folder)) == "label_tokens"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "monot6"}, "write monot5, rankt5, qwen3_reranker, rankllama, or text with {query}, and {document}"),
        ({"prompt": "{query} {document} {document}"}, "once, where they are to stand"),
        ({"prompt": "{query} {document} {title}"}, "{title} stands for nothing; places: query, document, bos, eos"),
        ({"labels": ["yes", "yes"]}, "two different words, or one"),
        ({"labels": ["a", "b", "c"]}, "at most 2"),
        ({"scoring": "first_token", "labels": ["yes"]}, "first_token has a prompt and labels of its own"),
        ({"scoring": "head", "labels": ["yes"]}, "a scoring head reads no labels"),
        ({"window": 10}, "window, stride and list_scores are for 'scoring: first_token'"),
        ({"scoring": "first_token", "window": 8}, "a stride beyond the window would leave documents out"),
        ({"scoring": "first_token", "window": 27}, "less than or equal to 26"),
        ({"calibration": "api-docs/train"}, "only 'precision: gptq' is calibrated"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValidationError) as caught:
        LargeRanker(large="a", **changes)
    assert words in str(caught.value)


def test_settings_survive_being_written_and_changed():
    one = LargeRanker.model_validate({"large": "a/b", "precision": "gptq", "calibration": "api-docs/train"})
    assert LargeRanker.model_validate(one.model_dump(mode="json")) == one
    assert one.changed(max_length=9).max_length == 9
    assert one.short_name == "b (gptq)"

"""Tiny language models write: whole lines or nothing, the same whatever is written along."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from compressor.errors import InputError
from compressor.families.query_generator import (
    Order,
    QueryWriter,
    _Noise,
    generator_fingerprint,
    generator_folder,
)
from compressor.query_settings import QueryGenerator
from tests.families.language_models import build_decoder, build_t5
from tests.families.stock_models import build_stock
from tests.tiny import DOCUMENTS

ORDERS = [Order(document=text, seed=seed) for seed in range(2) for text in DOCUMENTS.values()]
SETTINGS = {"top_k": 64, "max_new_tokens": 20}  # of all tokens; one or two in 24 end a text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"t5": build_t5(folder / "t5"), "decoder": build_decoder(folder / "decoder")}


def writer(folder, **changes):
    return QueryWriter(folder, QueryGenerator.model_validate({"model": str(folder), **SETTINGS, **changes}))


def written(one, orders=ORDERS):
    told = list[int]()
    found = dict(pair for batch in one.write(orders, told.append) for pair in batch)
    assert sorted(found) == list(range(len(orders)))
    assert sum(told) == len(orders)
    return [found[row] for row in range(len(orders))]


@pytest.mark.parametrize("name", ["t5", "decoder"])
def test_texts_do_not_depend_on_their_batch(models, name):
    together = written(writer(models[name]))
    assert len(set(together)) > len(ORDERS) / 3
    few = writer(models[name], batch_tokens=600)
    assert written(few, ORDERS[::-1]) == together[::-1]
    assert [written(few, [order])[0] for order in ORDERS[:4]] == together[:4]


@pytest.mark.parametrize("name", ["t5", "decoder"])
def test_other_seeds_and_documents_give_other_texts(models, name):
    one = writer(models[name])
    same_document = [Order(document=DOCUMENTS["d1"], seed=seed) for seed in range(12)]
    assert len(set(written(one, same_document))) > 4
    of_seeds = [{*written(one, [Order(document=text, seed=seed) for text in DOCUMENTS.values()])} for seed in range(6)]
    assert max(map(len, of_seeds)) > 1


@pytest.mark.parametrize("name", ["t5", "decoder"])
def test_what_does_not_end_is_nothing(models, name):
    texts = written(writer(models[name]))
    assert "" in texts
    assert all("\n" not in text and "</s>" not in text and text == text.strip() for text in texts)
    short = written(writer(models[name], max_new_tokens=3))
    assert all(len(text.split()) <= 2 for text in short), "two words and the end, or nothing"
    assert len([text for text in short if text]) < len([text for text in texts if text])


def test_a_decoder_s_text_ends_with_its_line(models):
    one = writer(models["decoder"])
    texts = written(one, [Order(document=DOCUMENTS["d1"], seed=seed) for seed in range(30)])
    tokens = one._tokenizer
    assert len(Counter(text.count(" ") for text in texts if text)) > 3
    line_break = tokens.convert_tokens_to_ids("\n")
    words = tokens("green garden fish")["input_ids"]
    assert one._whole([*words, line_break, *words]) == "green garden fish"
    assert one._whole(words) == "", "cut off"
    assert one._whole([line_break, *words, 1]) == "green garden fish"
    assert one._whole([1]) == one._whole([line_break, 1]) == ""


def test_documents_are_cut_and_stand_in_the_prompt(models, monkeypatch):
    for name in ("t5", "decoder"):
        one = writer(models[name], max_document_tokens=3, prompt="ask: {document} now")
        seen = list[str]()

        def note(prompts, seeds, seen=seen):
            seen.extend(prompts)
            return ["" for _ in prompts]

        monkeypatch.setattr(one, "_written", note)
        written(one, [Order(document="tree {garden} green snow", seed=0), Order(document="sea", seed=0)])
        assert seen == ["ask: tree {garden} green now", "ask: sea now"], "the longest first; braces are text"
    default = writer(models["decoder"], max_document_tokens=9)
    assert default._prompt.endswith("Document: {document}\nRelevant Query:")
    assert writer(models["t5"])._prompt == "{document}"


def test_noise_draws_from_the_softmax_of_the_best():
    settings = QueryGenerator(model="m", top_k=3, temperature=2.0)
    logits = torch.tensor([2.0, -1.0, 4.0, 1.0, 0.0])
    n_draws = 4000
    noise = _Noise(list(range(n_draws)), settings)
    counts = torch.bincount(noise(torch.empty(0), logits.expand(n_draws, -1)).argmax(dim=1), minlength=5) / n_draws
    wanted = torch.softmax(torch.tensor([2.0, -torch.inf, 4.0, 1.0, -torch.inf]) / 2.0, dim=0)
    torch.testing.assert_close(counts, wanted, atol=0.03, rtol=0)  # three standard deviations of a share of 4,000
    assert counts[1] == counts[4] == 0


def test_the_fingerprint_follows_the_files(models, tmp_path):
    folder = build_t5(tmp_path / "one")
    first = generator_fingerprint(folder)
    assert first == generator_fingerprint(models["t5"]), "equal files, equal models"
    assert first != generator_fingerprint(models["decoder"])
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dropout_rate": 0.1', '"dropout_rate": 0.2'))
    assert generator_fingerprint(folder) != first


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "no-such-folder",
            "make_queries.generator: found 'no-such-folder', no folder and no hub id; allowed: a folder",
        ),
        ("file.txt", "found 'file.txt', no folder and no hub id"),
        ("empty", "found empty, a folder without config.json"),
        ("pickled", "only a pickled checkpoint, which may run code when it is read; allowed: safetensors; convert it"),
    ],
)
def test_what_is_no_model(tmp_path, model, message):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError) as error:
        generator_folder(model, with_weights=False)
    assert message in str(error.value)


def test_a_hub_id_is_not_fetched_to_be_checked(monkeypatch):
    monkeypatch.setattr("compressor.families.query_generator.fetch", lambda *_, **__: pytest.fail("fetched"))
    generator_folder("organization/model", with_weights=False)


def test_a_hub_that_has_no_such_model_is_said_of_the_generator(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"make_queries\.generator: found .*no-such-organization"):
        generator_folder("no-such-organization/no-such-model")


def test_a_ranker_is_no_language_model(tmp_path):
    stock = build_stock("bert", tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert, which lacks .* weights of a language model"):
        writer(stock.folder, max_document_tokens=8, max_new_tokens=4, prompt="{document}")


def test_code_beside_a_model_is_not_run(tmp_path, models):
    folder = build_t5(tmp_path / "custom")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(InputError, match="which transformers cannot read as a language model"):
        writer(folder)


def test_prompts_and_documents_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    folder = build_decoder(tmp_path / "short", n_positions=60)
    with pytest.raises(InputError, match=r"max_document_tokens: found a prompt of 5 tokens, documents of 256, "):
        writer(folder, prompt="{document} ?")
    assert writer(folder, prompt="{document} ?", max_document_tokens=35)

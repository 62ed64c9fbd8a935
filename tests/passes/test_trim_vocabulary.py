"""trim_vocabulary: covered texts are cut and scored as before, ids of specials stay, files agree with each other."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from compressor.passes import PlanError
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.ranker.spec import TableSpec
from compressor.ranker.vocabulary import new_places, token_places, tokens_to_keep, trimmed_files
from tests import tiny
from tests.passes.students import applied, distilled

KINDS = ("WordPiece", "BPE", "byte-level BPE", "BPE with a prefix", "Unigram")


def words(n, seed):
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfklmnprst" for b in "aeiou"]
    return ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(n)]


def texts(n, seed, of=400):
    draw, known = random.Random(seed), words(of, 1)
    return [" ".join(draw.choices(known, k=draw.randint(1, 12))) for _ in range(n)]


def trained(kind):
    """A real tokenizer of its kind, trained on made-up words, with specials at the start and one at the end."""
    tokenizer: Tokenizer
    trainer: Any
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    options: dict[str, Any] = {"vocab_size": 300, "special_tokens": specials, "show_progress": False}
    if kind == "WordPiece":
        tokenizer, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer(**options)  # noqa: S106
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif kind == "BPE":
        tokenizer, trainer = Tokenizer(models.BPE(unk_token="[UNK]")), trainers.BpeTrainer(**options)  # noqa: S106
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "BPE with a prefix":
        model = models.BPE(unk_token="[UNK]", continuing_subword_prefix="##")  # noqa: S106
        tokenizer, trainer = Tokenizer(model), trainers.BpeTrainer(**options, continuing_subword_prefix="##")
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "byte-level BPE":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(**{**options, "vocab_size": 500}, initial_alphabet=alphabet)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**options, unk_token="[UNK]")  # noqa: S106
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.train_from_iterator(texts(600, 2), trainer)
    tokenizer.add_special_tokens(["[LATE]"])
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return tokenizer


def trimmed(tokenizer, covered):
    """The tokenizer for some texts, and the old id of each new one."""
    parsed = json.loads(tokenizer.to_str())
    seen = {index for text in covered for index in tokenizer.encode(text, add_special_tokens=False).ids}
    order = new_places(parsed, tokens_to_keep(parsed, seen))
    files = trimmed_files({"tokenizer.json": tokenizer.to_str().encode()}, order)
    return Tokenizer.from_buffer(files["tokenizer.json"]), order


@pytest.mark.parametrize("kind", KINDS)
def test_covered_texts_are_cut_as_before(kind):
    whole = trained(kind)
    covered = texts(60, 3, of=60)
    small, order = trimmed(whole, covered)
    assert small.get_vocab_size() == len(order) < whole.get_vocab_size()
    for query, document in zip(covered, covered[::-1], strict=True):
        before, after = whole.encode(query, document), small.encode(query, document)
        assert after.tokens == before.tokens
        assert [order[index] for index in after.ids] == before.ids
        assert after.type_ids == before.type_ids


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_come_apart_into_known_pieces(kind):
    whole = trained(kind)
    small, order = trimmed(whole, texts(10, 3, of=10))
    unknown = small.token_to_id("[UNK]")
    others = texts(100, 9)
    cut_otherwise = 0
    for text in others:
        before, after = whole.encode(text), small.encode(text)
        cut_otherwise += before.tokens != after.tokens
        assert after.ids.count(unknown) <= before.ids.count(whole.token_to_id("[UNK]"))
    assert cut_otherwise
    assert len(order) < 0.9 * whole.get_vocab_size()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_specials_stay_where_they_can(kind):
    whole = trained(kind)
    small, _ = trimmed(whole, texts(20, 3, of=20))
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
        assert small.token_to_id(token) == whole.token_to_id(token)
    assert small.token_to_id("[LATE]") < small.get_vocab_size()


def test_ids_in_the_middle_stay_too():
    tokenizer = {
        "model": {"type": "WordPiece", "vocab": {f"t{i}": i for i in range(50)}},
        "added_tokens": [{"id": 7, "content": "t7"}, {"id": 40, "content": "t40"}],
    }
    assert new_places(tokenizer, [2, 3, 7, 20, 21, 22, 23, 24, 25, 40]) == [2, 3, 20, 21, 22, 23, 24, 7, 25, 40]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_found_again_in_the_whole(kind):
    whole = trained(kind)
    small, order = trimmed(whole, texts(60, 3, of=60))
    assert token_places(json.loads(small.to_str()), json.loads(whole.to_str())) == order
    assert token_places(json.loads(whole.to_str()), json.loads(small.to_str())) is None
    small.normalizer = normalizers.Lowercase()
    assert token_places(json.loads(small.to_str()), json.loads(whole.to_str())) is None


def run(ranker, data, notes=None, **settings):
    return applied(TrimVocabulary(**settings), ranker, data, notes)


def test_scores_of_covered_texts_are_equal_to_the_bit(tiny_data):
    whole = tiny.build_ranker(seed=3)
    notes: dict[str, object] = {}
    small = run(whole, tiny_data, notes, texts=("train",), held_out="dev")
    pairs = tiny_data.texts(tiny_data.pairs())
    np.testing.assert_array_equal(small.score(pairs), whole.score(pairs))
    rows = small.spec.embeddings.tokens.rows
    assert rows < whole.spec.embeddings.tokens.rows
    assert notes["tokens"] == {"before": whole.spec.embeddings.tokens.rows, "kept": rows}
    assert notes["held_out"] == {
        "texts": len(tiny_data.queries) + len(tiny_data.documents), "cut_otherwise": 0, "share": 0.0
    }  # fmt: skip


def test_all_files_say_the_same(tiny_data):
    small = run(tiny.build_ranker(seed=3), tiny_data, texts=("train",))
    tokenizer = Tokenizer.from_buffer(small.tokenizer_files["tokenizer.json"])
    lines = small.tokenizer_files["vocab.txt"].decode().splitlines()
    assert {token: index for index, token in enumerate(lines)} == tokenizer.get_vocab()
    assert len(lines) == small.spec.embeddings.tokens.rows


def test_rare_tokens_can_be_given_up(tiny_data):
    whole = tiny.build_ranker(seed=3)
    once, often = (run(whole, tiny_data, texts=("train",), min_count=n).spec.embeddings.tokens.rows for n in (1, 3))
    assert often < once
    assert set(string.ascii_lowercase) <= set(
        run(whole, tiny_data, texts=("train",), min_count=1000).tokenizer_files["vocab.txt"].decode().split()
    )


def test_rows_that_no_token_has_go_too(tiny_data):
    ranker = tiny.build_ranker(seed=3)
    import torch

    table = torch.cat([ranker.weights["embeddings.tokens.weight"], torch.ones(7, tiny.WIDTH)])
    embeddings = ranker.spec.embeddings.changed(tokens=TableSpec(rows=len(table), width=tiny.WIDTH))
    padded = ranker.changed(
        spec=ranker.spec.changed(embeddings=embeddings), weights={**ranker.weights, "embeddings.tokens.weight": table}
    )
    small = run(padded, tiny_data, texts=("train",))
    assert small.fingerprint == run(ranker, tiny_data, texts=("train",)).fingerprint


def test_the_teacher_can_be_read_along_behind_it(tiny_data):
    teacher = tiny.build_ranker(seed=5)
    small = run(teacher, tiny_data, texts=("train",))
    found: dict[str, Any] = {}
    distilled(small, teacher, tiny_data, lambda supply: found.update(supply.curves), epochs=0.25, learning_rate=1e-9)
    first = {name: points[0][1] for name, points in found.items() if name.startswith("loss/")}
    assert all(abs(loss) < 1e-6 for loss in first.values())  # it is its teacher still


def test_data_whose_tokens_are_kept_is_not_held_out():
    with pytest.raises(PlanError, match="own tokens are kept"):
        TrimVocabulary(texts=("dev",), held_out="dev").plan(tiny.tiny_spec())


def test_the_padding_id_stays_whatever_it_is(tiny_data):
    ranker = tiny.build_ranker(seed=3)
    unseen = Tokenizer.from_buffer(ranker.tokenizer_files["tokenizer.json"]).token_to_id("~")
    odd = ranker.changed(spec=ranker.spec.changed(pad_id=unseen))
    small = run(odd, tiny_data, texts=("train",))
    pairs = tiny_data.texts(tiny_data.pairs())
    np.testing.assert_array_equal(small.score(pairs), odd.score(pairs))

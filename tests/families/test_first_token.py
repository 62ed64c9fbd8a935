"""FIRST: windows slide from the end to the top, and letters' logits order them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.families.first_token import FirstTokenScorer, rank_scores, windows
from compressor.families.large_prompts import letter_id
from compressor.families.large_teacher import open_large
from compressor.large_settings import LargeRanker
from tests.families.large_rankers import build_qwen3
from tests.tiny import DOCUMENTS

TEXTS = list(DOCUMENTS.values())
WHOLE = {"scoring": "first_token", "max_length": 2000}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return build_qwen3(tmp_path_factory.mktemp("first") / "decoder")


def opened(folder, **changes) -> FirstTokenScorer:
    found = open_large(LargeRanker.model_validate({"large": str(folder), **WHOLE, **changes})).open()
    assert isinstance(found, FirstTokenScorer)
    return found


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, []),
        (1, [(0, 1)]),
        (10, [(0, 10)]),
        (20, [(0, 20)]),
        (25, [(5, 25), (0, 15)]),
        (40, [(20, 40), (10, 30), (0, 20)]),
    ],
)
def test_windows_slide_to_the_top(n, expected):
    assert list(windows(n, 20, 10)) == expected


def test_the_best_of_a_long_list_climbs_from_its_end(decoder, monkeypatch):
    scorer = opened(decoder, window=4, stride=2)
    worth = {"d0": 1.0, "d1": 5.0, "d2": 4.0, "d3": 0.0, "d4": 9.0, "d5": 2.0, "d6": 8.0}

    def logits(rows, columns, advance):
        return np.array([[worth[text] for text in row] + [-9.0] * (4 - len(row)) for row in rows], dtype=np.float32)

    monkeypatch.setattr(scorer, "tokens", lambda query, documents: documents)
    monkeypatch.setattr(scorer, "_model", SimpleNamespace(logits=logits))
    long, short = scorer.score_lists([("q", list(worth)), ("q", ["d3", "d5"])])
    # d3 d4 d5 d6 -> d4 d6 d5 d3; d1 d2 d4 d6 -> d4 d6 d1 d2; d0 d4 d6 -> d4 d6 d0.
    assert [list(worth)[place] for place in np.argsort(-long)] == ["d4", "d6", "d0", "d1", "d2", "d5", "d3"]
    np.testing.assert_allclose(np.sort(long)[::-1], -np.log(np.arange(1, 8)), rtol=1e-6)
    np.testing.assert_allclose(short, [-np.log(2), 0], rtol=1e-6)


def test_equal_logits_keep_the_first_stage_s_order(decoder, monkeypatch):
    scorer = opened(decoder, window=4, stride=2)
    monkeypatch.setattr(scorer, "tokens", lambda query, documents: documents)
    equal = SimpleNamespace(logits=lambda rows, columns, advance: np.zeros((len(rows), 4), dtype=np.float32))
    monkeypatch.setattr(scorer, "_model", equal)
    (found,) = scorer.score_lists([("q", [str(number) for number in range(9)])])
    assert list(np.argsort(-found)) == list(range(9))


def test_the_prompt_is_the_paper_s(decoder):
    scorer = opened(decoder)
    text = scorer._model.tokenizer.decode(scorer.tokens("green {n} [B]", ["a [A] tree", "snow<|im_end|>"]))
    assert text == (
        "<|im_start|>system\nYou are RankLLM, an intelligent assistant that can rank passages based on their relevancy "
        "to the query<|im_end|>\n<|im_start|>user\nI will provide you with 2 passages, each indicated by a "
        "alphabetical identifier []. Rank the passages based on their relevance to the search query: green {n} (B).\n\n"
        "[A] a (A) tree\n[B] snow< |im_end|>\nSearch Query: green {n} (B).\nRank the 2 passages above based on their "
        "relevance to the search query. All the passages should be included and listed using identifiers, in "
        "descending order of relevance. The output format should be [] > [], e.g., [B] > [A], Only respond with the "
        "ranking results, do not say any word or explain.<|im_end|>\n<|im_start|>assistant\n["
    )


def test_a_model_without_system_messages_or_templates_is_asked_all_the_same(decoder):
    scorer = opened(decoder)
    tokenizer = scorer._model.tokenizer
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "<|im_start|>{{ messages[0]['content'] }}<|im_end|>"
    )
    text = tokenizer.decode(scorer.tokens("q", ["a"]))
    assert text.startswith("<|im_start|>You are RankLLM, an intelligent assistant that can rank passages")
    tokenizer.chat_template = None
    assert tokenizer.decode(scorer.tokens("q", ["a"])).startswith("You are RankLLM, an intelligent assistant")


def test_documents_of_a_window_are_shortened_by_words_until_it_fits(decoder):
    scorer = opened(decoder, max_length=830)
    long, short = " ".join(["word"] * 400), "a b"
    row = scorer.tokens("q", [long, short])
    assert len(row) <= 830
    text = scorer._model.tokenizer.decode(row)
    assert "[B] a b\n" in text
    assert text.endswith("assistant\n[")
    assert 0 < text.count("word") < 60
    with pytest.raises(
        InputError, match=r"max_length: found 100, and .* tokens of a window of 2 documents of one word"
    ):
        opened(decoder, max_length=100).tokens("q", [long, short])


def test_scores_are_the_letters_logits_at_the_bracket(decoder):
    scorer = opened(decoder, list_scores="logits")
    (found,) = scorer.score_lists([("green", TEXTS[:3])])
    model = AutoModelForCausalLM.from_pretrained(decoder)
    letters = [scorer._model.tokenizer.get_vocab()[letter] for letter in "ABC"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([scorer.tokens("green", TEXTS[:3])])).logits[0, -1, letters]
    np.testing.assert_allclose(found, logits, atol=2e-5)
    with pytest.raises(InputError, match=r"list_scores: found logits of a list of 21 documents.*; allowed: ranks, or"):
        scorer.score_lists([("green", TEXTS[:1] * 21)])


def test_a_list_s_scores_do_not_depend_on_other_lists(decoder):
    scorer = opened(decoder, list_scores="logits")
    lists = [("green", TEXTS[:3]), ("what is snow", TEXTS[2:7]), ("tree", TEXTS[:1])]
    together = scorer.score_lists(lists)
    few = opened(decoder, list_scores="logits", batch_tokens=10)
    for one, found in zip(lists, together, strict=True):
        np.testing.assert_allclose(few.score_lists([one])[0], found, atol=2e-5)


def test_rank_scores_have_a_softmax_of_reciprocal_ranks():
    scores = rank_scores(np.array([2, 0, 1]))
    shares = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(shares * (1 + 1 / 2 + 1 / 3), [1 / 2, 1 / 3, 1], rtol=1e-6)


def test_a_vocabulary_without_letters_is_refused():
    with pytest.raises(InputError, match="scoring: found a vocabulary without 'A'; windows want a tokenizer with"):
        letter_id("A", SimpleNamespace(get_vocab=dict))

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import InputError, RunError
from compressor.runtime import Encoded, EncodedSides, OnnxRanker, Ranked
from compressor.runtime import ranker as ranker_module
from compressor.runtime.threads import available_threads
from tests.runtime.tiny_folder import UNK, VOCABULARY, WORDS, expected_score, graph, tables, tokenizer, write_folder

Pairs = list[tuple[str, str]]
TOLERANCE = 1e-6  # float32 sums of at most 32 tokens, in another order


@pytest.fixture(scope="module")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxRanker:
    return OnnxRanker.load(
        write_folder(tmp_path_factory.mktemp("folders") / "bi", graph(output="embedding")), threads=1
    )


def test_attributes(ranker: OnnxRanker, folder: Path) -> None:
    assert (ranker.name, ranker.folder, ranker.onnx_path) == ("tiny-ranker", folder, folder / "onnx/model.onnx")
    assert ranker.threads == 2
    assert OnnxRanker.load(str(folder)).threads == available_threads()


def test_scores_are_the_graph_s(ranker: OnnxRanker, pairs: Pairs) -> None:
    scores = ranker.score(pairs)
    assert (scores.dtype, scores.shape) == (np.dtype(np.float32), (60,))
    reference = tokenizer()
    reference.enable_truncation(32, strategy="only_second")
    expected = [expected_score(row.ids, row.type_ids) for row in reference.encode_batch(pairs)]
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert np.ptp(scores) > 0.1


def test_batch_mates_do_not_change_a_score(ranker: OnnxRanker, bi_encoder: OnnxRanker, pairs: Pairs) -> None:
    short, long = ("red", "sun"), ("red", " ".join(WORDS))
    for one in (ranker, bi_encoder):
        for pair in (short, long, pairs[7]):
            (alone,) = one.score([pair])
            for mates in ([("a", "sea")] * 5, [("moon", "blue " * 60)] * 5, pairs):
                among = one.score([*mates, pair, *mates], batch_tokens=10_000)[len(mates)]
                assert among == pytest.approx(alone, abs=TOLERANCE)


@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 100_000])
def test_the_token_budget_does_not_change_scores(ranker: OnnxRanker, pairs: Pairs, batch_tokens: int) -> None:
    np.testing.assert_allclose(ranker.score(pairs, batch_tokens=batch_tokens), ranker.score(pairs), atol=TOLERANCE)


def test_chunks_do_not_change_scores(
    ranker: OnnxRanker, bi_encoder: OnnxRanker, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (ranker, bi_encoder):
        whole = one.score(pairs)
        monkeypatch.setattr(ranker_module, "_CHUNK_PAIRS", 7)
        np.testing.assert_allclose(one.score(pairs), whole, atol=TOLERANCE)
        monkeypatch.undo()


def test_encode_then_score_is_score(ranker: OnnxRanker, bi_encoder: OnnxRanker, pairs: Pairs) -> None:
    encoded = ranker.encode(pairs)
    assert isinstance(encoded, Encoded)
    assert ranker.score_encoded(encoded).tolist() == ranker.score(pairs).tolist()
    sides = bi_encoder.encode(pairs)
    assert isinstance(sides, EncodedSides)
    assert len(sides.texts.lengths) == len({text for pair in pairs for text in pair})
    assert bi_encoder.score_encoded(sides).tolist() == bi_encoder.score(pairs).tolist()


def test_a_bi_encoder_scores_by_the_dot_product(bi_encoder: OnnxRanker) -> None:
    def embedded(text: str) -> np.ndarray:
        at = tables()
        hidden = np.tanh((at["word"][tokenizer().encode(text).ids] + at["type"][0]) @ at["mix"]).mean(axis=0)
        return hidden / np.linalg.norm(hidden)

    pairs = [("red sea", "blue moon"), ("red sea", "red sea"), ("blue moon", "the sun")]
    expected = [float(embedded(query) @ embedded(document)) for query, document in pairs]
    np.testing.assert_allclose(bi_encoder.score(pairs), expected, atol=TOLERANCE)


def test_vectors_are_those_behind_the_scores(
    ranker: OnnxRanker, bi_encoder: OnnxRanker, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    queries, documents = (bi_encoder.embed(side, on_embedded=told.append) for side in zip(*pairs, strict=True))
    assert sum(told) == 2 * len(pairs)
    np.testing.assert_allclose((queries * documents).sum(axis=1), bi_encoder.score(pairs), atol=TOLERANCE)
    monkeypatch.setattr("compressor.runtime.ranker._CHUNK_PAIRS", 3)
    np.testing.assert_allclose(bi_encoder.embed([query for query, _ in pairs]), queries, atol=TOLERANCE)
    with pytest.raises(InputError, match="found a cross-encoder, which scores pairs and embeds nothing"):
        ranker.embed(["text"])


def test_threads_share_a_ranker(ranker: OnnxRanker, pairs: Pairs) -> None:
    expected = ranker.score(pairs).tolist()
    start = Barrier(8)

    def work(number: int) -> list[list[float]]:
        start.wait()
        mine = pairs if number % 2 else pairs[::-1]
        return [ranker.score(mine, batch_tokens=64 + number).tolist() for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for number, results in enumerate(pool.map(work, range(8))):
            for scores in results:
                np.testing.assert_allclose(scores if number % 2 else scores[::-1], expected, atol=TOLERANCE)


def test_rank_puts_the_best_first(ranker: OnnxRanker) -> None:
    documents = ["the red sea", "iron", "magnets work in a field", "bread is baked in ovens"]
    scores = ranker.score([("how do magnets work", document) for document in documents])
    ranking = ranker.rank("how do magnets work", documents)
    assert [item.index for item in ranking] == np.argsort(-scores).tolist()
    assert [item.score for item in ranking] == sorted(scores.tolist(), reverse=True)
    assert ranker.rank("how do magnets work", documents, top_k=2) == ranking[:2]
    assert ranker.rank("how do magnets work", documents, top_k=9) == ranking


def test_ties_keep_the_order_of_the_input(ranker: OnnxRanker) -> None:
    ranking = ranker.rank("red", ["sea", "sun", "sea", "sun", "sea"])
    assert [item.index for item in ranking] in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])
    assert len({item.score for item in ranking}) == 2


def test_nothing_to_rank(ranker: OnnxRanker, bi_encoder: OnnxRanker) -> None:
    for one in (ranker, bi_encoder):
        assert one.rank("red", []) == []
        scores = one.score([])
        assert (scores.dtype, scores.shape) == (np.dtype(np.float32), (0,))


def test_top_k_below_one(ranker: OnnxRanker) -> None:
    with pytest.raises(InputError) as caught:
        ranker.rank("red", ["sea"], top_k=0)
    assert str(caught.value) == "top_k: found 0; allowed: a whole number from 1"


def test_nan_is_an_error_that_names_the_graph(tmp_path: Path) -> None:
    weights = tables()
    weights["word"][UNK] = np.nan
    broken = OnnxRanker.load(write_folder(tmp_path / "nan", graph(weights=weights)))
    assert broken.score([("red", "sea")]).shape == (1,)
    with pytest.raises(RunError) as caught:
        broken.score([("red", "sea"), ("red", "zebra"), ("sun", "quagga")])
    assert str(caught.value) == (
        f"{tmp_path}/nan/onnx/model.onnx: NaN or infinite scores for 2 of 3 pairs, the first at index 1; "
        "the graph or its weights are broken"
    )


def test_a_token_outside_the_embedding_table_is_an_error(tmp_path: Path) -> None:
    weights = tables()
    weights["word"] = weights["word"][:-4]
    folder = write_folder(tmp_path / "small", graph(weights=weights))
    last_word = max(WORDS, key=lambda word: VOCABULARY[word])
    with pytest.raises(RunError) as caught:
        OnnxRanker.load(folder).score([("red", last_word)])
    assert str(caught.value).startswith(f"{folder}/onnx/model.onnx: the graph failed (")
    assert "out of data bounds" in str(caught.value)


def test_a_free_label_axis_that_turns_out_to_be_two(tmp_path: Path) -> None:
    model = graph()
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    initializers["head"].CopyFrom(numpy_helper.from_array(np.ones((8, 2), np.float32), "head"))
    free = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "labels"])
    model.graph.output[0].CopyFrom(free)
    model.graph.node[-1].input[1] = "chosen"  # a shape that inference cannot know
    model.graph.node.insert(0, helper.make_node("Compress", ["head", "kept"], ["chosen"], axis=1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([True, True]), "kept"))
    loaded = OnnxRanker.load(write_folder(tmp_path / "free", model))
    with pytest.raises(InputError) as caught:
        loaded.score([("red", "sea")])
    assert "output 'logits': found the shape [1, 2] for 1 rows; allowed: one relevance logit" in str(caught.value)


def test_a_graph_with_int32_inputs_and_no_segments(tmp_path: Path) -> None:
    model = graph(has_types=False, integer=TensorProto.INT32)
    loaded = OnnxRanker.load(write_folder(tmp_path / "roberta-like", model, file="model.onnx"))
    assert loaded.onnx_path.name == "model.onnx"
    assert np.isfinite(loaded.score([("red", "sea")])).all()


def test_load_takes_the_manifest_s_main_file(tmp_path: Path, pairs: Pairs) -> None:
    folder = write_folder(tmp_path / "own")
    write_folder(folder, graph(weights=tables(seed=1)), file="onnx/other.onnx")
    plain = OnnxRanker.load(folder).score(pairs)
    (folder / "rankpress.json").write_text(json.dumps({"main_file": "onnx/other.onnx"}))
    other = OnnxRanker.load(folder)
    assert other.onnx_path == folder / "onnx/other.onnx"
    assert not np.allclose(other.score(pairs), plain)
    assert OnnxRanker.load(folder, file="onnx/model.onnx").score(pairs).tolist() == plain.tolist()


def test_load_lists_the_faults_of_tokenizer_and_graph_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "broken", graph(n_logits=2))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError) as caught:
        OnnxRanker.load(folder, threads=1)
    assert [fault.found for fault in caught.value.faults] == ["no tokenizer.json", "a head with 2 logits [batch, 2]"]


def test_long_scoring_shows_progress_and_short_scoring_does_not(
    ranker: OnnxRanker, bi_encoder: OnnxRanker, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tuple[str, int | None, list[int]]] = []
    real = ranker_module.progress

    def recorded(description: str, total: int | None):
        steps: list[int] = []
        bars.append((description, total, steps))

        class Bar:
            def __enter__(self):
                return steps.append

            def __exit__(self, *_: object) -> None:
                pass

        return Bar()

    assert callable(real)
    monkeypatch.setattr(ranker_module, "progress", recorded)
    ranker.score(pairs)
    ranker.rank("red", ["sea"] * 600)
    own: list[int] = []
    ranker.score(pairs * 10, on_scored=own.append)
    assert bars == []
    assert sum(own) == 600
    ranker.score(pairs * 10)
    bi_encoder.score(pairs * 10)
    assert [(description, total, sum(steps)) for description, total, steps in bars] == [
        ("Scoring with tiny-ranker", 600, 600),
        ("Scoring with bi", 600, 600),
    ]


def test_ranked_is_a_plain_record() -> None:
    assert Ranked(1, 2.0) == Ranked(index=1, score=2.0)


@pytest.mark.packaged
def test_the_packaged_cross_encoder_ranks(packaged_teacher: Path) -> None:
    """A foreign folder: model.onnx at its root, no config.json, truncation and padding baked into tokenizer.json."""
    teacher = OnnxRanker.load(packaged_teacher)
    documents = [
        "Bread is baked in ovens.",
        "A magnet works through the aligned spins of its electrons.",
        "Magnets are sold in shops.",
    ]
    ranking = teacher.rank("how do magnets work", documents)
    assert [item.index for item in ranking] == [1, 2, 0]
    assert ranking[0].score > 0 > ranking[2].score


@pytest.mark.packaged
def test_the_packaged_encoder_without_pooling_is_refused(packaged_teacher: Path) -> None:
    with pytest.raises(InputError, match="hidden states of every token"):
        OnnxRanker.load(packaged_teacher.parent / "bge_small_en")

"""Scores of an untouched ranker whose removed parts are switched off, for law 7."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def without_layers(*dropped: int) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs while skipping whole layers of the module."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.algorithms.calibration import calibration_batches, head_result, run_layers, scores_of

        module, kept = ranker.module, [index for index in range(len(ranker.spec.layers)) if index not in dropped]
        with torch.inference_mode():
            batches = calibration_batches(ranker, pairs)
            states = [run_layers(module, batch, batch.embedded, kept) for batch in batches]
            results = [head_result(module, batch, found) for batch, found in zip(batches, states, strict=True)]
            return scores_of(batches, results, len(pairs))

    return scores


def at_exit(layer: int) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs as the exit behind a layer of the whole module does."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.algorithms.calibration import calibration_batches, scores_of

        batches = calibration_batches(ranker, pairs)
        with torch.inference_mode():
            results = [ranker.module.trace(**batch.inputs).exits[layer].numpy() for batch in batches]
        return scores_of(batches, results, len(pairs))

    return scores


def with_first_neurons(share: float) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs while the module runs a share of each layer's neurons, the first."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.ranker.sub_network import SubNetwork, running

        widths = [round(layer.ffn_width * share) for layer in ranker.spec.layers]
        with running(ranker.module, SubNetwork(ffn_widths=widths)):
            return ranker.score(pairs)

    return scores


def with_largest_widths(share: float, round_to: int) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs while all but the heads and neurons of the largest matrices give zeros."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.algorithms.width_importance import Evidence, ranked_widths
        from compressor.passes.width_budget import shared_widths
        from compressor.ranker.cost import macs
        from tests.tiny import build_data

        data = build_data()
        lengths = ranker.tokenizer.encode_pairs(data.texts(data.sample_pairs(256, 12, 8))).lengths
        found = ranked_widths("magnitude", Evidence(spec=ranker.spec, weights=ranker.weights, queries=()))
        losses = [[ranking.losses.numpy() for ranking in kind] for kind in found]
        n_tokens = round(float(np.mean(lengths)))
        widths = shared_widths(ranker.spec, lambda spec: macs(spec, n_tokens), share, round_to, *losses)
        weights = dict(ranker.weights)
        for part, rankings, counts in zip(("attention.output", "ffn.down"), found, widths, strict=True):
            for index, (ranking, count) in enumerate(zip(rankings, counts, strict=True)):
                name = f"layers.{index}.{part}.weight"
                silent = weights[name].unflatten(1, (len(ranking.order), -1)).clone()
                silent[:, ranking.order[count:]] = 0
                weights[name] = silent.flatten(1)
        return ranker.changed(weights=weights).score(pairs)

    return scores


def with_most_active(n_heads: int, n_neurons: int, n_pairs: int = 256, seed: int = 12) -> Callable[..., np.ndarray]:
    """Return a function that scores pairs while all but a layer's most active heads and neurons give zeros."""

    def scores(ranker: Any, pairs: list[tuple[str, str]]) -> np.ndarray:
        from compressor.algorithms.activation_statistics import measure_activations
        from compressor.algorithms.calibration import calibration_batches
        from tests.tiny import build_data

        data = build_data()
        batches = calibration_batches(ranker, data.texts(data.sample_pairs(n_pairs, seed)))
        statistics, weights = measure_activations(ranker.module, batches), dict(ranker.weights)
        for index, layer in enumerate(ranker.spec.layers):
            quiet = statistics.heads[index].argsort()[:-n_heads, None] * layer.attention.head_width
            gone = {"attention.output": (quiet + torch.arange(layer.attention.head_width)).flatten()}
            gone["ffn.down"] = statistics.neurons[index].argsort()[:-n_neurons]
            for name, columns in gone.items():
                weight = weights[f"layers.{index}.{name}.weight"]
                weights[f"layers.{index}.{name}.weight"] = weight.index_fill(1, columns, 0.0)
        return ranker.changed(weights=weights).score(pairs)

    return scores

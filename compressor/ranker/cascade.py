"""Cascades in torch: a list of candidates of one query that shrinks between layers, and what every stage would score.

The runtime runs the same through the folder's graphs (`runtime/cascade.py`); this is what they are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.cascade_stages import Cascade, Place, depth_of
from compressor.progress import progress
from compressor.ranker.encoder import Encoder
from compressor.ranker.ranker import BATCH_TOKENS, Ranker
from compressor.ranker.tokens import TokenLayout
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.list_scores import ListScores, best, in_one_order

_NO_MATCH = -2.0  # below every cosine


def rank_list(ranker: Ranker, query: str, documents: Sequence[str]) -> ListScores:
    """Score one query's candidates through the ranker's cascade, all in one batch; at full depth without one.

    Args:
        ranker: a cross-encoder.
        query: its text.
        documents: the candidates, best first by the first stage.
    """
    cascade = ranker.spec.cascade and ranker.spec.cascade.without_idle_stages()
    pairs = [(query, document) for document in documents]
    if not cascade or not pairs:
        return ListScores(scores=ranker.score(pairs) if pairs else np.empty(0, dtype=np.float32))
    inputs = padded(ranker.tokenizer.encode_pairs(pairs), np.arange(len(pairs)), ranker.spec.pad_id)
    with torch.inference_mode():
        logits, stages = run_cascade(ranker.module, cascade, **{k: torch.from_numpy(v) for k, v in inputs.items()})
    return in_one_order(logits.numpy(), stages.numpy())


def run_cascade(
    module: Encoder, cascade: Cascade, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one list through the layers, dropping rows at every stage; those that stay are trimmed to their longest.

    Args:
        module: the encoder.
        cascade: its stages.
        input_ids, attention_mask, token_type_ids: int64 ``[C, S]``, as in `Encoder.forward`; rows in first-stage order,
            by which equal scores are told apart.

    Returns:
        float32 ``[C]``, the logit of the last stage that each row reached (of the head, for those that got there); and
        int64 ``[C]``, how many stages each row passed.
    """
    layout = module.lay_out(input_ids, attention_mask)
    values = module.embed(layout, input_ids, token_type_ids)
    rows = torch.arange(len(input_ids))
    logits, stages = values.new_empty(len(rows)), torch.zeros_like(rows)
    depth = 0
    for place, (stage, count) in enumerate(zip(cascade.stages, cascade.counts(len(rows)), strict=True)):
        for layer in module.layers[depth : depth_of(stage.behind)]:
            values = layer(values, layout)
        depth = depth_of(stage.behind)
        if stage.behind == "embeddings":
            found = similarity(module, layout, input_ids, token_type_ids)
        else:
            found = module.exit_logits(stage.behind, values, layout)
        logits[rows] = found[:, 0]
        kept = torch.from_numpy(best(found[:, 0].numpy(), count))
        layout, tokens = layout.keep_rows(kept)
        values, rows = values[tokens], rows[kept]
        stages[rows] = place + 1
    first_only = module.spec.reads_first_token_only
    for index, layer in enumerate(module.layers[depth:], start=depth):
        values = layer(values, layout, first_only and index == len(module.layers) - 1)
    logits[rows] = module.head(module.pool(values, layout, first_only))[:, 0]
    return logits, stages


def similarity(module: Encoder, layout: TokenLayout, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
    """Return the mean over a row's query tokens of the greatest cosine with one of its document's, ``[B, 1]``.

    Of token embeddings as they stand in the table. The first token belongs to neither; both separators stay, which add
    the same to every document.
    """
    rows = layout.pad(F.normalize(module.embeddings.tokens(layout.pack(input_ids)), dim=1))  # [B, S, W]
    document = layout.mask & (token_type_ids == 1)
    asking = layout.mask & (token_type_ids == 0)
    asking[:, 0] = False
    cosines = (rows @ rows.transpose(1, 2)).masked_fill(~document[:, None, :], _NO_MATCH)  # [B, S, S]
    found = (cosines.amax(dim=2) * asking).sum(dim=1, keepdim=True)
    return found / asking.sum(dim=1, keepdim=True).clamp(min=1)


def stage_logits(module: Encoder, places: Sequence[Place], inputs: Mapping[str, Tensor]) -> Tensor:
    """Return what each stage and the head score where nothing is dropped, ``[stages + 1, B]``, the head last."""
    trace = module.trace(**inputs)
    segments = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))
    found = [
        similarity(module, trace.layouts[0], inputs["input_ids"], segments)
        if place == "embeddings"
        else trace.exits[place]
        for place in places
    ]
    return torch.cat([*found, trace.logits], dim=1).T


def score_stages(ranker: Ranker, places: Sequence[Place], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Score pairs at every stage and by the head, with nothing dropped, float32 ``[stages + 1, n]``."""
    encoded = ranker.tokenizer.encode_pairs(pairs)
    scores = np.empty((len(places) + 1, len(pairs)), dtype=np.float32)
    with torch.inference_mode(), progress("Scoring at every stage", len(pairs)) as advance:
        for rows in token_budget_batches(encoded.lengths, BATCH_TOKENS):
            inputs = padded(encoded, rows, ranker.spec.pad_id)
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            scores[:, rows] = stage_logits(ranker.module, places, tensors).float().numpy()
            advance(len(rows))
    return scores

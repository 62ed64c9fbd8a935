"""How well a module in training ranks dev data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from compressor.data.ranking_data import RankingData
from compressor.errors import Fault, InputError
from compressor.ranker.encoder import Encoder
from compressor.runtime.batching import padded, token_budget_batches
from compressor.runtime.tokenizer import PairTokenizer
from compressor.training.precision import autocast
from compressor.training.settings import TrainingSettings

KENDALL_TAU = "kendall_tau"


def dev_metric(
    data: RankingData, tokenizer: PairTokenizer, settings: TrainingSettings, reference: np.ndarray | None = None
) -> Callable[[Encoder], float]:
    """Return a function that scores all candidates of ``data`` with a module and measures their order.

    Args:
        data: queries, candidates and, but for ``kendall_tau``, judgments.
        tokenizer: the module's.
        settings: names the measure (an ir-measures name, or ``kendall_tau`` to the teacher's scores), the precision and
            the tokens of a batch.
        reference: the teacher's scores of ``data.pairs()``, for ``kendall_tau``.

    Raises:
        InputError: the measure is unknown, or needs judgments that the data has not.
    """
    pairs = data.pairs()
    measure = _of_order(pairs, reference) if settings.dev_measure == KENDALL_TAU else _of_judgments(data, settings)
    encoded = tokenizer.encode_pairs(data.texts(pairs))
    batches = token_budget_batches(encoded.lengths, settings.batch_tokens)

    def evaluate(module: Encoder) -> float:
        device = next(module.parameters()).device
        was_training = module.training
        module.eval()
        scores = np.empty(len(pairs), dtype=np.float32)
        with torch.inference_mode(), autocast(settings.precision, device):
            for rows in batches:
                inputs = {
                    name: torch.from_numpy(array).to(device)
                    for name, array in padded(encoded, rows, tokenizer.pad_id).items()
                }
                scores[rows] = module(**inputs)[:, 0].float().cpu().numpy()
        module.train(was_training)
        return measure(scores)

    return evaluate


def _of_judgments(data: RankingData, settings: TrainingSettings) -> Callable[[np.ndarray], float]:
    import ir_measures

    if not data.qrels:
        fault = Fault(
            source=data.name, found=f"no judgments, which {settings.dev_measure} needs", allowed="judged dev data",
            fix=f"name another split as data.dev, or take 'dev_measure: {KENDALL_TAU}'",
        )  # fmt: skip
        raise InputError(fault)
    try:
        measure = ir_measures.parse_measure(settings.dev_measure)
    except (NameError, ValueError):
        found = f"the unknown measure '{settings.dev_measure}'"
        allowed = f"ir-measures names such as nDCG@10 or RR@10, or {KENDALL_TAU}"
        raise InputError(Fault(source="dev_measure", found=found, allowed=allowed)) from None

    def measured(scores: np.ndarray) -> float:
        run: dict[str, dict[str, float]] = {}
        for (query, document), score in zip(data.pairs(), scores, strict=True):
            run.setdefault(query, {})[document] = float(score)
        return float(ir_measures.calc_aggregate([measure], data.qrels, run)[measure])

    return measured


def _of_order(pairs: list[tuple[str, str]], reference: np.ndarray | None) -> Callable[[np.ndarray], float]:
    from scipy.stats import kendalltau

    if reference is None:
        raise ValueError("kendall_tau needs the teacher's scores")
    wanted = reference
    queries = np.unique([query for query, _ in pairs], return_inverse=True)[1]
    rows = [found for query in range(queries.max() + 1) if len(found := np.flatnonzero(queries == query)) > 1]

    def measured(scores: np.ndarray) -> float:
        taus = [kendalltau(scores[row], wanted[row]).statistic for row in rows]
        return float(np.mean(np.nan_to_num(taus)))  # a module that scores all alike agrees by chance: 0

    return measured

"""Batches of training lists: drawn each epoch, tokenized, laid out as rows and as lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compressor.data.ranking_data import Pair, RankingData
from compressor.runtime.batching import padded
from compressor.runtime.tokenizer import Encoded, PairTokenizer
from compressor.training.lists import ListSettings, TrainingList, draw_lists

Targets = Callable[[Sequence[Pair]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Whole lists of pairs, B rows in L lists of up to K items.

    Attributes:
        inputs: ``input_ids``, ``attention_mask``, ``token_type_ids``: int64 ``[B, S]``.
        index: int64 ``[L, K]``, the row of each item; 0 where ``mask`` is false.
        mask: bool ``[L, K]``, where a list has an item.
        pairs: (query id, document id) of each row.
        targets: teacher scores, float32 ``[L, K]``, NaN where unknown.
        labels: grades, float32 ``[L, K]``, NaN where the query is unjudged.
        weights: each list's factor, float32 ``[L]``.
        closeness: 1 / first-stage rank, float32 ``[L, K]``, 0 where there is none; None without a curriculum.
        progress: the share of the curriculum that is over, float32 ``[L]``.
    """

    inputs: dict[str, Tensor]
    index: Tensor
    mask: Tensor
    pairs: list[Pair]
    targets: Tensor | None
    labels: Tensor
    weights: Tensor
    closeness: Tensor | None
    progress: Tensor

    def listed(self, values: Tensor) -> Tensor:
        """Lay values of rows, ``[B, 1]``, out as lists, ``[L, K]``; masked places mean nothing."""
        return values.flatten()[self.index]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()},
            index=self.index.to(device),
            mask=self.mask.to(device),
            pairs=self.pairs,
            targets=moved(self.targets),
            labels=self.labels.to(device),
            weights=self.weights.to(device),
            closeness=moved(self.closeness),
            progress=self.progress.to(device),
        )


@dataclass(kw_only=True)
class ListSource:
    """Gives each epoch's lists and makes batches of them; rows are tokenized when they are first drawn.

    Attributes:
        data: queries, documents, candidates.
        tokenizer: the student's.
        settings: how lists are drawn.
        seed: for the draw.
        by_positive: whether lists are made around relevant documents.
        targets: returns the teacher's scores of pairs of ids, float32 with NaN where unknown; None without a teacher.
    """

    data: RankingData
    tokenizer: PairTokenizer
    settings: ListSettings
    seed: int
    by_positive: bool = False
    targets: Targets | None = None
    _epochs: dict[int, list[TrainingList]] = field(default_factory=dict)

    def lists(self, epoch: int) -> list[TrainingList]:
        """Return an epoch's lists; the last one asked for is kept."""
        if epoch not in self._epochs:
            lists = draw_lists(self.data, self.settings, epoch=epoch, seed=self.seed, by_positive=self.by_positive)
            self._epochs = {epoch: lists}
        return self._epochs[epoch]

    def encode(self, lists: Sequence[TrainingList]) -> Encoded:
        """Tokenize the pairs of some lists, list by list."""
        return self.tokenizer.encode_pairs(self.data.texts(_pairs(lists)))

    def batch(self, lists: Sequence[TrainingList], encoded: Encoded, rows: np.ndarray) -> Batch:
        """Return a batch of some lists, whose tokenized pairs are ``rows`` of ``encoded``."""
        pairs = _pairs(lists)
        inputs = {name: torch.from_numpy(array) for name, array in padded(encoded, rows, self.tokenizer.pad_id).items()}
        longest = max(len(one.documents) for one in lists)
        index = torch.zeros(len(lists), longest, dtype=torch.int64)
        mask = torch.zeros(len(lists), longest, dtype=torch.bool)
        labels = torch.full((len(lists), longest), torch.nan)
        closeness = torch.zeros(len(lists), longest) if self.settings.curriculum else None
        start = 0
        for place, one in enumerate(lists):
            size = len(one.documents)
            index[place, :size] = torch.arange(start, start + size)
            mask[place, :size] = True
            if one.labels is not None:
                labels[place, :size] = torch.tensor(one.labels)
            if closeness is not None:
                closeness[place, :size] = torch.tensor(one.closeness)
            start += size
        targets = None if self.targets is None else torch.from_numpy(self.targets(pairs).astype(np.float32))
        return Batch(
            inputs=inputs, index=index, mask=mask, pairs=pairs,
            targets=None if targets is None else targets[index].masked_fill(~mask, torch.nan),
            labels=labels,
            weights=torch.ones(len(lists)),
            closeness=closeness,
            progress=torch.tensor([one.progress for one in lists]),
        )  # fmt: skip


def _pairs(lists: Sequence[TrainingList]) -> list[Pair]:
    return [(one.query, document) for one in lists for document in one.documents]

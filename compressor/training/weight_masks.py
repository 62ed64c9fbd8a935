"""Which single weights stay, while a ranker is trained: pruned in steps, or by scores that learn along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.algorithms.sparse_masks import Scope, kept_weights
from compressor.algorithms.sparsity_patterns import SparsityPattern
from compressor.algorithms.sparsity_settings import Gradual, MovementSettings, cubic
from compressor.ranker.encoder import Encoder

Sparsify = Callable[[Mapping[str, Tensor], float], Mapping[str, Tensor]]
"""Takes a ranker's weights and a share of zeros; returns the weights with them."""


class WeightMasks(nn.Module, ABC):
    """Masks on the matrices of a module in training.

    All that the next step depends on is a parameter or a buffer, so that a killed training goes on exactly.

    Args:
        weights: the matrices ``[outputs, inputs]`` by name; what is zero in them stays zero.
        sparsity: the share of zeros in the end.
        pattern: of zeros.
        gradual: when they come.
    """

    step: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], sparsity: float, pattern: SparsityPattern, gradual: Gradual
    ) -> None:
        super().__init__()
        self.names, self.sparsity, self.pattern, self.gradual = list(weights), sparsity, pattern, gradual
        self.n_steps, self._weights = 1, list[nn.Parameter]()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for number, weight in enumerate(weights.values()):
            self.register_buffer(f"kept_{number}", weight != 0)

    @property
    def rates(self) -> Mapping[str, float]:
        """Constant learning rates of parameters, by the beginning of their names."""
        return {}

    @property
    def rewinds(self) -> Collection[int]:
        """Steps before which the schedule of the learning rate begins anew."""
        return ()

    @property
    def kept(self) -> dict[str, Tensor]:
        """Which weights stay now, bool ``[outputs, inputs]`` by name."""
        return {name: getattr(self, f"kept_{number}") for number, name in enumerate(self.names)}

    def install(self, module: Encoder, n_steps: int) -> None:
        """Get ready for a module that is trained for ``n_steps``."""
        self.n_steps, self._module = n_steps, [module]  # in a list: it is no part of this one
        self._weights = [module.get_parameter(name) for name in self.names]

    @property
    def module(self) -> Encoder:
        return self._module[0]

    def penalties(self) -> dict[str, Tensor]:
        """Return what is added to the loss, by name."""
        if not self.gradual.regularize or self.gradual.progress(int(self.step), self.n_steps) == 1:
            return {}
        size = self.pattern.size if self.pattern.kept is None else 1
        norms = [torch.linalg.vector_norm(one.unflatten(1, (-1, size)), dim=2) for one in self._weights]
        total = torch.stack([one.sum() for one in norms]).sum()
        return {"size": self.gradual.regularize * total / sum(one.numel() for one in norms)}

    @torch.no_grad()
    def after_step(self) -> None:
        """Count a step of the optimizer, and prune where it is time."""
        self.step += 1
        self.prune()

    @abstractmethod
    def prune(self) -> None:
        """Set masks, and weights that masks are in, as they have to be behind the step."""

    @abstractmethod
    def final(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a trained ranker's weights with their zeros."""

    def _keep(self, kept: Mapping[str, Tensor]) -> None:
        for name, own in self.kept.items():
            own.copy_(kept[name])


class StepwiseMasks(WeightMasks):
    """Masks that are chosen anew a few times, by a method that needs no training (gradual pruning, arXiv 1710.01878).

    Weights are zero where nothing is kept, behind every step; those that a pruning makes up with start from there.

    Args:
        sparsify: the method.
        masks: as of `WeightMasks`.
    """

    def __init__(self, sparsify: Sparsify, *masks: Any) -> None:
        super().__init__(*masks)
        self._sparsify = sparsify

    @property
    def shares(self) -> dict[int, float]:
        """The share of zeros behind each pruning, by step."""
        return self.gradual.shares(self.sparsity, self.n_steps)

    @property
    def rewinds(self) -> Collection[int]:
        return list(self.shares) if self.gradual.rewind else ()

    def prune(self) -> None:
        if share := self.shares.get(int(self.step)):
            own = {name: one.detach().float().cpu().clone() for name, one in self.module.state_dict().items()}
            pruned = self._sparsify(own, share)
            self._keep({name: pruned[name] != 0 for name in self.names})
            for name, weight in zip(self.names, self._weights, strict=True):
                weight.copy_(pruned[name])
        for weight, kept in zip(self._weights, self.kept.values(), strict=True):
            weight.mul_(kept)  # moments from before a pruning move weights on

    def final(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(weights)  # zeros are in them


class MovementMasks(WeightMasks):
    """Movement pruning (arXiv 2005.07683): a score for each weight, which grows where the weight moves away from zero.

    A product reads weights through their mask; a score gets the mask's gradient straight through, ``∂L/∂W' · W``. What
    is masked keeps its last value, and may come back. In blocks, and N of M, scores of neighbors are compared as sums.

    Memory: three more copies of the matrices beside what AdamW keeps of the weights, scores and their moments.

    Args:
        scope: where the least scores are looked for.
        settings: how scores decide.
        masks: as of `WeightMasks`.
    """

    def __init__(self, scope: Scope, settings: MovementSettings, *masks: Any) -> None:
        super().__init__(*masks)
        self.scope, self.settings = scope, settings
        self._was_zero = [~kept for kept in self.kept.values()]
        self.scores = nn.ParameterList([torch.zeros(kept.shape) for kept in self.kept.values()])

    @property
    def rates(self) -> Mapping[str, float]:
        return {"scores.": self.settings.learning_rate}

    def install(self, module: Encoder, n_steps: int) -> None:
        super().install(module, n_steps)
        for number, name in enumerate(self.names):
            linear: Any = module.get_submodule(name.removesuffix(".weight"))
            linear.mask = partial(self._masked, number)

    def penalties(self) -> dict[str, Tensor]:
        found = super().penalties()
        if self.settings.threshold == "soft" and self._limit:
            means = torch.stack([one.sigmoid().sum() for one in self.scores]).sum() / sum(map(torch.numel, self.scores))
            found["sparsity"] = self.settings.penalty * self._limit / self.settings.limit * means
        return found

    def prune(self) -> None:
        progress = self.gradual.progress(int(self.step), self.n_steps)
        if self.settings.threshold == "hard":
            self._keep(self._best(cubic(0, self.sparsity, progress)))
        else:
            self._keep(self._above(self._limit))

    @torch.no_grad()
    def final(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = self._best(self.sparsity)
        if self.settings.threshold == "soft" and self.pattern.kept is None:
            opened = self._above(self.settings.limit)
            kept = {name: kept[name] & opened[name] for name in self.names}
        return {**weights, **{name: weights[name] * kept[name].cpu() for name in self.names}}

    @property
    def _limit(self) -> float:
        return cubic(0, self.settings.limit, self.gradual.progress(int(self.step), self.n_steps))

    def _masked(self, number: int, weight: Tensor) -> Tensor:
        score, kept = self.scores[number], getattr(self, f"kept_{number}")
        return weight * (kept + (score - score.detach()))

    def _best(self, sparsity: float) -> dict[str, Tensor]:
        units = dict(zip(self.names, self._units(), strict=True))
        kept = kept_weights(units, sparsity, self.pattern.at(sparsity), self.scope)
        return {name: one & ~gone for (name, one), gone in zip(kept.items(), self._zeros(), strict=True)}

    def _above(self, limit: float) -> dict[str, Tensor]:
        size = self.pattern.size if self.pattern.kept is None else 1
        opened = [(one.sigmoid() > limit).repeat_interleave(size, dim=1) for one in self._units(mean=True)]
        return {name: one & ~gone for name, one, gone in zip(self.names, opened, self._zeros(), strict=True)}

    def _units(self, *, mean: bool = False) -> Sequence[Tensor]:
        """Return the scores of what stays or goes: weights, or sums (means) over blocks; of zeros, the least."""
        found = [one.masked_fill(gone, -torch.inf) for one, gone in zip(self.scores, self._zeros(), strict=True)]
        if self.pattern.kept is not None or self.pattern.size == 1:
            return found
        blocks = [one.unflatten(1, (-1, self.pattern.size)) for one in found]
        return [one.mean(dim=2) if mean else one.sum(dim=2) for one in blocks]

    def _zeros(self) -> list[Tensor]:
        """Return what was zero before training, on the scores' device."""
        return [gone.to(score.device) for gone, score in zip(self._was_zero, self.scores, strict=True)]

"""Learned maps from a student's states to its wider or narrower teacher's; thrown away after training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.algorithms.linear_fits import Moments, prediction
from compressor.ranker.encoder import Encoder
from compressor.ranker.trace import Trace
from compressor.training.batches import Batch
from compressor.training.matches import StateMatch, same_tokens


class Projections(nn.Module):
    """An affine map for each matched state; none where widths are equal, unless asked for.

    Args:
        matches: what is matched.
        width: the student's.
        teacher_width: the teacher's.
        seed: for their start, which is orthogonal until they are fitted.
        always: where widths are equal, too: for a student that is about to lose some of its dimensions.
    """

    def __init__(
        self, matches: Sequence[StateMatch], width: int, teacher_width: int, seed: int, always: bool = False
    ) -> None:
        super().__init__()
        self.maps, self.constants = nn.ParameterDict(), nn.ParameterDict()
        self._states = {} if width == teacher_width and not always else {
            _name(match, own): (own, theirs) for match in matches for own, theirs in match.states.items()
        }  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        for name in self._states:
            self.maps[name] = nn.Parameter(nn.init.orthogonal_(torch.empty(teacher_width, width), generator=generator))
            self.constants[name] = nn.Parameter(torch.zeros(teacher_width))

    def project(self, values: Tensor, match: StateMatch, state: int) -> Tensor:
        """Map a student's state ``[T, width]`` to ``[T, teacher width]``."""
        name = _name(match, state)
        if name not in self.maps:
            return values
        return F.linear(values, self.maps[name].to(values.dtype), self.constants[name].to(values.dtype))

    @torch.no_grad()
    def fit(self, student: Encoder, teacher: Callable[[Batch], Trace], batches: Iterator[Batch]) -> None:
        """Start from least squares on some batches: what the student's states say of the teacher's as they are.

        A student that was cut out of its teacher so begins near it, where random maps would have it forget that.
        """
        moments = {name: Moments() for name in self._states}
        was_training = student.training
        student.eval()
        for batch in batches:
            own, theirs = student.trace(**batch.inputs), teacher(batch)
            for name, (state, other) in self._states.items():
                left, right = same_tokens(own, state, theirs, other)
                moments[name].add(torch.cat([left.float(), right.float()], dim=1).cpu())
        student.train(was_training)
        for name, found in moments.items():
            width = self.maps[name].shape[1]
            factors, constants = prediction(found, torch.arange(width), centered=True)
            for parameter, start in ((self.maps[name], factors), (self.constants[name], constants)):
                parameter.copy_(broadcast(start[width:].to(parameter.device)))


def _name(match: StateMatch, state: int) -> str:
    return f"{match.name}_{state}"

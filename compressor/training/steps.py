"""Which lists make a step, in which order, and how a step is cut into micro-batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from compressor.errors import RunError
from compressor.training.batches import Batch, ListSource
from compressor.training.lists import TrainingList
from compressor.training.settings import TrainingSettings

WINDOW_STEPS = 16  # lists of so many steps are sorted by length among themselves: order stays random at large


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The steps of a whole training; equal fields give equal steps, so a resumed one can skip those that are done."""

    source: ListSource
    settings: TrainingSettings
    seed: int

    def count(self) -> int:
        """Return how many steps the training has.

        Raises:
            RunError: the data gives no list.
        """
        settings = self.settings
        if not settings.epochs:
            return 0
        per_epoch = [len(self._of(epoch)) for epoch in range(math.ceil(settings.epochs))]
        n_steps = math.ceil(sum(per_epoch[:-1]) + per_epoch[-1] * (settings.epochs - len(per_epoch) + 1))
        if settings.max_pairs is not None:
            n_steps = min(n_steps, -(-settings.max_pairs // (settings.lists_per_step * settings.lists.list_size)))
        if not n_steps:
            raise RunError(f"{self.source.data.name} gives no training list of two candidates or more")
        return n_steps

    def after(self, done: int, n_steps: int) -> Iterator[list[TrainingList]]:
        """Yield the lists of each step from ``done`` to ``n_steps``, each told how much of a curriculum is over."""
        span = self.settings.lists.curriculum_share * n_steps if self.settings.lists.curriculum else 0.0
        start, epoch = 0, 0
        while start < n_steps:
            steps = self._of(epoch)
            for place, numbers in enumerate(steps[: n_steps - start], start=start):
                if place >= done:
                    lists = self.source.lists(epoch)
                    drawn = [lists[number] for number in numbers]
                    yield [replace(one, progress=place / span) for one in drawn] if place < span else drawn
            start, epoch = start + len(steps), epoch + 1

    def first(self, n_pairs: int) -> Iterator[list[TrainingList]]:
        """Yield the lists of the first steps that have so many pairs together."""
        for lists in self.after(0, self.count()):
            yield lists
            n_pairs -= sum(len(one.documents) for one in lists)
            if n_pairs <= 0:
                return

    def _of(self, epoch: int) -> list[list[int]]:
        data, lists = self.source.data, self.source.lists(epoch)
        lengths = [
            len(data.queries[one.query]) + max(len(data.documents[each]) for each in one.documents) for one in lists
        ]
        return plan_steps(lengths, self.settings.lists_per_step, seed=self.seed, epoch=epoch)


def plan_steps(lengths: Sequence[int], lists_per_step: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Group lists into steps: shuffled, sorted by length inside windows of `WINDOW_STEPS` steps, steps shuffled again.

    Lists of like length share a step, so little attention is spent on padding, while a step's lists stay a random
    choice; equal arguments give equal steps.

    Args:
        lengths: a length for each list, such as the characters of its longest pair.
        lists_per_step: lists in each step; what is left over for the last one is dropped, unless it is all there is.
        seed: for the shuffles.
        epoch: from 0.
    """
    draw = random.Random(f"steps {seed} {epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    steps = []
    for start in range(0, len(order), WINDOW_STEPS * lists_per_step):
        window = sorted(order[start : start + WINDOW_STEPS * lists_per_step], key=lambda one: lengths[one])
        steps += [window[at : at + lists_per_step] for at in range(0, len(window), lists_per_step)]
    whole = [step for step in steps if len(step) == lists_per_step] or steps
    draw.shuffle(whole)
    return whole


def batches_of(source: ListSource, lists: Sequence[TrainingList], batch_tokens: int) -> Iterator[Batch]:
    """Encode lists and cut them into micro-batches of whole lists, of at most ``batch_tokens`` where a list allows."""
    if not lists:
        return
    encoded = source.encode(lists)
    ends = np.cumsum([len(one.documents) for one in lists])
    rows = np.split(np.arange(ends[-1]), ends[:-1])
    for group in micro_batches([encoded.lengths[each] for each in rows], batch_tokens):
        chosen = np.concatenate([rows[one] for one in group])
        yield source.batch([lists[one] for one in group], encoded, chosen)


def micro_batches(lengths: Sequence[np.ndarray], budget_tokens: int) -> list[list[int]]:
    """Cut a step's lists into groups that stay under a budget of rows × longest row; a longer list stands alone.

    Args:
        lengths: for each list, the tokens of its rows.
        budget_tokens: most tokens of a group, padding included.
    """
    order = sorted(range(len(lengths)), key=lambda one: (-int(lengths[one].max()), one))
    groups: list[list[int]] = []
    rows = longest = 0
    for one in order:
        n_rows = len(lengths[one])
        if groups and (rows + n_rows) * longest <= budget_tokens:
            groups[-1].append(one)
            rows += n_rows
        else:
            groups.append([one])
            rows, longest = n_rows, int(lengths[one].max())
    return groups


def finite_loss(name: str, value: Tensor, step: int) -> float:
    """Return a part of the loss as a number.

    Raises:
        RunError: it is NaN or infinite; names the step and the part.
    """
    number = float(value.detach())
    if not math.isfinite(number):
        raise RunError(
            f"the loss '{name}' is {number} at step {step}: lower learning_rate, or look for broken scores or labels"
        )
    return number

"""The training loop: steps of several lists, micro-batches, dev evaluation, exact resume, several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor, nn

from compressor.ranker.encoder import Encoder
from compressor.ranker.sub_network import WHOLE, SubNetwork, running
from compressor.storage import sha256_json
from compressor.training.batches import Batch, ListSource
from compressor.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    named_moments,
    restore_moments,
    save_checkpoint,
)  # fmt: skip
from compressor.training.curves import BestOnDev, CurveBook
from compressor.training.kept_zeros import KeptZeros
from compressor.training.lists import TrainingList
from compressor.training.live_line import Speed, live_line
from compressor.training.memory import memory_of_training
from compressor.training.optimizer import MovingAverage, build_optimizer, learning_rate
from compressor.training.precision import autocast
from compressor.training.processes import average_gradients
from compressor.training.result import TrainingResult
from compressor.training.settings import TrainingSettings
from compressor.training.steps import StepPlan, batches_of, finite_loss

Loss = Callable[[Encoder, Batch], Mapping[str, Tensor]]
Prepare = Callable[[Encoder, Iterator[Batch]], None]
Parts = Callable[[int], Sequence[SubNetwork]]

_PREPARED_ON_PAIRS = 128


def train(
    module: Encoder,
    source: ListSource,
    loss: Loss,
    settings: TrainingSettings,
    *,
    scratch: Path,
    seed: int,
    evaluate: Callable[[Encoder], float] | None = None,
    after_step: Callable[[Encoder], None] | None = None,
    extra: nn.Module | None = None,
    rates: Mapping[str, float] | None = None,
    prepare: Prepare | None = None,
    parts: Parts | None = None,
    rewinds: Collection[int] = (),
    key: str = "",
) -> TrainingResult:
    """Train a module in place and return its weights.

    Runs on accelerate's devices: a GPU where there is one, and each process of ``accelerate launch`` takes its share of
    every step's lists. A killed run goes on from its last checkpoint with the same losses as an unbroken one. Weights
    that are zero in matrices that the spec declares sparse stay zero.

    Args:
        module: the student, fp32.
        source: its lists and their pairs.
        loss: the weighted parts of a batch's loss by name, each a mean; their sum is minimized.
        settings: how long, how fast, how exactly.
        scratch: where checkpoints are kept.
        seed: for the order of lists and for dropout.
        evaluate: measures the module on dev data, higher is better; called every ``settings.evaluate_every`` steps.
        after_step: called with the module after each step of the optimizer.
        extra: parameters that are trained along, and buffers; no part of the result.
        rates: constant ones of some of ``extra``'s parameters, by the beginning of their names; their gradients stay.
        prepare: called before the first step with the module and some of the first batches, to set ``extra``.
        parts: which parts of the module a step of that number trains, by the mean of their losses; None for the whole.
        rewinds: steps before which the schedule of the learning rate begins anew.
        key: hash of what else the loss depends on: checkpoints under another key are not used.

    Raises:
        RunError: a loss is NaN or infinite; names the step and the part.
    """
    with memory_of_training(on_cpu=not torch.cuda.is_available()):
        return _Run(
            module, source, loss, settings, scratch, seed, evaluate, after_step, extra, rates or {}, prepare, parts,
            rewinds, key,
        ).result()  # fmt: skip


@dataclass
class _Run:
    module: Encoder
    source: ListSource
    loss: Loss
    settings: TrainingSettings
    scratch: Path
    seed: int
    evaluate: Callable[[Encoder], float] | None
    after_step: Callable[[Encoder], None] | None
    extra: nn.Module | None
    rates: Mapping[str, float]
    prepare: Prepare | None
    parts: Parts | None
    rewinds: Collection[int]
    loss_key: str
    step: int = 0
    pairs: int = 0
    seconds_before: float = 0.0
    stopped_early: bool = False
    book: CurveBook = field(default_factory=CurveBook)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.device = self.state.device if self.state.device.type == "cuda" else torch.device("cpu")
        settings = self.settings
        self.module.to(self.device).train(settings.dropout)
        self.module.gradient_checkpointing = settings.gradient_checkpointing
        named = {name: one for name, one in self.module.named_parameters() if one.requires_grad}
        if self.extra is not None:
            self.extra.to(self.device)
            named |= {f"extra.{name}": one for name, one in self.extra.named_parameters()}
        self.parameters = named
        self.frozen = {name for name, one in self.module.named_parameters() if not one.requires_grad}
        rates = {
            name: rate for start, rate in self.rates.items() for name in named if name.startswith(f"extra.{start}")
        }
        self.clipped = [one for name, one in named.items() if name not in rates]
        self.zeros = KeptZeros(self.module)
        self.optimizer = build_optimizer(named, settings, rates)
        self.average = MovingAverage(settings.ema, self._weights()) if settings.ema is not None else None
        self.best = BestOnDev(patience=settings.patience)
        self.steps = StepPlan(source=self.source, settings=settings, seed=self.seed)
        self.n_steps = self.steps.count()
        shapes = {name: list(one.shape) for name, one in named.items()}
        # Another set of processes sums in another order: its losses are as good, but not the same.
        data, n_processes = self.source.data.fingerprint, self.state.num_processes
        self.key = sha256_json([settings.model_dump(mode="json"), self.seed, self.loss_key, data, shapes, n_processes])

    def result(self) -> TrainingResult:
        torch.manual_seed(self.seed)
        if not self._resume() and self.prepare and self.n_steps:
            self.prepare(self.module, self._first_batches())
        speed, saved_at = Speed(), time.monotonic()
        with live_line(self.n_steps, self.step, is_shown=self.state.is_main_process) as show:
            for lists in self.steps.after(self.step, self.n_steps):
                total, n_pairs = self._one_step(lists)
                speed.add(n_pairs)
                if self._is_due():
                    start = time.perf_counter()
                    self._evaluate()
                    speed.leave_out(time.perf_counter() - start)
                show(self.step, total, self._dev_text(), speed.pairs_per_s)
                if self.stopped_early:
                    break
                if self._agreed(time.monotonic() - saved_at >= self.settings.checkpoint_every_s):
                    self._save()
                    saved_at = time.monotonic()
        self._save()
        best = self.best.weights or (self.average.weights if self.average else {})
        weights = {**self.module.state_dict(), **best}
        return TrainingResult(
            weights={
                name: (weight.float() if weight.is_floating_point() else weight).detach().cpu().clone()
                for name, weight in weights.items()
            },
            curves=self.book.thinned(),
            steps=self.step,
            pairs=self.pairs,
            seconds=self._seconds(),
            pairs_per_s=speed.pairs_per_s,
            stopped_early=self.stopped_early,
        )

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _weights(self) -> dict[str, Tensor]:
        """Return what training may change: parameters that are not frozen, and buffers."""
        return {name: one for name, one in self.module.state_dict().items() if name not in self.frozen}

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict({**self.module.state_dict(), **weights})

    def _one_step(self, lists: list[TrainingList]) -> tuple[float, int]:
        rate = learning_rate(self.settings, self.step, self.n_steps, self.rewinds)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if group.get("constant") else rate
        found: dict[str, float] = {}
        parts = self.parts(self.step) if self.parts else [WHOLE]
        own = lists[self.state.process_index :: self.state.num_processes]
        for batch in self._batches(own):
            share = len(batch.mask) / len(lists) / len(parts)
            for part in parts:
                with running(self.module, part), autocast(self.settings.precision, self.device):
                    losses = self.loss(self.module, batch)
                total = torch.stack(list(losses.values())).sum()
                for name, value in losses.items():
                    found[name] = found.get(name, 0.0) + share * finite_loss(name, value, self.step + 1)
                (total * share).backward()
        if self.state.num_processes > 1:
            average_gradients(list(self.parameters.values()), self.device)
            found = {
                name: float(reduce(torch.tensor(value, device=self.device), "sum")) for name, value in found.items()
            }
        self.zeros.mask_gradients()
        torch.nn.utils.clip_grad_norm_(self.clipped, self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.after_step:
            self.after_step(self.module)
        self.step += 1
        n_pairs = sum(len(one.documents) for one in lists)
        self.pairs += n_pairs
        if self.average:
            self.average.update(self._weights(), self.step)
        loss = sum(found.values())
        curves = {"loss": loss, **{f"loss/{name}": value for name, value in found.items()}, "learning_rate": rate}
        self.book.record(self.pairs, curves)
        return loss, n_pairs

    def _first_batches(self) -> Iterator[Batch]:
        for lists in self.steps.first(_PREPARED_ON_PAIRS):
            yield from self._batches(lists)

    def _batches(self, lists: list[TrainingList]) -> Iterator[Batch]:
        for batch in batches_of(self.source, lists, self.settings.batch_tokens):
            yield batch.to(self.device)

    def _is_due(self) -> bool:
        every = self.settings.evaluate_every
        return bool(self.evaluate and every and (self.step % every == 0 or self.step == self.n_steps))

    def _evaluate(self) -> None:
        assert self.evaluate is not None  # noqa: S101  # `_is_due` asked
        own = self._weights()
        if self.average:
            kept = {name: weight.clone() for name, weight in own.items()}
            self._put(self.average.weights)
        dev = self.evaluate(self.module)
        self.book.record(self.pairs, {f"dev/{self.settings.dev_measure}": dev})
        self.best.take(dev, self._weights())
        if self.average:
            self._put(kept)
        self.stopped_early = self.best.is_over

    def _dev_text(self) -> str:
        dev = self.book.last(f"dev/{self.settings.dev_measure}")
        return "" if dev is None else f"{self.settings.dev_measure} {dev:.4f}"

    def _agreed(self, wish: bool) -> bool:
        """Return the main process's wish: clocks differ, and checkpoints are taken together."""
        return bool(broadcast_object_list([wish])[0]) if self.state.num_processes > 1 else wish

    def _save(self) -> None:
        if self.state.is_main_process and self.n_steps:
            names = {id(one): name for name, one in self.parameters.items()}
            tensors = {f"module.{name}": weight for name, weight in self._weights().items()}
            extra = self.extra.state_dict() if self.extra is not None else {}
            tensors |= {f"extra.{name}": one for name, one in extra.items()}
            tensors |= {f"best.{name}": weight for name, weight in self.best.weights.items()}
            tensors |= {f"average.{name}": one for name, one in (self.average.weights if self.average else {}).items()}
            tensors |= named_moments(self.optimizer, names) | {"random": torch.get_rng_state()}
            values = {"pairs": self.pairs, "best": self.best.counters(), "curves": self.book.points}
            values |= {"stopped_early": self.stopped_early, "seconds": self._seconds()}
            save_checkpoint(self.scratch, Checkpoint(key=self.key, step=self.step, tensors=tensors, values=values))
        self.state.wait_for_everyone()

    def _resume(self) -> bool:
        found = load_checkpoint(self.scratch, self.key)
        if found is None:
            return False
        tensors, values = found.tensors, found.values

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): one.to(self.device)
                for name, one in tensors.items()
                if name.startswith(prefix)
            }

        self._put(part("module."))
        if self.extra is not None:
            self.extra.load_state_dict(part("extra."))
        restore_moments(self.optimizer, {id(one): name for name, one in self.parameters.items()}, tensors)
        self.best.restore(values["best"], part("best."))
        if self.average:
            self.average.weights = part("average.")
        torch.set_rng_state(tensors["random"])
        self.step, self.pairs, self.seconds_before = found.step, values["pairs"], values.get("seconds", 0.0)
        self.book.restore(values["curves"])
        if values["stopped_early"]:
            self.stopped_early, self.n_steps = True, self.step
        return True

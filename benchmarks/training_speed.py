"""How many pairs a second does training see? Our loop against a plain transformers Trainer, the same 6-layer student.

Both train layers 1, 3, 5, 7, 9 and 11 of the packaged teacher on squared errors of one logit: same pairs a step, AdamW
settings, precision and threads, no dropout. (Targets are made up: speed does not depend on them.) Two settings:

- ``equal``: every pair has the same number of tokens, so nobody pads. Ours must be within 10 % of the best Trainer.
- ``mixed``: pairs as they come. The Trainer pads to the longest of a batch, as `DataCollatorWithPadding` does, with
  random batches (its default) and with batches of like length (``group_by_length``). Ours should be at least 1.3 times
  as fast as the default, and ahead of the sorted one.

The Trainer's data set is tokenized before the clock starts; our loop tokenizes as it goes. Each Trainer runs with
``sdpa`` attention (transformers' default) and with ``eager``, and the faster of the two is what we compare with. Rows
take turns in rounds; what counts is the median of ratios within a round.

    python benchmarks/training_speed.py --collection path/to/msmarco-unlabelled
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from compressor.bench.machine import describe_machine
from compressor.data import RankingData, load_data
from compressor.data_reference import DataReference
from compressor.errors import RankpressError
from compressor.families import load_teacher
from compressor.families.stock import stock_checkpoint
from compressor.passes.kept_layers import cut_spec, cut_weights
from compressor.ranker.ranker import Ranker
from compressor.ranker.spec import DropoutSpec
from compressor.runtime.tokenizer import PairTokenizer
from compressor.storage import write_json, write_whole
from compressor.training.batches import Batch, ListSource
from compressor.training.loop import train
from compressor.training.precision import computes_in_bf16
from compressor.training.settings import TrainingSettings

OURS = "rankpress"
LAYERS = (1, 3, 5, 7, 9, 11)
WARM_UP_STEPS = 3
# Setting → row → the least ratio that is asked for, of our speed to that row's (the better of its two attentions).
FLOORS = {"equal": {"trainer": 0.9}, "mixed": {"trainer": 1.3, "trainer_grouped": 1.0}}


class Clock:
    """Notes when steps end; the first ones, which warm caches up, do not count."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def step(self) -> None:
        """Note the end of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ends.append(time.perf_counter())

    def pairs_per_s(self, pairs_per_step: int) -> float:
        """Return the speed behind the warm-up."""
        counted = len(self._ends) - WARM_UP_STEPS
        return counted * pairs_per_step / (self._ends[-1] - self._ends[WARM_UP_STEPS - 1])


def main() -> int:
    """Measure, write the tables, and return 0 where every floor holds."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        result = measure(arguments)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_json(arguments.out / "training_speed.json", result)
    text = report(result)
    write_whole(arguments.out / "training_speed.md", text)
    print(text)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all rows of both settings, in turns."""
    reference = DataReference(
        collection=arguments.collection, split=arguments.split, candidates="bm25:96", queries=arguments.queries
    )
    data = load_data(reference, base=Path.cwd())
    student = _student(load_teacher("packaged", Path.cwd()))
    bf16 = computes_in_bf16("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        stock_checkpoint(student, Path(folder) / "stock")
        for name in FLOORS:
            cut = PairTokenizer.from_files(student.tokenizer_files, max_length=arguments.equal_tokens)
            tokenizer = cut if name == "equal" else student.tokenizer
            chosen = _whole_lists(data, cut if name == "equal" else None)
            rows = _rows(name, student, tokenizer, chosen, Path(folder), arguments, bf16)
            speeds: dict[str, list[float]] = {row: [] for row in rows}
            for number in range(arguments.rounds):
                for row in list(rows) if number % 2 == 0 else reversed(rows):
                    speeds[row].append(rows[row](number))
                    print(f"{name}, round {number + 1}: {row} {speeds[row][-1]:.1f} pairs/s", file=sys.stderr)
            lengths = tokenizer.encode_pairs(chosen.texts(chosen.pairs())).lengths
            found[name] = {"mean_tokens": round(float(lengths.mean()), 1), "pairs_per_s": speeds}
    return {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine().model_dump(mode="json"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": arguments.threads,
        "precision": "bf16" if bf16 else "fp32",
        "data": {"name": data.name, "fingerprint": data.fingerprint, "first_stage": data.first_stage},
        "pairs_per_step": arguments.pairs_per_step,
        "steps": arguments.steps,
        "settings": found,
        "checks": [check for name in FLOORS for check in _checks(name, found[name]["pairs_per_s"])],
    }


def _student(teacher: Ranker) -> Ranker:
    spec = cut_spec(teacher.spec, LAYERS).changed(dropout=DropoutSpec())
    return teacher.changed(spec=spec, weights=cut_weights(teacher.weights, LAYERS))


def _whole_lists(data: RankingData, tokenizer: PairTokenizer | None) -> RankingData:
    """Keep candidates that fill lists of 8; with a tokenizer, only pairs that fill its length."""
    pairs = data.pairs()
    lengths = tokenizer.encode_pairs(data.texts(pairs)).lengths if tokenizer else None
    kept: dict[str, list[str]] = {}
    for place, (query, document) in enumerate(pairs):
        if tokenizer is None or lengths is None or lengths[place] == tokenizer.max_length:
            kept.setdefault(query, []).append(document)
    whole = {query: found[: len(found) // 8 * 8] for query, found in kept.items() if len(found) >= 8}
    return replace(data, queries={query: data.queries[query] for query in whole}, candidates=whole)


def _rows(
    name: str, student: Ranker, tokenizer: PairTokenizer, data: RankingData, folder: Path,
    arguments: argparse.Namespace, bf16: bool,
) -> dict[str, Callable[[int], float]]:  # fmt: skip
    """Return, by name of row, what runs one round and returns pairs a second."""
    encoded = tokenizer.encode_pairs(data.texts(data.pairs()))
    targets = _targets(data.pairs())
    features = [
        {
            "input_ids": ids.tolist(),
            "token_type_ids": types.tolist(),
            "attention_mask": [1] * len(ids),
            "labels": target,
        }
        for ids, types, target in zip(encoded.input_ids, encoded.type_ids, targets.tolist(), strict=True)
    ]
    rows = {OURS: lambda seed: _run_ours(student, tokenizer, data, arguments, bf16, seed)}
    for row in FLOORS[name]:
        for attention in ("sdpa", "eager"):

            def run(seed: int, row: str = row, attention: str = attention) -> float:
                return _run_trainer(folder, features, row, attention, arguments, bf16, seed)

            rows[f"{row}_{attention}"] = run
    return rows


def _targets(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    numbers = [zlib.crc32(f"{query} {document}".encode()) for query, document in pairs]
    return (np.array(numbers) / 2**32 * 10 - 5).astype(np.float32)


def _run_ours(
    student: Ranker, tokenizer: PairTokenizer, data: RankingData, arguments: argparse.Namespace, bf16: bool, seed: int
) -> float:
    n_steps = WARM_UP_STEPS + arguments.steps
    n_pairs = n_steps * arguments.pairs_per_step
    settings = TrainingSettings(
        epochs=math.ceil(n_pairs / len(data.pairs())) + 1, max_pairs=n_pairs, checkpoint_every_s=1e9,
        lists_per_step=arguments.pairs_per_step // 8, learning_rate=1e-5, schedule="constant",
        precision="bf16" if bf16 else "fp32",
    )  # fmt: skip

    def loss(module: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        assert batch.targets is not None  # noqa: S101 - the source has them
        errors = (batch.listed(module(**batch.inputs)).float() - batch.targets)[batch.mask]
        return {"mse": errors.square().mean()}

    clock = Clock()
    source = ListSource(data=data, tokenizer=tokenizer, settings=settings.lists, seed=seed, targets=_targets)
    with TemporaryDirectory() as scratch:
        train(
            student.trainable(), source, loss, settings, scratch=Path(scratch), seed=seed,
            after_step=lambda module: clock.step(),
        )  # fmt: skip
    return clock.pairs_per_s(arguments.pairs_per_step)


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        self._clock.step()


def _run_trainer(
    folder: Path, features: list[dict[str, Any]], row: str, attention: str, arguments: argparse.Namespace, bf16: bool,
    seed: int,
) -> float:  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder / "stock", attn_implementation=attention)
    model.config.problem_type = "regression"
    clock = Clock()
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=WARM_UP_STEPS + arguments.steps, bf16=bf16, seed=seed,
        per_device_train_batch_size=arguments.pairs_per_step, learning_rate=1e-5, lr_scheduler_type="constant",
        optim="adamw_torch_fused", adam_beta2=0.98, weight_decay=0.01, max_grad_norm=1.0, save_strategy="no",
        logging_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if row == "trainer_grouped" else "random",
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=settings, train_dataset=features, callbacks=[_Ticks(clock)],
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder / "stock")),
    )  # fmt: skip
    trainer.train()
    return clock.pairs_per_s(arguments.pairs_per_step)


def _checks(name: str, speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    checks = []
    for row, floor in FLOORS[name].items():
        best = max((f"{row}_{attention}" for attention in ("sdpa", "eager")), key=lambda one: np.median(speeds[one]))
        ratios = np.array(speeds[OURS]) / np.array(speeds[best])
        ratio = float(np.median(ratios))
        low, high = float(ratios.min()), float(ratios.max())
        checks.append({"setting": name, "against": best, "ratio": ratio, "lowest": low, "highest": high, "floor": floor,
                       "holds": ratio >= floor})  # fmt: skip
    return checks


def report(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    versions = result["machine"]["versions"]
    lines = [
        "# Speed of training", "",
        f"{result['machine']['cpu']}, {result['threads']} threads, device {result['device']}, {result['precision']}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}; 6-layer student of the packaged teacher, "
        f"{result['pairs_per_step']} pairs a step, {result['steps']} timed steps a round; pairs of "
        f"{result['data']['name']} ({result['data']['first_stage']}).", "",
        "| pairs | row | pairs/s, median (lowest to highest round) | ours is × as fast, median |",
        "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, found in result["settings"].items():
        ours = np.array(found["pairs_per_s"][OURS])
        for row, speeds in found["pairs_per_s"].items():
            ratio = "" if row == OURS else f"{np.median(ours / np.array(speeds)):.2f}"
            speed = f"{np.median(speeds):.1f} ({min(speeds):.1f}–{max(speeds):.1f})"
            lines.append(f"| {name}, {found['mean_tokens']:g} tokens | {row} | {speed} | {ratio} |")
    lines.append("")
    for check in result["checks"]:
        verdict = "holds" if check["holds"] else "**does not hold**"
        lines.append(f"- {check['setting']}: {check['ratio']:.2f} × {check['against']} ({check['lowest']:.2f} to "
                     f"{check['highest']:.2f}); asked for is at least {check['floor']:g}: {verdict}.")  # fmt: skip
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--collection", default="api-docs", help="BEIR folder, such as msmarco-unlabelled")
    parser.add_argument("--split", help="default: none for a folder, train for api-docs")
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a round")
    parser.add_argument("--pairs-per-step", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--equal-tokens", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/training_speed"))
    arguments = parser.parse_args()
    if arguments.collection == "api-docs":
        arguments.split = arguments.split or "train"
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""Which students keep what of their teacher? Trains the variants of a study and measures their quality side by side.

A study is a recipe with `variants` in place of `passes`: a name, and the passes of that student. Each is trained
through the pipeline, exported as its passes left it and scored on every test collection. Nothing is timed but training.
Reported are, for each variant and collection, nDCG@10, its mean paired loss to the teacher in percent of the teacher's,
with the one-sided 95 % bound (BCa bootstrap over queries), Kendall's tau to the teacher, and the mean loss over all
collections, and over all but the first, whose bounds resample the queries of each. Curves of training, one plot per
quantity, all variants in it.

Variants share their stages: what two of them begin with is done once. Killed? Start it again: stored stages,
checkpoints and scores are used.

A study may name `series`: a name, and the variants that are one way to fewer multiply-adds. Each becomes a curve of the
loss over the multiply-adds.

    python benchmarks/students.py benchmarks/studies/objectives.yaml --out runs/objectives
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from variants import TEACHER, line, prepare_variants, read_study, run_variant, slug, teacher_of

from compressor.bench.machine import describe_machine
from compressor.bench.plot_curves import Curve, line_plot, standalone
from compressor.bench.quality import evaluate
from compressor.bench.rows import RowSpec
from compressor.bench.scoring import score_data
from compressor.bench.significance import RESAMPLES, resample_mean
from compressor.console import say
from compressor.data import RankingData
from compressor.errors import RankpressError
from compressor.export import export_folder
from compressor.prepare import Prepared
from compressor.ranker.cost import macs
from compressor.ranker.ranker import Ranker
from compressor.runtime.list_scores import kendall_tau
from compressor.storage import write_json, write_whole

MEASURE = "nDCG@10"
LEVEL = 0.05
MEANS = {"mean of the others": 1, "mean of all": 0}  # over which collections losses are averaged: from this one on
TOKENS = 96  # of the pair whose multiply-adds are counted
PLOTTED = {"dev/": "high", "loss": None}  # prefix of a curve's name → which end of a dev curve is best
Scored = Mapping[str, Mapping[str, np.ndarray]]  # collection → query → scores


def main() -> int:
    """Run a study and write its tables and plots."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        study = read_study(arguments.study)
        prepared = prepare_variants(arguments.study, study, arguments.out)
        result = run(arguments.study.stem, prepared, arguments.out, arguments.threads)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_json(arguments.out / f"{arguments.study.stem}.json", result)
    text = report(result)
    write_whole(arguments.out / f"{arguments.study.stem}.md", text)
    for name, svg in {**plots(result), **series_plots(result, study.get("series", {}))}.items():
        write_whole(arguments.out / f"{arguments.study.stem}_{name}.svg", svg)
    print(text)
    return 0


def run(name: str, prepared: Mapping[str, Prepared], out: Path, threads: int) -> dict[str, Any]:
    """Train, export and score every variant."""
    first = next(iter(prepared.values()))
    tests, settings = first.desk.tests, first.recipe.bench

    def scored(row: str, ranker: Ranker) -> Scored:
        folder = out / slug(row) / "model"
        export_folder(ranker, folder, manifest={"name": row}, calibration_pairs=(), int8_companion=False)
        return score_data(
            RowSpec(name=row, folder=folder), tests, settings, threads=threads, cache=out / slug(row) / "scores"
        )

    teacher = teacher_of(first)
    whole = macs(teacher.spec, TOKENS)
    reference = scored(TEACHER, teacher)
    rows: dict[str, Any] = {TEACHER: {"quality": _quality(tests, reference, reference)}}
    for variant, one in prepared.items():
        ranker = run_variant(variant, one)
        records = ranker.history[len(ranker.history) - len(one.stages) :]
        rows[variant] = {
            "passes": [{record.verb: record.settings} for record in records],
            "trainings": [
                {**{key: record.notes[key] for key in ("pairs", "pairs_per_s", "best_dev") if key in record.notes},
                 "seconds": record.notes["training_s"], "curves": record.series}
                for record in records if record.series
            ],
            "macs_share": macs(ranker.spec, TOKENS) / whole,
            "quality": _quality(tests, scored(variant, ranker), reference),
        }  # fmt: skip
        say(", ".join(f"{test}: {_cell(one, is_teacher=False)}" for test, one in rows[variant]["quality"].items()))
    return {
        "schema": 1,
        "study": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine().model_dump(mode="json"),
        "threads": threads,
        "seed": first.recipe.seed,
        "data": {need: {"name": data.name, "pairs": len(data.pairs()), "fingerprint": data.fingerprint}
                 for need, data in first.desk.seen.items()},
        "tests": {data.name: {"queries": len(data.queries), "first_stage": data.first_stage,
                              "fingerprint": data.fingerprint} for data in tests},
        "rows": rows,
    }  # fmt: skip


def _quality(tests: Sequence[RankingData], scores: Scored, reference: Scored) -> dict[str, Any]:
    """Return by collection the mean, the paired loss in percent of the teacher's mean and its upper bound, and tau."""
    found: dict[str, Any] = {}
    resampled = []
    for data in tests:
        own, theirs = (evaluate(data, each[data.name], [MEASURE]).per_query[MEASURE] for each in (scores, reference))
        percent = 100 / float(theirs.mean())
        sample = resample_mean((theirs - own) * percent)
        drawn = np.broadcast_to(sample.resampled, RESAMPLES)  # equal differences are resampled once
        resampled.append(np.random.default_rng(0).permutation(drawn))
        taus = [
            kendall_tau(scores[data.name][query], values)
            for query, values in reference[data.name].items() if len(values) > 1
        ]  # fmt: skip
        found[data.name] = {
            "mean": float(own.mean()), "loss_percent": sample.mean, "loss_percent_at_most": sample.upper(LEVEL),
            "kendall_tau": float(np.mean(taus)),
        }  # fmt: skip
    for name, first in MEANS.items() if len(tests) > 2 else ():
        losses = [found[data.name]["loss_percent"] for data in tests[first:]]
        bound = np.quantile(np.mean(resampled[first:], axis=0), 1 - LEVEL)
        found[name] = {"loss_percent": float(np.mean(losses)), "loss_percent_at_most": float(bound)}
    return found


def report(result: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    machine, versions = result["machine"], result["machine"]["versions"]
    train = result["data"].get("train", {"name": "none", "pairs": 0})
    tests = ", ".join(
        f"{name} ({one['queries']} queries, {one['first_stage']})" for name, one in result["tests"].items()
    )
    heads = ["student", "pairs seen", "training"]
    heads += [f"{name}: {MEASURE}, loss % (at most), τ" for name in result["tests"]]
    heads += [f"{name}: loss % (at most)" for name in MEANS]
    lines = [
        f"# Students: {result['study']}", "",
        f"{machine['cpu']}, {result['threads']} threads, torch {versions['torch']}, seed {result['seed']}. "
        f"Trained on {train['name']} ({train['pairs']:,} candidate pairs). Tested on {tests}; graphs "
        "in fp32, unless passes round them.", "",
        f"Loss: mean paired loss of {MEASURE} in percent of the teacher's mean, and its one-sided 95 % bound.", "",
        line(heads), line(["---"] * len(heads)),
    ]  # fmt: skip
    for name, row in result["rows"].items():
        trainings = row.get("trainings", [])
        pairs = f"{sum(one.get('pairs', 0) for one in trainings):,}" if trainings else ""
        minutes = f"{sum(one['seconds'] for one in trainings) / 60:.1f} min" if trainings else ""
        cells = [_cell(row["quality"][test], is_teacher=name == TEACHER) for test in result["tests"]]
        cells += [_cell(row["quality"].get(mean, {}), is_teacher=name == TEACHER) for mean in MEANS]
        lines.append(line([name, pairs, minutes, *cells]))
    return "\n".join(lines) + "\n"


def _cell(quality: Mapping[str, float], *, is_teacher: bool) -> str:
    if not quality:
        return ""
    mean = f"{quality['mean']:.4f}" if "mean" in quality else ""
    if is_teacher:
        return mean
    loss = f"{quality['loss_percent']:.1f} ({quality['loss_percent_at_most']:.1f})"
    tau = f"{quality['kendall_tau']:.2f}" if "kendall_tau" in quality else ""
    return ", ".join(part for part in (mean, loss, tau) if part)


def plots(result: Mapping[str, Any]) -> dict[str, str]:
    """Return an SVG for each quantity that trainings recorded, with a curve for each variant.

    The trainings of one variant follow one another on the axis of pairs seen; what it shares with one above is drawn
    there alone.
    """
    curves: dict[str, list[Curve]] = {}
    drawn_already: list[tuple[float, Mapping[str, Any]]] = []
    for variant, row in result["rows"].items():
        seen = 0.0
        points: dict[str, list[tuple[float, float]]] = {}
        for training in row.get("trainings", []):
            if (seen, training["curves"]) not in drawn_already:
                drawn_already.append((seen, training["curves"]))
                for name, series in training["curves"].items():
                    points.setdefault(name, []).extend((seen + x, y) for x, y in series)
            seen += training.get("pairs", 0)
        for name, found in points.items():
            curves.setdefault(name, []).append(Curve(name=variant, points=found))
    drawn = {}
    for name, group in curves.items():
        prefix = next((each for each in PLOTTED if name.startswith(each)), None)
        if prefix is None:
            continue
        y_name = name.removeprefix("dev/").replace("/", ": ")
        svg = line_plot(group, title=f"{result['study']}: {y_name}", y_name=y_name, log_y=prefix == "loss")
        if svg:
            drawn[name.replace("/", "_").replace("@", "_")] = standalone(svg)
    return drawn


def series_plots(result: Mapping[str, Any], series: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return SVGs of the loss of each series over multiply-adds: on the first test collection, and on the others."""
    first = next(iter(result["tests"]))
    drawn = {}
    for name, where in ((first, first), (next(iter(MEANS)), "others")) if series else ():
        curves = [
            Curve(name=one, points=sorted(
                (100 * row["macs_share"], row["quality"][name]["loss_percent"])
                for row in (result["rows"][variant] for variant in variants)
            ))
            for one, variants in series.items()
        ]  # fmt: skip
        svg = line_plot(
            curves, title=f"{result['study']}: {name}", x_name="% of the multiply-adds",
            y_name=f"loss of {MEASURE} in %",
        )  # fmt: skip
        drawn[f"macs_{where.split('/')[0]}"] = standalone(svg)
    return drawn


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs") / arguments.study.stem
    return arguments


if __name__ == "__main__":
    sys.exit(main())

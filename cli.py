"""The command `rankpress`: parse, call, print, exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from compressor import __version__
from compressor.exits import run_and_leave

app = typer.Typer(
    name="rankpress",
    help="Compress transformer rankers, measure them against honest baselines, and gate on ranking quality.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="An exported folder, ours or foreign.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's value: bench.candidates=50. Repeatable."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: what this process may use (affinity and quota).")
]


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, see recipes/.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; default: runs/<recipe name>.")] = None,
    set_: Set = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be done, and stop.")] = False,
) -> None:
    """Compress a teacher: run the recipe's passes, export, measure against the baselines, gate.

    A run that was killed continues from its last finished stage. Exit codes: 0 pass, 1 gate failed, 2 undecided,
    3 bad input, 4 the run itself failed.
    """
    from compressor.compress import run
    from compressor.console import show_plan
    from compressor.prepare import prepare

    prepared = prepare(recipe, out, set_ or [])
    show_plan(prepared.plan)
    if not plan:
        raise typer.Exit(run(prepared))


@app.command()
def validate(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipes to check.")],
    set_: Set = None,
) -> None:
    """Check recipes: keys, values, order of passes, data. All faults at once; no weights are loaded."""
    from compressor.commands import validate as validate_recipes

    validate_recipes(recipes, set_ or [])


@app.command()
def bench(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Exported folders, ours or foreign.")],
    data: Annotated[list[str], typer.Option(help="COLLECTION/SPLIT to measure on. Repeatable.")],
    threads: Annotated[str, typer.Option(help="Thread counts, each measured on its own: 1,2.")] = "",
    candidates: Annotated[int, typer.Option(min=1, help="Documents per query.")] = 100,
    measures: Annotated[str, typer.Option(help="Names of ir-measures, comma-separated.")] = "nDCG@10,RR@10",
    queries: Annotated[int, typer.Option(min=1, help="Queries that are timed.")] = 20,
    target: Annotated[
        list[str] | None,
        typer.Option(help="onnxruntime, cuda, tensorrt, openvino or openvino_bf16, comma-separated. Repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often every folder ranks every timed query.")] = 5,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher: packaged, a checkpoint, an ONNX file. Adds both baselines.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")] = Path("runs/bench"),
) -> None:
    """Measure folders side by side: latency in interleaved rounds, quality with bounds, size, invariance.

    Losses refer to the teacher, or to the first folder where none is named. With several targets, every folder is
    measured in each; OpenVINO wants a folder that was exported with 'export: {portable: true}'.
    """
    from compressor.commands import bench as measure

    measure(
        folders, data, teacher=teacher, out=out, threads=threads, candidates=candidates, measures=measures,
        n_queries=queries, rounds=rounds, targets=target or [],
    )  # fmt: skip


@app.command()
def gate(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.json.")],
    max_loss: Annotated[list[str] | None, typer.Option(metavar="MEASURE=LOSS", help="nDCG@10=1% or 0.005")] = None,
    min_speedup: Annotated[list[str] | None, typer.Option(metavar="BASELINE=RATIO", help="stock_onnx_fp32=3")] = None,
    min_agreement: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="kendall_tau=0.95 or overlap@10=0.9")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="Largest file, in 10⁶ bytes.")] = None,
    max_score_rmse: Annotated[float | None, typer.Option(help="Largest centered score difference.")] = None,
    row: Annotated[str | None, typer.Option(help="The row to judge; default: every ranker in the report.")] = None,
) -> None:
    """Judge a report against limits. Exit codes: 0 pass, 1 failed, 2 undecided, 3 bad input."""
    from compressor.commands import gate as judge

    raise typer.Exit(
        judge(
            report, row=row, max_loss=max_loss or [], min_speedup=min_speedup or [],
            min_agreement=min_agreement or [], max_size_mb=max_size_mb, max_score_rmse=max_score_rmse,
        )
    )  # fmt: skip


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The report.json to compare with.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The report.json of the same data, measured later.")],
    row: Annotated[str | None, typer.Option(help="The row to compare; default: every ranker in both.")] = None,
    max_slowdown: Annotated[
        float, typer.Option(min=0, help="Allowed growth of the time beside the baseline's: 0.05 is 5 %.")
    ] = 0.05,
    max_loss: Annotated[
        list[str] | None,
        typer.Option(metavar="MEASURE=LOSS", help="nDCG@10=1% or kendall_tau=0.01; default: 1 % of every measure."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The row that times are taken beside.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for the summary of a CI job.")] = False,
) -> None:
    """Compare two reports: quality paired per query, speed as ratios to a baseline that both have.

    Exit codes: 0 no regression, 1 regression, 2 undecided, 3 bad input, such as reports of different data.
    """
    from compressor.commands import compare as judge

    if json and markdown:
        raise typer.BadParameter("one of --json and --markdown")
    form: Literal["text", "json", "markdown"] = "json" if json else "markdown" if markdown else "text"
    raise typer.Exit(
        judge(old, new, row=row, max_slowdown=max_slowdown, max_loss=max_loss or [], baseline=baseline, form=form)
    )  # fmt: skip


@app.command()
def rank(
    folder: Folder,
    requests: Annotated[
        Path | None, typer.Argument(metavar="INPUT", help="JSONL or TSV; default: standard input.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output file; default: standard output.")] = None,
    format_: Annotated[str, typer.Option("--format", help="trec or jsonl")] = "trec",
    top_k: Annotated[int | None, typer.Option(min=1, help="Documents per query to keep.")] = None,
    threads: Threads = None,
    file: Annotated[str | None, typer.Option(help="ONNX file inside the folder, if not the main one.")] = None,
    tag: Annotated[str, typer.Option(help="Name of the run in TREC output.")] = "rankpress",
) -> None:
    """Rank documents for queries with an exported folder; no torch needed."""
    from compressor.runtime.run_io import rank_file

    rank_file(folder, requests, output, format=format_, top_k=top_k, threads=threads, tag=tag, file=file)


@app.command()
def retrieve(
    encoder: Annotated[
        str, typer.Argument(metavar="ENCODER", help="A bi-encoder: a hub id, a folder, an ONNX file, packaged:NAME.")
    ],
    data: Annotated[str, typer.Option(help="COLLECTION[/SPLIT] whose queries search its documents.")],
    out: Annotated[Path, typer.Option(help="The TREC run to write.")],
    depth: Annotated[int, typer.Option(min=1, help="Documents per query.")] = 100,
    query_prefix: Annotated[str, typer.Option(help="Text that the encoder wants before a query.")] = "",
    passage_prefix: Annotated[str, typer.Option(help="Text that it wants before a document.")] = "",
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out documents without text.")] = False,
) -> None:
    """Search a collection exactly with a bi-encoder; recipes name the run under 'candidates'.

    bge wants --query-prefix "Represent this sentence for searching relevant passages: ", E5 "query: " and
    --passage-prefix "passage: ".
    """
    from compressor.retrieve import retrieve as search

    search(
        encoder, data, depth=depth, out=out, query_prefix=query_prefix, passage_prefix=passage_prefix,
        skip_empty=skip_empty,
    )  # fmt: skip


@app.command()
def score(
    teacher: Annotated[
        str,
        typer.Argument(
            metavar="TEACHER",
            help="As in a recipe's 'teachers': a ranker's name, or YAML: '{large: path/to/model, precision: int8}'",
        ),
    ],
    data: Annotated[str, typer.Option(help="COLLECTION/SPLIT whose candidates are scored.")],
    out: Annotated[Path, typer.Option(help="The TREC run to write.")],
    candidates: Annotated[int, typer.Option(min=1, help="Documents per query.")] = 100,
    measures: Annotated[str, typer.Option(help="Names of ir-measures, comma-separated.")] = "nDCG@10,RR@10",
) -> None:
    """Score candidates with a teacher and say how well it ranks them; large rankers, which have no folder, too.

    Scores are kept: a killed run goes on, and recipes that name the same teacher ask for nothing again.
    """
    from compressor.score import score as score_candidates

    score_candidates(teacher, data, depth=candidates, out=out, measures=measures)


@app.command()
def pack(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    values: Annotated[str, typer.Option(help="Numbers: exact, float16 or int8. The last two change scores.")] = "exact",
    main_only: Annotated[bool, typer.Option("--main-only", help="Leave out all other graphs and checkpoints.")] = False,
) -> None:
    """Write a folder as one small file: zeros of a sparse ranker's matrices cost a bit each. Nothing runs faster."""
    from compressor.commands import pack as write

    write(folder, out, values=values, main_only=main_only)


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that 'rankpress pack' wrote.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    max_gb: Annotated[float, typer.Option(help="Refuse folders larger than this, in 10⁹ bytes.")] = 16,
) -> None:
    """Make the folder that consumers load from a packed file; hashes are checked, and torch is not needed."""
    from compressor.runtime.packed import unpack as read

    typer.echo(read(file, out, most_bytes=int(max_gb * 1e9)).described(out))


@app.command()
def doctor(
    folder: Folder, json_: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False
) -> None:
    """Say which runtimes can load a folder, which not, and why. Exit codes: 0 rankpress's own can, 3 it can not."""
    from compressor.doctor.terminal import show_diagnosis

    raise typer.Exit(show_diagnosis(folder, as_json=json_))


@app.command()
def passes() -> None:
    """List the passes that a recipe may use, with their settings."""
    from compressor.console import show_passes

    show_passes()


def _version(value: bool) -> None:
    if value:
        typer.echo(f"rankpress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command and leave with its exit code."""
    run_and_leave(app)


if __name__ == "__main__":
    main()

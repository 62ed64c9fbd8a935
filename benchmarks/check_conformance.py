"""Do the consumers that `rankpress doctor` speaks of do what it says?

The folders of a study (or folders that are named) are loaded, unchanged, by each consumer in a virtual environment of
its own, which pip fills from PyPI and which is kept for the next time. Each scores the same pairs; scores are held
against `OnnxRanker`'s, and what happened against the doctor's verdict. Exit code 1 where the two disagree.

    python benchmarks/check_conformance.py
    python benchmarks/check_conformance.py --folder runs/mine/model --consumer fastembed --consumer FlashRank
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.comparison import TOLERANCE, Comparison, Outcome, compare, table
from conformance.environments import SUBJECTS, Subject, interpreter_of
from variants import TEACHER, prepare_variants, read_study, run_variant, slug, teacher_of

from compressor import __version__
from compressor.commands import data_reference
from compressor.console import say
from compressor.cpu import cpu_class, cpu_model
from compressor.data import load_data
from compressor.doctor import examine
from compressor.errors import EXIT_GATE_FAILED, EXIT_PASS, RankpressError, RunError
from compressor.export import export_folder
from compressor.runtime.folder import PORTABLE_FILE
from compressor.runtime.ranker import OnnxRanker
from compressor.storage import write_json, write_whole

MAIN_FILE = "onnx/model.onnx"
STUDY = Path(__file__).parent / "studies" / "conformance.yaml"
CONSUMERS = Path(__file__).parent / "conformance" / "consumers"
TIMEOUT_S = 3600  # on a busy machine a first import of torch takes minutes
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

Lists = list[tuple[str, list[str]]]


def main() -> int:
    """Run every consumer on every folder and write the table."""
    arguments = _arguments()
    try:
        folders = arguments.folder or make_folders(arguments.out)
        lists = read_lists(arguments.data, arguments.queries, arguments.depth)
        wanted = [one for one in SUBJECTS if not arguments.consumer or one.consumer in arguments.consumer]
        pythons = dict(text.split("=", 1) for text in arguments.python)
        found = check(folders, wanted, lists, arguments.environments, pythons)
    except RankpressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    _write(found, arguments, sum(len(documents) for _, documents in lists))
    return EXIT_GATE_FAILED if any(one.disagreement for one in found) else EXIT_PASS


def make_folders(out: Path) -> list[Path]:
    """Export the study's rankers, the teacher in both dialects; those that are there are kept.

    Raises:
        RankpressError: a pass or an export failed.
    """
    prepared = prepare_variants(STUDY, read_study(STUDY), out)
    first = next(iter(prepared.values()))
    folders = {name: out / slug(name) / "model" for name in (TEACHER, *prepared)}
    for name, folder in folders.items():
        if not folder.is_dir():
            ranker = teacher_of(first) if name == TEACHER else run_variant(name, prepared[name])
            export_folder(ranker, folder, manifest={"name": name}, portable=name == TEACHER)
    return list(folders.values())


def read_lists(data: str, n_queries: int, depth: int) -> Lists:
    """Return queries with their first candidates."""
    read = load_data(data_reference(data).resolved(Path()), depth=depth)
    queries = list(read.queries)[:n_queries]
    return [(read.queries[one], [read.documents[found] for found in read.candidates[one]]) for one in queries]


def check(
    folders: Sequence[Path], subjects: Sequence[Subject], lists: Lists, environments: Path, pythons: Mapping[str, str]
) -> list[Comparison]:
    """Have every consumer load every folder, and those files of it that its users can name.

    Args:
        folders: exported folders.
        subjects: the consumers.
        lists: queries with their documents.
        environments: the folder of virtual environments.
        pythons: interpreters to take in the place of environments of these names.

    Raises:
        RankpressError: we cannot load a folder, or an environment cannot be made.
    """
    pairs = [(query, document) for query, documents in lists for document in documents]
    diagnoses = {folder: examine(folder) for folder in folders}
    logits = {
        (folder, file): OnnxRanker.load(folder, file=file).score(pairs).tolist()
        for folder in folders
        for file in files_of(folder)
    }
    found = []
    for subject in subjects:
        jobs = [job for job in logits if job[1] == MAIN_FILE or subject.names_files]
        own = pythons.get(subject.environment)
        python = Path(own) if own else interpreter_of(subject.environment, environments)
        say(f"{subject.consumer}: {len(jobs)} files")
        for (folder, file), outcome in zip(jobs, run(subject, python, jobs, lists), strict=True):
            finding = diagnoses[folder].of(subject.consumer)
            found.append(compare(name_of(folder), file, finding, outcome, logits[folder, file]))
    return sorted(found, key=lambda one: ([name_of(folder) for folder in folders].index(one.folder), one.file))


def files_of(folder: Path) -> list[str]:
    """Return the graphs of a folder that hold the same ranker: both dialects."""
    return [MAIN_FILE, *([PORTABLE_FILE] if (folder / PORTABLE_FILE).is_file() else [])]


def name_of(folder: Path) -> str:
    """Return what the table calls a folder."""
    return folder.resolve().parent.name if folder.name == "model" else folder.resolve().name


def run(subject: Subject, python: Path, jobs: Sequence[tuple[Path, str]], lists: Lists) -> list[Outcome]:
    """Have a consumer load folders and score lists, in a process of its environment.

    Raises:
        RunError: it took longer than `TIMEOUT_S`.
    """
    with tempfile.TemporaryDirectory() as place:
        given, texts, output = (Path(place) / name for name in ("jobs.json", "lists.json", "output.json"))
        given.write_text(json.dumps([(str(folder.resolve()), file) for folder, file in jobs]), encoding="utf-8")
        texts.write_text(json.dumps(lists), encoding="utf-8")
        command = [str(python), str(CONSUMERS / subject.script), str(given), str(texts), str(output)]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            done = subprocess.run(
                command, env={**kept, **_OFFLINE}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"{subject.consumer} took longer than {TIMEOUT_S} s") from None
        if done.returncode or not output.is_file():
            return [Outcome(scores=None, error=last_line(done.stderr, done.returncode))] * len(jobs)
        told = json.loads(output.read_text(encoding="utf-8"))
    for (folder, _), job in zip(jobs, told["jobs"], strict=True):
        if "error" in job:  # where the folder lies says nothing
            job["error"] = job["error"].replace(str(folder.resolve()), name_of(folder))
    return outcomes(told)


def outcomes(told: dict[str, Any]) -> list[Outcome]:
    """Read what a consumer's script wrote."""
    return [
        Outcome(scores=None, error=job["error"], versions=told["versions"])
        if "error" in job
        else Outcome(scores=tuple(job["scores"]), activation=job["activation"], versions=told["versions"])
        for job in told["jobs"]
    ]


def last_line(stderr: str, code: int) -> str:
    """Return the line of a trace that names the error: the last one that begins at the margin."""
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    return lines[-1] if lines else f"exit code {code}, without a word"


def _write(found: Sequence[Comparison], arguments: argparse.Namespace, n_pairs: int) -> None:
    head = {
        "schema": 1, "rankpress": __version__, "data": arguments.data, "n_pairs": n_pairs, "tolerance": TOLERANCE,
        "cpu": cpu_model(), "cpu_class": cpu_class(), "python": sys.version.split()[0],
    }  # fmt: skip
    versions = {one.consumer: one.versions for one in found if one.versions}
    text = (
        f"# conformance\n\n{n_pairs} pairs of {arguments.data}; {cpu_model()} ({cpu_class()}). "
        "Differences are to rankpress's own scores of the same file, behind a sigmoid where the consumer applies one; "
        f"up to {TOLERANCE:g} counts as equal.\n\n{table(found)}\n"
    )
    for name, told in versions.items():
        text += f"- {name}: {', '.join(f'{package} {version}' for package, version in told.items())}\n"
    write_json(arguments.results / "conformance.json", {**head, "rows": [one.as_json() for one in found]})
    write_whole(arguments.results / "conformance.md", text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [one.consumer for one in SUBJECTS]
    parser.add_argument("--folder", type=Path, action="append", help="a folder to check; default: the study's")
    parser.add_argument("--consumer", action="append", choices=names, help="default: all of them")
    parser.add_argument("--data", default="api-docs/test", help="COLLECTION/SPLIT of the pairs")
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--depth", type=int, default=5, help="candidates per query")
    parser.add_argument("--out", type=Path, default=Path("runs/conformance"), help="where the study's folders go")
    parser.add_argument("--environments", type=Path, default=Path("runs/environments"), help="kept for the next time")
    parser.add_argument(
        "--python", action="append", default=[], metavar="ENVIRONMENT=PATH", help="an interpreter that is there already"
    )
    parser.add_argument("--results", type=Path, default=Path("runs/conformance"), help="where the table goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

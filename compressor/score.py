"""`rankpress score`: what a teacher makes of a collection's candidates, as a run, and how well it ranks them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from compressor.bench.quality import best_first, evaluate, parse_measures
from compressor.commands import data_reference
from compressor.console import say
from compressor.data import RankingData, check_reference, load_data
from compressor.data.trec import write_run
from compressor.errors import Fault, InputError
from compressor.recipe_faults import faults_of
from compressor.records import Record
from compressor.storage import check_folder_to_write
from compressor.training.teachers import OWN, RankerTeacher, Teacher

_SOURCE = "command line"


def score(teacher: str, reference: str, *, depth: int, out: Path, measures: str) -> None:
    """Have a teacher score each query's candidates, write them as a run, best first, and print what they measure.

    Scores are those that `distill` learns from, out of the same store: what was scored for the one is there for the
    other. Equal scores keep the order of the first stage; a pair that a score file lacks goes last.

    Args:
        teacher: as an entry of a recipe's ``teachers:``, in YAML: a ranker's name, or a mapping.
        reference: ``COLLECTION/SPLIT``.
        depth: candidates a query.
        out: the run; an existing file is replaced.
        measures: names of ir-measures, comma-separated; printed where there are judgments.

    Raises:
        InputError: the teacher, the data, a measure or the place of the run is at fault; nothing is written.
        RunError: the teacher gives NaN.
    """
    from compressor.training.labelling import teacher_scores

    names = [name.strip() for name in measures.split(",") if name.strip()]
    faults: list[Fault] = []
    chosen: list[Teacher] = []
    for check in (
        lambda: chosen.append(_read(teacher).placed(Path())),
        lambda: check_reference(data_reference(reference), Path()),
        partial(parse_measures, names, source=f"{_SOURCE}: --measures"),
        partial(_check_out, out),
    ):
        try:
            check()
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    data = load_data(data_reference(reference).resolved(Path()), depth=depth)
    pairs = data.pairs()
    values = teacher_scores(chosen, data, pairs, say=say).values
    by_query = _by_query(data, np.where(np.isnan(values), -np.inf, values))
    known = {query: _known_first(data.candidates[query], found) for query, found in by_query.items()}
    write_run(out, known, tag="-".join(chosen[0].name.split()))
    say(f"{out}: {sum(map(len, known.values())):,} scores of {len(known):,} queries by {chosen[0].name}")
    if data.qrels:
        quality = evaluate(data, by_query, names)
        for name, figures in quality.per_query.items():
            print(f"{name} {figures.mean():.4f} ({len(quality.query_ids)} judged queries of {data.name})")


def _read(text: str) -> Teacher:
    class Given(Record):
        teacher: Teacher

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        found, allowed = repr(text), "a ranker's name, or a mapping such as '{large: path/to/model, precision: int8}'"
        raise InputError(Fault(source=_SOURCE, where="TEACHER", found=found, allowed=allowed)) from None
    try:
        read = Given.model_validate({"teacher": value}).teacher
    except ValidationError as error:
        raise InputError(faults_of(error, {"teacher": value}, Given, _SOURCE)) from None
    if isinstance(read, RankerTeacher) and read.ranker == OWN:
        raise InputError(Fault(source=_SOURCE, where="TEACHER", found=f"{OWN!r}, and no recipe", fix="name a ranker"))
    return read


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise InputError(Fault(source=out, found="a folder", allowed="the name of the file to write"))
    check_folder_to_write(out.parent)


def _by_query(data: RankingData, values: np.ndarray) -> dict[str, np.ndarray]:
    sizes = [len(found) for found in data.candidates.values()]
    parts = np.split(values.astype(np.float32), np.cumsum(sizes)[:-1])
    return {query: part for query, part in zip(data.candidates, parts, strict=True) if len(part)}


def _known_first(candidates: list[str], scores: np.ndarray) -> list[tuple[str, float]]:
    order = [row for row in best_first(scores) if np.isfinite(scores[row])]
    return [(candidates[row], float(scores[row])) for row in order]

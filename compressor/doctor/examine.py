"""Ask every consumer's rules about a folder, and load it with the one that is at hand: ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import __version__
from compressor.doctor.findings import Finding, Reason, find, note, obstacle
from compressor.doctor.folder import RankerFolder
from compressor.doctor.graph_rules import USUAL_FILES, operators
from compressor.doctor.onnx_consumers import ONNX_CONSUMERS
from compressor.doctor.servers import SERVERS
from compressor.doctor.torch_consumers import TORCH_CONSUMERS
from compressor.errors import EXIT_BAD_INPUT, EXIT_PASS, InputError, RunError
from compressor.runtime.ranker import OnnxRanker
from compressor.runtime.session import open_session

SCHEMA = 1
OWN_RUNTIME = "rankpress (OnnxRanker)"
CONSUMERS = (*TORCH_CONSUMERS[:1], *ONNX_CONSUMERS, *TORCH_CONSUMERS[1:], *SERVERS)
_PAIRS = [
    ("how to prune roses", "Roses are pruned in late winter, above a bud that looks outwards."),
    ("how to prune roses", "The moon has no air."),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found out about a folder.

    Attributes:
        folder: as it was given.
        findings: one per consumer, ours first.
    """

    folder: Path
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 where `OnnxRanker` loads the folder, else that of bad input."""
        return EXIT_BAD_INPUT if self.of(OWN_RUNTIME).verdict == "does_not_load" else EXIT_PASS

    def of(self, consumer: str) -> Finding:
        """Return the finding of a consumer."""
        return next(one for one in self.findings if one.consumer == consumer)

    def as_json(self) -> dict[str, Any]:
        """Return all findings for machines."""
        findings = [finding.as_json() for finding in self.findings]
        return {"schema": SCHEMA, "rankpress": __version__, "folder": str(self.folder), "findings": findings}


def examine(path: Path) -> Diagnosis:
    """Say which consumers can load a folder, which not, and why.

    Checks read files, but for two: the graphs that consumers look for first are opened in this ONNX Runtime, and
    `OnnxRanker` loads the folder and scores two pairs.

    Raises:
        InputError: no such folder.
    """
    folder = _opened(RankerFolder.read(path))
    own = Finding(consumer=OWN_RUNTIME, version=__version__, evidence="run", reasons=tuple(_run(folder)))
    return Diagnosis(folder=path, findings=(own, *(find(consumer, folder) for consumer in CONSUMERS)))


def _opened(folder: RankerFolder) -> RankerFolder:
    """Hold those graphs for broken that ONNX Runtime refuses for a reason that no rule knows."""
    broken = dict(folder.broken)
    for file in USUAL_FILES:
        graph = folder.graphs.get(file)
        if graph is not None and not any(operators(graph)):
            try:
                open_session(folder.path / file)
            except InputError as error:
                broken[file] = error.faults[0].found
    graphs = {file: graph for file, graph in folder.graphs.items() if file not in broken}
    return RankerFolder(path=folder.path, graphs=graphs, broken=broken)


def _run(folder: RankerFolder) -> list[Reason]:
    try:
        ranker = OnnxRanker.load(folder.path)
        scores = ranker.score(_PAIRS)
    except InputError as error:
        return [
            obstacle(
                f"{fault.found}" + (f"; allowed: {fault.allowed}" if fault.allowed else ""),
                file=_relative(folder, fault.source), key=fault.where, fix=fault.fix,
            )
            for fault in error.faults
        ]  # fmt: skip
    except RunError as error:
        return [obstacle(str(error))]
    if scores[0] == scores[1]:
        text = "an answer and a sentence about something else score alike"
        return [note(text, file=_relative(folder, ranker.onnx_path), fix="check that the head was trained")]
    return []


def _relative(folder: RankerFolder, source: Path | str) -> str:
    path = Path(source)
    if path.is_relative_to(folder.path):
        name = path.relative_to(folder.path).as_posix()
        return "" if name == "." else name
    return str(source)

"""What a consumer did with a folder, beside what the doctor said that it would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from compressor.doctor.findings import Finding
from compressor.runtime.list_scores import kendall_tau

# Two runtimes, or torch and a runtime, sum fp32 in other orders: 1e-5 of a logit in practice, at logits of up to 12.
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What happened when a consumer loaded a folder and scored pairs.

    Attributes:
        scores: one per pair; None where it failed.
        error: the last line that it said before it failed.
        activation: what it applied to the logit, by its class's name: ``Identity`` or ``Sigmoid``.
        versions: of its packages.
    """

    scores: tuple[float, ...] | None
    error: str = ""
    activation: str = "Identity"
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One consumer and one file of one folder.

    Attributes:
        folder: its name.
        consumer: as the doctor calls it.
        file: the ONNX file that it was told to run; consumers of torch checkpoints read none.
        expected: the doctor's verdict.
        loaded: whether it scored the pairs.
        activation: what it applied to the logit; it is applied to our scores too before they are compared.
        max_difference: the largest absolute difference to our scores; None where it failed.
        kendall_tau: of all pairs' scores, τ-b; None where it failed.
        error: why it failed.
        versions: of its packages.
        disagreement: how the doctor was wrong; empty where it was right.
    """

    folder: str
    consumer: str
    file: str
    expected: str
    loaded: bool
    activation: str
    max_difference: float | None
    kendall_tau: float | None
    error: str
    versions: Mapping[str, str]
    disagreement: str

    def as_json(self) -> dict[str, Any]:
        """Return the record for machines."""
        return asdict(self)


def compare(folder: str, file: str, finding: Finding, outcome: Outcome, logits: Sequence[float]) -> Comparison:
    """Hold an outcome against our scores and the doctor's verdict.

    Args:
        folder: its name.
        file: the ONNX file that was asked for.
        finding: what the doctor said.
        outcome: what happened.
        logits: our scores of the same pairs.

    Raises:
        ValueError: another number of scores than pairs, or an activation that is not known.
    """
    gap = tau = None
    if outcome.scores is not None:
        if len(outcome.scores) != len(logits):
            raise ValueError(f"{finding.consumer}: {len(outcome.scores)} scores for {len(logits)} pairs")
        found, ours = np.array(outcome.scores), activated(logits, outcome.activation)
        gap = float(np.abs(found - ours).max()) if np.isfinite(found).all() else float("inf")
        tau = float(kendall_tau(found, ours))
    return Comparison(
        folder=folder, consumer=finding.consumer, file=file, expected=finding.verdict,
        loaded=outcome.scores is not None, activation=outcome.activation, max_difference=gap, kendall_tau=tau,
        error=outcome.error, versions=dict(outcome.versions), disagreement=disagreement(finding, gap),
    )  # fmt: skip


def activated(logits: Sequence[float], activation: str) -> np.ndarray:
    """Return scores as a consumer's activation makes them, float64 ``[n]``.

    Raises:
        ValueError: an activation that is not known.
    """
    values = np.array(logits, dtype=np.float64)
    if activation == "Identity":
        return values
    if activation == "Sigmoid":
        return 1 / (1 + np.exp(-values))
    raise ValueError(f"the activation {activation!r} is not known")


def disagreement(finding: Finding, max_difference: float | None) -> str:
    """Say how the doctor was wrong; nothing where it was right.

    Args:
        finding: what the doctor said.
        max_difference: the largest difference to our scores; None where the consumer failed.
    """
    scored = max_difference is not None
    agrees = max_difference is not None and max_difference <= TOLERANCE
    if finding.verdict != "does_not_load" and not scored:
        return "it was to load, and failed"
    if finding.verdict == "does_not_load" and agrees:
        return "it was not to load, and scored as we do"
    if finding.verdict != "does_not_load" and not agrees and not finding.moves_scores:
        return f"scores were to be ours, and differ by {max_difference:.4g}"
    return ""


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a Markdown table."""
    lines = [
        "| folder | file | consumer | doctor | loaded | largest difference | τ | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in comparisons:
        gap = "" if one.max_difference is None else f"{one.max_difference:.1e}"
        gap += " (sigmoid)" if one.loaded and one.activation == "Sigmoid" else ""
        tau = "" if one.kendall_tau is None else f"{one.kendall_tau:.3f}"
        said = one.expected.replace("_", " ")
        marked = f"**{one.disagreement}**" if one.disagreement else ""
        last = " ".join(filter(None, (marked, _shortened(one.error))))
        cells = [one.folder, f"`{one.file}`", one.consumer, said, "yes" if one.loaded else "no", gap, tau, last]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shortened(error: str, characters: int = 160) -> str:
    text = " ".join(error.replace("|", "/").split())
    return text if len(text) <= characters else text[: characters - 1] + "…"

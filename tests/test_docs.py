"""The documentation is true to the code: nothing stale, missing, broken, or measured nowhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Template

import pytest
import typer
import yaml
from reference_pages import DOCS, SECTIONS, pages, papers, pass_page

import cli
from compressor.bench.gate_flags import gate_settings_from_flags
from compressor.recipe import parse_recipe
from compressor.registry import registered

ROOT = DOCS.parent
EXAMPLE = DOCS / "examples" / "ci"
OTHERS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = [*sorted(DOCS.rglob("*.md")), *(ROOT / name for name in OTHERS)]
SOURCES = ["README.md", "benchmarks/README.md", *(f"{folder}/*" for folder in ("benchmarks/results", "recipes"))]

_LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# What a measurement looks like: a decimal number, or a number with the unit of a share or a ratio.
_FIGURE = re.compile(r"(?<![\w.,])\d+\.\d+(?![\w.]*\d)|\d+(?= %)|\d+(?= ×)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_no_generated_block_is_stale():
    stale = [name(path) for path, text in pages() if not path.exists() or text != text_of(path)]
    assert not stale, "run 'make docs'"


def test_a_stale_block_is_seen():
    from reference_pages import refreshed

    page = pass_page("quantize")
    changed = text_of(page).replace("Compute linear layers", "Compute nothing")
    assert changed != text_of(page) == refreshed(changed, page)


def test_every_pass_has_a_page_and_every_page_a_pass():
    assert {path.stem for path in (DOCS / "passes").glob("*.md")} == set(registered())


@pytest.mark.parametrize("verb", sorted(registered()))
def test_a_page_says_what_only_a_person_can_and_names_the_papers(verb):
    text = text_of(pass_page(verb))
    for section in SECTIONS:
        said = section_of(text, section)
        assert len(said.split()) > 2, section
        assert "To be written" not in said, section
    assert all(f"https://arxiv.org/abs/{number}" in text for number in papers(registered()[verb]))
    assert all(f"| `{setting}" in text for setting in registered()[verb].model_fields) or "All other settings" in text


def test_papers_of_nested_settings_count_and_those_of_other_passes_do_not():
    assert "1710.01878" in papers(registered()["sparsify"]), "of Gradual"
    assert "2401.06910" not in papers(registered()["sparsify"]), "of distill, whose settings it has too"


@pytest.mark.parametrize("verb", sorted(registered()))
def test_figures_of_a_page_stand_in_a_recorded_result(verb):
    said = " ".join(section_of(text_of(pass_page(verb)), section) for section in SECTIONS)
    strange = sorted(set(figures(said)) - recorded())
    assert not strange, "measured where?"


def test_a_figure_that_was_never_measured_is_seen():
    assert set(figures("lost 77.77 % (8.9), 1.23 (1.19–1.29) × and 987 %")) - recorded() == {"77.77", "987"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text_of(page))):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_command_in_the_pages_can_be_given():
    found = [(name(page), line) for page in PAGES for language, body in _FENCE.findall(text_of(page))
             if language == "bash" for line in commands(body)]  # fmt: skip
    assert len(found) > 5
    for page, line in found:
        assert fault_of(line) == "", (page, line)


def test_the_workflow_is_whole_and_its_commands_can_be_given():
    path = EXAMPLE / ".github" / "workflows" / "ranker.yml"
    workflow = yaml.safe_load(text_of(path))
    assert set(workflow) >= {"name", True, "permissions", "jobs"}, "YAML reads 'on' as true"
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    given = [
        line for step in job["steps"] for line in commands(Template(step.get("run", "")).safe_substitute(job["env"]))
    ]
    assert [shlex.split(line)[1] for line in given] == ["validate", "compress", "compare"]
    assert [fault_of(line) for line in given] == [""] * 3
    assert gate_settings_from_flags(max_loss=[job["env"]["MAX_LOSS"]]).max_loss == {"nDCG@10": "1%"}
    assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert parse_recipe(yaml.safe_load(text_of(EXAMPLE / "ranker" / "recipe.yaml")), registered(), "recipe").gate


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("rankpress compare a b --max-slow 1", "--max-slow"),
        ("rankpress compar a b", "compar"),
        ("rankpress gate", "REPORT"),
    ],
)
def test_a_command_that_cannot_be_given_is_seen(line, fault):
    assert fault in fault_of(line)


def section_of(text: str, title: str) -> str:
    """Return what stands under a heading of the second level."""
    (_, _, rest) = text.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0].strip()


def figures(text: str) -> Iterator[str]:
    return (found[0] for found in _FIGURE.finditer(re.sub(r"\]\([^)]*\)|`[^`]*`", "", text).replace("\n", " ")))


@cache
def recorded() -> frozenset[str]:
    """Return the numbers of all recorded results and what quotes them, as they are written there."""
    paths = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.suffix in (".md", ".yaml")]
    return frozenset(number for path in paths for number in re.findall(r"\d+(?:\.\d+)?", text_of(path)))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text_of(page)), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


def commands(script: str) -> list[str]:
    """Return the calls of rankpress in a shell script, without what they are redirected or piped to."""
    lines = re.sub(r"\\\n\s*", " ", script).splitlines()
    return [re.split(r"\s(?:\|\|?|&&|>>?|#)(?:\s|$)", found[1])[0] for line in lines
            if (found := re.search(r"(?:^|\|\s*|&&\s*)(rankpress .*)", line.strip()))]  # fmt: skip


def fault_of(line: str) -> str:
    """Return what the command line has against a call; nothing is run."""
    app = typer.main.get_command(cli.app)
    _, verb, *arguments = shlex.split(line)
    known = app.commands  # type: ignore[attr-defined]  # of a group, which an app with several commands is
    if verb not in known:
        return f"no command {verb}"
    try:
        known[verb].make_context(verb, arguments)
    except cli.typer.BadParameter.__base__ as error:  # type: ignore[misc]  # click's UsageError, whoever vendors it
        return str(error.format_message())
    return ""

"""The layout is a law: blocks import downwards only, light parts stay light, and nothing in the code runs data."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A block imports only from itself and from blocks before it. Entries are modules or packages inside `compressor`.
BLOCKS: list[tuple[str, set[str]]] = [
    ("plain records", {
        "records", "errors", "exits", "storage", "progress", "registry", "plan", "query_settings", "data_reference",
        "large_settings", "gate_settings", "recipe_faults", "recipe", "cascade_stages", "cpu", "builds",
        "memory", "setting_words",
    }),
    ("runtime", {"runtime"}),
    ("ranker", {"ranker"}),
    ("families", {"families"}),
    ("data", {"data"}),
    ("algorithms", {"algorithms"}),
    ("export", {"export"}),  # before training: teachers label through their exported graph
    ("training", {"training"}),
    ("passes", {"passes"}),
    ("pipeline", {"pipeline"}),
    ("bench", {"bench"}),
    ("doctor", {"doctor"}),
    ("commands", {"baselines", "measured_card", "console", "prepare", "compress", "commands", "retrieve", "score"}),
    ("cli", {"cli"}),
]  # fmt: skip
LEVEL = {entry: level for level, (_, entries) in enumerate(BLOCKS) for entry in entries}

# What these need, the base install has: they work where torch is not installed.
BASE_ONLY = {"plain records", "runtime", "cli"}
HEAVY = ("torch", "transformers", "onnx", "safetensors", "sentence_transformers", "matplotlib", "scipy", "bm25s")
LIGHT = [
    "compressor/*.py", "compressor/runtime/*.py", "compressor/data/*.py", "compressor/bench/*.py",
    "compressor/doctor/*.py", "compressor/passes/*.py", "compressor/ranker/__init__.py", "compressor/ranker/spec.py",
    "compressor/ranker/cost.py", "compressor/ranker/history.py", "compressor/ranker/tokenizer_files.py",
]  # fmt: skip

MAX_LINES = 300
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "handler", "engine"}
CODE_IN_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


@cache
def product_files() -> list[Path]:
    return [*sorted((ROOT / "compressor").rglob("*.py")), *([ROOT / "cli.py"] if (ROOT / "cli.py").exists() else [])]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, source: str | None = None) -> Iterator[Import]:
    """Yield every import, wherever it stands: at the top, in a function, or for type checkers only."""
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module_name(path).split(".")[: -node.level or None] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            if module == "compressor":  # `from compressor import storage` names a module, `__version__` does not
                yield from (Import(path, node.lineno, f"{module}.{name.name}") for name in node.names)
            else:
                yield Import(path, node.lineno, module)


def block_of(module: str) -> str | None:
    """Return the entry of `BLOCKS` that a module belongs to; None for what is not ours, and for our front door."""
    parts = module.split(".")
    if parts[0] == "cli":
        return "cli"
    return parts[1] if parts[0] == "compressor" and len(parts) > 1 and not parts[1].startswith("__") else None


def upward_arrows(path: Path, source: str | None = None) -> list[str]:
    own = block_of(module_name(path))
    if own is None:
        return []
    found = [(each, block_of(each.module)) for each in imports_of(path, source)]
    return [str(each) for each, block in found if block is not None and LEVEL[block] > LEVEL[own]]


def forbidden_constructs(path: Path, source: str | None = None) -> list[str]:
    found = [str(each) for each in imports_of(path, source) if each.module.split(".")[0] in CODE_IN_DATA]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call in {"eval", "exec", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load"}:
            found.append(f"{path.name}:{node.lineno} calls {call}")
        for name in ("trust_remote_code", "allow_pickle"):
            if keywords.get(name, "False") != "False":
                found.append(f"{path.name}:{node.lineno} passes {name}={keywords[name]}")
    return found


def test_every_module_has_its_block():
    homeless = {block_of(module_name(path)) for path in product_files()} - set(LEVEL) - {None}
    assert not homeless, f"add to BLOCKS, in the place where they belong: {sorted(map(str, homeless))}"


def test_blocks_import_downwards_only():
    arrows = [arrow for path in product_files() for arrow in upward_arrows(path)]
    assert not arrows, "\n".join(arrows)


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("runtime/new.py", "from compressor.ranker.spec import RankerSpec", ["compressor.ranker.spec"]),
        ("runtime/new.py", "def f():\n    import compressor.bench.gate", ["compressor.bench.gate"]),
        ("runtime/new.py", "from compressor import pipeline", ["compressor.pipeline"]),
        ("runtime/new.py", "from ..passes import x", ["compressor.passes"]),
        ("runtime/new.py", "from .batching import padded\nfrom compressor import __version__", []),
        ("bench/new.py", "from compressor.runtime.ranker import OnnxRanker", []),
        ("storage.py", "import cli", ["cli"]),
    ],
)
def test_an_upward_arrow_is_seen(place, source, expected):
    arrows = upward_arrows(ROOT / "compressor" / place, source)
    assert [arrow.split(" imports ")[1] for arrow in arrows] == expected


def test_files_are_short():
    folders = [ROOT / name for name in ("compressor", "tests", "benchmarks", "docs")]
    paths = [*(path for folder in folders for path in folder.rglob("*.py")), ROOT / "cli.py"]
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in paths if p.exists()}
    assert not {name: count for name, count in lines.items() if count > MAX_LINES}


def test_names_say_what_is_inside():
    vague = [path for path in product_files() if VAGUE_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)]
    vague += [path for path in product_files() if path.stem.rpartition("_")[2] in VAGUE_NAMES]
    assert not vague


def test_nothing_in_the_code_runs_data():
    found = [construct for path in product_files() for construct in forbidden_constructs(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "is_forbidden"),
    [
        ("import pickle", True),
        ("def f():\n    from joblib import load", True),
        ("torch.load(path)", True),
        ("eval(text)", True),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(x, trust_remote_code=flag)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("AutoModel.from_pretrained(x, trust_remote_code=False)", False),
        ("module.eval()\nsafetensors.torch.load_file(path)", False),
    ],
)
def test_a_forbidden_construct_is_seen(source, is_forbidden):
    assert bool(forbidden_constructs(ROOT / "compressor" / "storage.py", source)) is is_forbidden


def test_every_library_is_declared_and_the_base_needs_the_base_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {_name(requirement) for requirement in project["dependencies"]}
    declared = base.union(*({_name(r) for r in extra} for extra in project["optional-dependencies"].values()))
    owners = packages_distributions()
    wrong = []
    for path in product_files():
        block = block_of(module_name(path))
        allowed = base if block and BLOCKS[LEVEL[block]][0] in BASE_ONLY else declared
        for each in imports_of(path):
            top = each.module.split(".")[0]
            if top in sys.stdlib_module_names or top in {"compressor", "cli"}:
                continue
            if not {_normal(owner) for owner in owners.get(top, [top])} & allowed:
                wrong.append(str(each))
    assert not wrong, "\n".join(wrong)


def _name(requirement: str) -> str:
    return _normal(requirement.partition("[")[0].split(">")[0].split("=")[0].strip())


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def run_python(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_light_parts_import_without_heavy_libraries():
    names = sorted({module_name(path) for pattern in LIGHT for path in ROOT.glob(pattern)})
    assert {"compressor", "compressor.ranker.spec", "compressor.storage"} <= set(names)
    program = (
        "import importlib, json, sys\n"
        "heavy = sys.argv[1].split(',')\n"
        "blamed = {}\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    for library in heavy:\n"
        "        if library in sys.modules:\n"
        "            blamed.setdefault(library, name)\n"
        "print(json.dumps(blamed))\n"
    )
    blamed = json.loads(run_python(program, ",".join(HEAVY), *names))
    assert not blamed, f"the first modules to pull a heavy library in: {blamed}"


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["bench", "--help"]])
def test_help_is_quick(arguments):
    if not (ROOT / "cli.py").exists():
        pytest.skip("no cli.py yet")
    program = (
        "import json, runpy, sys\n"
        "heavy = sys.argv[1].split(',')\n"
        "sys.argv = ['rankpress', *sys.argv[2:]]\n"
        "try:\n"
        "    runpy.run_path('cli.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    assert json.loads(run_python(program, ",".join((*HEAVY, "onnxruntime", "numpy")), *arguments)) == []

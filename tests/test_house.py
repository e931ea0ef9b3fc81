"""The house: a file imports only from floors below its own, and studies not from each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxalign"

# Rooms by floor; the first prefix that fits counts.
FLOORS = [
    ("jaxalign.errors", 0),
    ("jaxalign.version", 0),
    ("jaxalign.shapes", 0),
    ("jaxalign.numerics", 1),
    ("jaxalign.metrics", 1),
    ("jaxalign.stats", 1),
    ("jaxalign.runtime", 1),
    ("jaxalign.notes", 1),
    ("jaxalign.sharding", 4),
    ("jaxalign.weight_error", 4),
    ("jaxalign.watch", 1),
    ("jaxalign.distributed", 2),
    ("jaxalign.sharded_sweep", 4),
    ("jaxalign.journal", 4),
    ("jaxalign.calibration", 4),
    ("jaxalign.compilation_cache", 2),
    ("jaxalign.environment", 2),
    ("jaxalign.edits", 2),
    ("jaxalign.model", 3),
    ("jaxalign.engine", 4),
    ("jaxalign.convert", 4),
    ("jaxalign.prompts", 4),
    ("jaxalign.results", 4),
    ("jaxalign.experiments", 5),
    ("jaxalign.plots", 6),
    ("jaxalign.report", 6),
    ("jaxalign.grammar", 7),
    ("jaxalign.training_command", 7),
    ("jaxalign.schemes_command", 7),
    ("jaxalign.plan_command", 7),
    ("jaxalign.command", 7),
    ("jaxalign.demo", 8),
    ("jaxalign", 8),
]
FILES = sorted(PACKAGE.rglob("*.py"))


def floor(module):
    return next(n for name, n in FLOORS if module == name or module.startswith(name + "."))


def room(module):
    return next(name for name, _ in FLOORS if module == name or module.startswith(name + "."))


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxalign"):
            if node.module == "jaxalign":
                names = (alias.name for alias in node.names)
                yield from (f"jaxalign.{name}" for name in names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("jaxalign"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_from_its_own_room_and_floors_not_above(path):
    own = module_of(path)
    for other in imports(path):
        below = floor(other) < floor(own)
        neighbour = floor(other) == floor(own) and floor(own) in (4, 7, 8)
        assert below or room(other) == room(own) or neighbour, f"{own} imports {other}"


def test_plots_see_a_result_and_never_a_run():
    for path in (PACKAGE / "plots").rglob("*.py"):
        for other in imports(path):
            assert room(other) in (
                "jaxalign.plots",
                "jaxalign.results",
                "jaxalign.runtime",
                "jaxalign.errors",
            ), path


def test_studies_do_not_import_each_other():
    folder = PACKAGE / "experiments"
    for path in folder.rglob("*.py"):
        own = module_of(path).split(".")[2:3]
        for other in imports(path):
            if other.startswith("jaxalign.experiments."):
                assert other.split(".")[2:3] == own, f"{path} imports {other}"


def test_there_is_no_drawer():
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not drawers & {part for path in FILES for part in path.with_suffix("").parts}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_public_functions_have_docstrings(path):
    for node in ast.parse(path.read_text()).body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if public:
            assert ast.get_docstring(node), f"{module_of(path)}.{node.name}"

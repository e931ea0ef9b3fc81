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
    ("jaxalign.measures.metrics", 1),
    ("jaxalign.measures.stats", 1),
    ("jaxalign.runtime.resume", 4),
    ("jaxalign.runtime.terminal", 2),
    ("jaxalign.runtime", 1),
    ("jaxalign.runtime.messages", 1),
    ("jaxalign.devices.mesh", 4),
    ("jaxalign.study.codec", 3),
    ("jaxalign.study.tables", 4),
    ("jaxalign.study.measure", 4),
    ("jaxalign.devices.mesh", 4),  # knows the model's parameters
    ("jaxalign.devices", 1),
    ("jaxalign.flops", 4),
    ("jaxalign.devices.deal", 4),
    ("jaxalign.calibration", 4),
    ("jaxalign.runtime.compilation_cache", 2),
    ("jaxalign.runtime.environment", 2),
    ("jaxalign.edit", 2),
    ("jaxalign.model", 3),
    ("jaxalign.checkpoints", 3.5),
    ("jaxalign.memory", 4),
    ("jaxalign.sweep", 4),
    ("jaxalign.wave", 4),
    ("jaxalign.run_edits", 4),
    ("jaxalign.checkpoints", 4),
    ("jaxalign.prompts", 4),
    ("jaxalign.study", 4),
    ("jaxalign.results", 4),
    ("jaxalign.study.option", 2),
    ("jaxalign.plots", 5),
    ("jaxalign.studies", 6),
    ("jaxalign.commands", 7),
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


def test_plots_know_no_study():
    """They take estimates, arrays and labels: of the results, only ``Estimate``."""
    for path in (PACKAGE / "plots").rglob("*.py"):
        for other in imports(path):
            own = ("jaxalign.plots", "jaxalign.results", "jaxalign.runtime", "jaxalign.errors")
            assert room(other) in own, f"{path} imports {other}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "jaxalign.results"
            ):
                assert [alias.name for alias in node.names] == ["Estimate"], path


def test_tables_and_figures_see_a_result_and_never_a_run():
    allowed = {
        "jaxalign.plots",
        "jaxalign.measures.metrics",
        "jaxalign.measures.stats",
        "jaxalign.results",
        "jaxalign.runtime",
        "jaxalign.errors",
        "jaxalign.study.tables",
        "jaxalign.study.measure",
        "jaxalign.studies",  # their own folder, by the next test
    }
    studies = PACKAGE / "studies"
    paths = [*studies.glob("*/table.py"), *studies.glob("*/figures.py")]
    paths += studies.glob("*/figures/*.py")
    assert len({path.relative_to(studies).parts[0] for path in paths}) == 3
    for path in paths:
        for other in imports(path):
            assert room(other) in allowed, f"{path} imports {other}"


@pytest.mark.parametrize("folder", ["studies"])
def test_studies_do_not_import_each_other(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        own = module_of(path).split(".")[2:3]
        for other in imports(path):
            if other.startswith(f"jaxalign.{folder}.") and own != ["registry"]:
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

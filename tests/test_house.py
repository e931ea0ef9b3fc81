"""The house: a file imports only from floors below its own, and studies not from each other."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxalign"

# Every room, from the ground up: a file imports from its own room and from rooms before it.
ROOMS = (
    "errors",
    "version",
    "shapes",
    "processes",
    "runtime",
    "numerics",
    "measures",
    "edits",
    "dictionaries",
    "model",
    "engine",
    "checkpoints",
    "prompts",
    "calibration",
    "devices",
    "plots",
    "study",
    "studies",
    "commands",
    "demo",
    "__main__",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    """The room of a module: the first part of its name below the package."""
    return module.split(".")[1] if "." in module else ""


def floor(module):
    """The place of a module's room among ``ROOMS``; the package's own names stand on top."""
    return ROOMS.index(room(module)) if room(module) else len(ROOMS)


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


def test_every_room_has_its_place():
    assert {room(module_of(path)) for path in FILES} - {""} == set(ROOMS)


def test_a_file_imports_only_from_its_own_room_and_rooms_before_it():
    wrong = [
        f"{own} imports {other}"
        for path in FILES
        for own in [module_of(path)]
        for other in imports(path)
        if floor(other) > floor(own)
    ]
    assert not wrong, "\n".join(wrong)


def test_plots_know_no_study():
    """They take estimates, arrays and labels."""
    allowed = {"plots", "measures", "runtime", "errors", "shapes"}
    wrong = [
        f"{path} imports {other}"
        for path in (PACKAGE / "plots").rglob("*.py")
        for other in imports(path)
        if room(other) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_tables_and_figures_see_a_result_and_never_a_run():
    studies = PACKAGE / "studies"
    paths = [*studies.glob("*/table.py"), *studies.glob("*/details.py")]
    paths += studies.glob("*/figures.py")
    paths += studies.glob("*/figures/*.py")
    found = {path.relative_to(studies).parts[0] for path in paths}
    assert found == {"heads", "schemes", "plan", "patch", "features", "align"}
    allowed = {"plots", "measures", "runtime", "errors", "shapes"}
    of_their_own = ("result", "rows", "findings", "average", "figures", "table")
    wrong = [
        f"{path} imports {other}"
        for path in paths
        for other in imports(path)
        if room(other) not in allowed
        and other not in ("jaxalign.study.tables", "jaxalign.study.measure")
        and not (room(other) == "studies" and other.split(".")[3] in of_their_own)
    ]
    assert not wrong, "\n".join(wrong)


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


def public(path):
    """The public functions and classes of a file, and the public methods of its public classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    yield f"{node.name}.{part.name}", part


def test_public_functions_have_docstrings():
    bare = [
        f"{module_of(path)}.{name}"
        for path in FILES
        for name, node in public(path)
        if not ast.get_docstring(node)
    ]
    assert not bare, "\n".join(bare)


MANY = 3  # arguments


def unnamed(node):
    """The arguments of a function that its docstring does not name; None where there are few."""
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    names = [one.arg for one in given if one.arg not in ("self", "cls")]
    if len(names) < MANY:
        return None
    text = ast.get_docstring(node) or ""
    return [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_a_public_function_of_three_arguments_or_more_names_them_all():
    told = {
        f"{module_of(path)}.{name}": unnamed(node)
        for path in FILES
        for name, node in public(path)
        if isinstance(node, ast.FunctionDef) and unnamed(node) is not None
    }
    silent = {name: missing for name, missing in told.items() if missing}
    lines = "\n".join(f"{name}: {', '.join(missing)}" for name, missing in silent.items())
    assert len(silent) <= 0.1 * len(told), f"{len(silent)} of {len(told)}:\n{lines}"

"""The studies there are: our own, and those that other packages bring along.

A package of somebody else's names its study in its metadata, and ``jaxalign`` finds it::

    [project.entry-points."jaxalign.studies"]
    lengths = "my_package.lengths:LENGTHS"
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import require_type
from jaxalign.runtime.messages import note
from jaxalign.studies.align import ALIGN
from jaxalign.studies.features import FEATURES
from jaxalign.studies.heads import HEADS
from jaxalign.studies.patch import PATCH
from jaxalign.studies.plan import PLAN
from jaxalign.studies.schemes import SCHEMES
from jaxalign.study import codec, result_file
from jaxalign.study.kind import ResultKind
from jaxalign.study.study import Study

GROUP = "jaxalign.studies"
STUDIES: Mapping[str, Study[Any, Any]] = {
    study.name: study for study in (HEADS, SCHEMES, PLAN, PATCH, FEATURES)
}
# Results of commands that run no model.
OTHERS: tuple[ResultKind[Any], ...] = (ALIGN,)


def find_studies() -> dict[str, Study[Any, Any]]:
    """Every study by name: our own, then those that installed packages name as entry points.

    A package that cannot be imported, or whose study has a name that is taken, costs one line on
    stderr and no other study.
    """
    found = dict(STUDIES)
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        try:
            study = entry.load()
        except Exception as error:  # whatever a package of somebody else's may raise
            note(f"study {entry.name} ({entry.value}) cannot be imported: {error!r}")
            continue
        if not isinstance(study, Study):
            note(f"{entry.value} is no Study, so there is no study {entry.name}")
        elif study.name in found:
            note(f"{entry.value} is a second study {study.name!r}, so it is not used")
        else:
            found[study.name] = study
    return found


def read(path: Path | str) -> Any:
    """The result that a file holds, of any kind: ``HeadsResult``, ``SchemesResult``, …

    Args:
        path: the file; its format says of which kind it is.

    Raises:
        InputError: no such file, or of no kind.

    Example:
        >>> jaxalign.read("results/experiment.json").statistics.correlations[0].pearson
    """
    require_type("path", path, (str, Path), "the path of a result")
    return read_any(Path(path))[1]


def read_any(path: Path) -> tuple[ResultKind[Any], Any]:
    """The kind of the result that a file holds, and the result.

    Args:
        path: the file; its format says of which kind it is.

    Raises:
        InputError: no such file, or of no kind.
    """

    def kept(kind: ResultKind[Any], read: Callable[[Any, Path], Any]) -> Any:
        return lambda content, where: (kind, read(content, where))

    readers: dict[str, Any] = {}
    for kind in (*find_studies().values(), *OTHERS):
        readers[kind.format] = kept(kind, functools.partial(codec.decode, kind.result))
        readers |= {form: kept(kind, read) for form, read in kind.older.items()}
    found: tuple[ResultKind[Any], Any] = result_file.read(
        path, readers, "run a study first: jaxalign heads"
    )
    return found

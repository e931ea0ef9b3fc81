"""Where a model comes from: a folder or file, the bundled one, a package, the hub or its cache."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from jaxalign.checkpoints.files import INDEX, SINGLE
from jaxalign.checkpoints.gguf_file import is_gguf, open_gguf
from jaxalign.checkpoints.gguf_model import blocks_note, check_readable
from jaxalign.checkpoints.packaged import PACKAGED, packaged
from jaxalign.errors import InputError

DEFAULT_MODEL = "EleutherAI/pythia-70m"
BUNDLED = Path(__file__).parent.parent / "demo" / "model"
BUNDLED_NAME = "demo"
DEADLINE_SECONDS = 10.0
# What the hub client's transport raises without a network; the transport has changed its library
# twice, and this name follows it.
TRANSPORT_ERROR: type[Exception] = hub_errors.HTTPError
WANTED = ["config.json", "tokenizer.json", "*.safetensors", INDEX]
UNWANTED = ["consolidated*"]  # Mistral's second copy of the weights, in a layout of its own


@dataclass(frozen=True)
class Source:
    """A folder or file with a model, and how it was found.

    Attributes:
        folder: holds ``config.json``, ``tokenizer.json`` and safetensors, or ``file``.
        model: the name asked for, or "demo" where the bundled model stands in.
        revision: the revision asked for, resolved to a commit where the hub or its cache said it;
            of a package's file, the package and its version.
        note: what a reader of the result has to know about the choice, and about how its settings
            were read; empty for nothing.
        ignored_settings: settings of ``config.json`` that the user said change nothing.
        file: a GGUF file, which holds all of the model; None for a folder.
    """

    folder: Path
    model: str
    revision: str | None = None
    note: str = ""
    ignored_settings: tuple[str, ...] = ()
    file: Path | None = None


class ModelUnavailable(InputError):
    """The model can be had neither from the hub nor from the cache."""


def locate(model: str | Path | None = None, revision: str | None = None) -> Source:
    """Find a model's folder, downloading what is not yet in the cache.

    Args:
        model: a folder, a ``.gguf`` file, "demo" for the bundled model, "smollm2" for the real
            one that an installed package carries, or a repository of the hub. None means the
            default model, with the bundled one in its place where it cannot be had.
        revision: branch, tag (``step3000``) or commit of the repository.

    Raises:
        InputError: no such folder, file, package, repository or revision; or a GGUF file that is
            damaged or of another architecture.
        ModelUnavailable: a model that was named can be had neither from the hub nor the cache.
    """
    model = model if model is None else os.fspath(model)
    if model is None:
        try:
            return _from_hub(DEFAULT_MODEL, revision)
        except ModelUnavailable as unavailable:
            wanted = f"{DEFAULT_MODEL} at {revision}" if revision else DEFAULT_MODEL
            note = f"the bundled demo model runs instead of {wanted}: {unavailable.problem}"
            return replace(_bundled(), note=note)
    if model == BUNDLED_NAME:
        _refuse_revision(revision, "the bundled model has only one")
        return _bundled()
    if model in PACKAGED:
        _refuse_revision(revision, f"the package of {model} carries only one")
        path, version = packaged(model)
        return _from_file(path, model, version)
    path = Path(os.path.expanduser(model))
    if model and os.path.isdir(path):  # pathlib's own raises for a name that is too long
        _refuse_revision(revision, f"--model {model} is a local folder")
        return Source(path, model)
    if path.suffix == ".gguf" or os.path.isfile(path):
        _refuse_revision(revision, f"--model {model} is a file")
        if not os.path.isfile(path):
            raise InputError(f"--model {model}: there is no such file", "check the path")
        if path.suffix != ".gguf" and not is_gguf(path):
            raise InputError(
                f"--model {model} is a file, and not one of GGUF", "give the folder that it is in"
            )
        return _from_file(path, model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(f"--model {model}: there is no such folder", "check the path")
    return _from_hub(model, revision)


def _bundled() -> Source:
    return Source(BUNDLED, BUNDLED_NAME)


def _from_file(path: Path, model: str, revision: str | None = None) -> Source:
    file = open_gguf(path)
    check_readable(file)
    return Source(path.parent, model, revision, note=blocks_note(file), file=path)


def _refuse_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise InputError(
            f"--revision {revision} was given, but {why}",
            "leave --revision out, or name a repository of the hub",
        )


def _from_hub(model: str, revision: str | None) -> Source:
    try:
        _ask_hub(model, revision)
        # By the name that was asked for, not its commit: only then does the cache remember the
        # name, and find the model by it without a network.
        folder = Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except hub_errors.HFValidationError as error:
        raise InputError(
            f"--model {model} is neither a folder nor the name of a repository",
            "give a folder, a .gguf file, 'demo', or a name like EleutherAI/pythia-70m",
        ) from error
    except hub_errors.GatedRepoError as error:
        raise ModelUnavailable(
            f"{model} asks for consent to its terms", "give it on its page, then: hf auth login"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise InputError(
            f"{model} has no revision {revision!r}", "see the repository's list of branches"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(f"the hub has no model {model!r}", "check its name") from error
    except InputError:
        raise
    except (OSError, ValueError, TRANSPORT_ERROR) as error:  # ValueError: an answer in no JSON
        return _from_cache(model, revision, f"{type(error).__name__}: {error}")
    return Source(folder, model, folder.name)


def _ask_hub(model: str, revision: str | None) -> None:
    """Ask for ``revision``: an error within ``DEADLINE_SECONDS`` unless the hub can provide it.

    A name lookup has no timeout of its own, hence the thread: the deadline holds for all of it.
    """
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            info = huggingface_hub.HfApi().model_info(
                model, revision=revision, timeout=0.8 * DEADLINE_SECONDS
            )
            _check_files(model, [file.rfilename for file in info.siblings or []])
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {DEADLINE_SECONDS:.0f} s")
    if failure:
        raise failure[0]


def _check_files(model: str, files: list[str]) -> None:
    if not any(name in (SINGLE, INDEX) for name in files):
        found = f"only {', '.join(files[:4])}" if files else "and no other file"
        raise InputError(
            f"{model} has no safetensors at this revision, {found}",
            "use a revision with safetensors, or convert pytorch_model.bin on a machine you trust "
            "with transformers' save_pretrained(safe_serialization=True)",
        )


def _from_cache(model: str, revision: str | None, why: str) -> Source:
    """The newest complete snapshot in the local cache."""
    short = why.splitlines()[0][:120]
    try:
        folder = Path(
            huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True)
        )
    except (hub_errors.LocalEntryNotFoundError, FileNotFoundError) as error:
        raise ModelUnavailable(
            f"{model} is not in the local cache and the hub cannot be reached ({short})",
            "connect once to download it, or use --model FOLDER or --model demo",
        ) from error
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if not {"config.json", "tokenizer.json"} <= names or not {SINGLE, INDEX} & names:
        raise ModelUnavailable(
            f"the cached snapshot {folder} is incomplete and the hub cannot be reached ({short})",
            "connect once to complete it, or use --model FOLDER or --model demo",
        )
    return Source(folder, model, folder.name)

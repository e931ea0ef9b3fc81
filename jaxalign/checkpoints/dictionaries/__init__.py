"""Published dictionaries (sparse autoencoders, transcoders), read and written in their layouts."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from jaxalign.checkpoints.dictionaries import gemma_scope, llama_scope, sae_lens, sparsify
from jaxalign.checkpoints.dictionaries.facts import (
    DictionaryFacts,
    TrainedDictionary,
    check_point,
)
from jaxalign.checkpoints.dictionaries.tensors import sha256_of_tensors
from jaxalign.checkpoints.hub import TRANSPORT_ERROR
from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.errors import InputError, require_type

# In the order in which they are told apart: the first that recognises a folder reads it.
LAYOUTS = {layout.LAYOUT: layout for layout in (llama_scope, gemma_scope, sparsify, sae_lens)}
PICKLES = (".pt", ".pth", ".bin", ".pkl")
# Where a set of pickles was published again as safetensors.
REPUBLISHED = {
    "pythia-70m-deduped": "ctigges/pythia-70m-deduped__res-sm_processed (__mlp-sm, __att-sm)",
}

__all__ = [
    "LAYOUTS",
    "DictionaryFacts",
    "TrainedDictionary",
    "open_dictionary",
    "save_dictionary",
]


def open_dictionary(
    where: Path | str,
    *,
    point: str | None = None,
    step: int | None = None,
    model: str | None = None,
    prepend_bos: bool | None = None,
) -> TrainedDictionary:
    """Read a dictionary of any known layout.

    Args:
        where: its folder or one of its files, or a folder of a repository of the hub:
            ``google/gemma-scope-2b-pt-res:layer_20/width_16k/average_l0_71``.
        point, step, model, prepend_bos: what the files do not say (``DictionaryFacts``); what they
            do say may not be said otherwise.

    Raises:
        InputError: nothing there, a layout that is not known, a pickle, a damaged file, settings
            that are not known, or something said otherwise than by the files.

    Example:
        >>> trained = open_dictionary("sae/layers.3")
        >>> f = encode(trained.dictionary, x)
    """
    require_type("where", where, (str, Path), "a folder, or REPOSITORY:FOLDER of the hub")
    folder = _located(str(where))
    layout = next((one for one in LAYOUTS.values() if one.recognises(folder)), None)
    if layout is None:
        raise _unknown(folder, str(where))
    found = layout.read(folder)
    check_point(point, "point")
    given = {"point": point, "step": step, "model": model, "prepend_bos": prepend_bos}
    facts = replace(found.facts, sha256=dictionary_sha256(found.dictionary), source=str(where))
    for name, value in given.items():
        said = getattr(facts, name)
        if value is None:
            continue
        if said is not None and said != value:
            raise InputError(
                f"{where} says {name} {said!r}, and {value!r} was given", "leave it out"
            )
        facts = replace(facts, **{name: value})
    return replace(found, facts=facts)


def dictionary_sha256(dictionary: Dictionary) -> str:
    """A hash of a dictionary's arrays, whatever layout they are written in.

    Args:
        dictionary: one.
    """
    arrays = {
        field.name: value
        for field in fields(dictionary)
        if hasattr(value := getattr(dictionary, field.name), "shape")
    }
    return sha256_of_tensors(arrays)


def save_dictionary(
    trained: TrainedDictionary, folder: Path | str, layout: str = sae_lens.LAYOUT
) -> list[Path]:
    """Write a dictionary, and return the files.

    Args:
        trained: the dictionary and where it belongs.
        folder: made where it is missing.
        layout: a name of ``LAYOUTS``; "sae_lens" holds every kind.

    Raises:
        InputError: an unknown layout, one that cannot hold the dictionary, or a file that cannot
            be written.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown", f"use {', '.join(LAYOUTS)}")
    found: list[Path] = LAYOUTS[layout].write(trained, Path(folder))
    return found


def _located(where: str) -> Path:
    """The folder that is meant; of a repository, downloaded or from the cache."""
    path = Path(where).expanduser()
    if path.suffix in PICKLES:
        raise _pickle(path)
    if path.is_dir():
        return path
    if path.is_file():
        inner = path.parent.name == "checkpoints" and (path.parent.parent / llama_scope.CONFIG)
        return path.parent.parent if inner and inner.is_file() else path.parent
    named = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w./-]*))?", where)
    if named is None or where.startswith((".", "/", "~")):
        raise InputError(f"{where}: there is no such folder", "check the path")
    return _from_hub(named[1], (named[2] or "").strip("/"))


def _from_hub(repository: str, inside: str) -> Path:
    if ".." in inside.split("/"):
        raise InputError(f"{repository}:{inside} leaves the repository", "name a folder of it")
    patterns = [f"{inside}/*" if inside else "*.json", f"{inside}/*" if inside else "*.safetensors"]

    def download(local: bool) -> Path:
        found = huggingface_hub.snapshot_download(
            repository, allow_patterns=patterns, ignore_patterns=["*.pt"], local_files_only=local
        )
        return Path(found) / inside

    try:
        folder = download(local=False)
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError) as error:
        raise InputError(
            f"{repository} is neither a folder nor a repository of the hub", "check its name"
        ) from error
    except (OSError, ValueError, TRANSPORT_ERROR) as error:
        try:
            folder = download(local=True)
        except (OSError, ValueError, TRANSPORT_ERROR):
            why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise InputError(
                f"{repository} is no folder, not in the local cache, and the hub cannot be reached "
                f"({why})",
                "connect once to download it, or give a folder",
            ) from error
    if not folder.is_dir():
        raise InputError(f"{repository} has no folder {inside!r}", "see its list of files")
    return folder


def _unknown(folder: Path, where: str) -> InputError:
    """What to say of a folder that no layout recognises."""
    names = sorted(path.name for path in folder.iterdir())
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return _pickle(folder / pickles[0])
    inside = [n for n in names if (folder / n).is_dir() and any(
        layout.recognises(folder / n) for layout in LAYOUTS.values())]  # fmt: skip
    if inside:
        return InputError(
            f"{where} holds {len(inside)} dictionaries and is none itself",
            f"name one of them, for example {inside[0]}",
        )
    found = ", ".join(names[:4]) or "nothing"
    return InputError(
        f"{where} is no dictionary in a layout that is known here: it has {found}",
        "give a folder with cfg.json and sae_weights.safetensors (SAELens) or sae.safetensors "
        "(sparsify), params.npz or params.safetensors (Gemma Scope), or hyperparams.json (Llama "
        "Scope)",
    )


def _pickle(path: Path) -> InputError:
    again = next((to for name, to in REPUBLISHED.items() if name in str(path)), None)
    remedy = (
        f"use its publication as safetensors, {again}"
        if again
        else "convert it on a machine you trust: load it there with the tool that wrote it, and "
        "save its tensors in SAELens's layout"
    )
    return InputError(f"{path} is a pickle, which can run code when it is opened", remedy)

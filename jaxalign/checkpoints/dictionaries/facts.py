"""What a published dictionary says of itself: its model, where it reads, how it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.edits.points import POINTS
from jaxalign.engine.activations import place_name
from jaxalign.errors import InputError, shown

CHANGED = "download the dictionary again"
# What TransformerLens calls a point, by ours; a number is what its layer is counted from.
STREAM_BEFORE = "hook_resid_pre"
HOOKS = {
    STREAM_BEFORE: ("resid", 0),
    "hook_resid_post": ("resid", 1),
    "hook_resid_mid": ("resid_mid", 0),
    "hook_attn_out": ("attn_out", 0),
    "hook_mlp_out": ("mlp_out", 0),
    "attn.hook_z": ("z", 0),
    "hook_mlp_in": ("mlp_in", 0),
    "mlp.hook_in": ("mlp_in", 0),
    "ln2.hook_normalized": ("mlp_in", 0),
    "mlp.hook_post": ("mlp_hidden", 0),
}


@dataclass(frozen=True, kw_only=True)
class DictionaryFacts:
    """Where a dictionary belongs.

    Attributes:
        layout: of its files: "sae_lens", "sparsify", "gemma_scope", "llama_scope".
        model: the name of the model it was trained on; None where the files do not say.
        point: a name of ``edits.points.POINTS``, which it stands for; None where nothing says.
        step: the layer, counted from 0; of ``resid`` the step: 0 the embedding, ``l + 1`` behind
            block ``l``. None at the model's end.
        reads: the point that a transcoder reads; None where it is ``point``.
        prepend_bos: whether it was trained on texts that begin with the beginning-of-sequence
            token; None where nothing says.
        context_size: tokens of the texts it was trained on; None where nothing says.
        behind_post_norm: whether what it stands for is what a norm behind the MLP or the attention
            makes of its output (Gemma 2 and 3), a value that ``point`` stands before.
        weights_sha256: of the model's weight files, where the dictionary was trained by this
            project.
        source: the folder or file.
        sha256: of the dictionary's tensors as they were read.
        notes: what a reader of a result has to know.
        training: how it was trained, as its own file says; of this project's dictionaries.
    """

    layout: str
    model: str | None = None
    point: str | None = None
    step: int | None = None
    reads: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    behind_post_norm: bool = False
    weights_sha256: str | None = None
    source: str = ""
    sha256: str = ""
    notes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> str:
        """``resid after L3``, as messages name a place; "an unknown place" where nothing says."""
        return "an unknown place" if self.point is None else place_name((self.point, self.step))


@dataclass(frozen=True, kw_only=True)
class TrainedDictionary:
    """A dictionary and where it belongs.

    Attributes:
        dictionary: its arrays.
        facts: what its files say.
    """

    dictionary: Dictionary
    facts: DictionaryFacts


def place_of_hook(name: str, where: Path | str) -> tuple[str, int | None]:
    """Our point and step of a hook of TransformerLens.

    Args:
        name: ``blocks.3.hook_resid_post``, ``hook_embed``, ``ln_final.hook_normalized``.
        where: what names it, for the error.

    Raises:
        InputError: a hook that is none of them.

    Example:
        >>> place_of_hook("blocks.3.hook_resid_post", "cfg.json")
        ('resid', 4)
    """
    if name == "hook_embed":
        return "resid", 0
    if name == "ln_final.hook_normalized":
        return "final_norm", None
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if found is None or found[2] not in HOOKS:
        raise InputError(
            f"{where} names the hook {shown(name)}, at which no dictionary is read here",
            f"use one at blocks.N. and {', '.join(HOOKS)}, hook_embed or ln_final.hook_normalized",
        )
    point, first = HOOKS[found[2]]
    return point, int(found[1]) + first


def hook_of_place(point: str, step: int | None) -> str:
    """The hook of TransformerLens at one of our points (``place_of_hook`` the other way round).

    Args:
        point: a name of ``edits.points.POINTS``.
        step: the layer, of ``resid`` the step.

    Raises:
        InputError: a point that TransformerLens's dictionaries have no name for.
    """
    if (point, step) == ("resid", 0):
        return "hook_embed"
    if point == "final_norm":
        return "ln_final.hook_normalized"
    # The first name of each point; the stream is named behind its block.
    names = {own: hook for hook, (own, _) in reversed(HOOKS.items()) if hook != STREAM_BEFORE}
    if point not in names or step is None:
        raise InputError(
            f"a dictionary at {point} {step} has no name in this layout",
            f"use a dictionary at {', '.join(sorted(names))} and a layer",
        )
    return f"blocks.{step - HOOKS[names[point]][1]}.{names[point]}"


def check_point(point: str | None, where: Path | str) -> None:
    """Refuse a point that there is not, or whose positions have no vectors.

    Args:
        point: as given.
        where: what names it.

    Raises:
        InputError: names the points there are.
    """
    if point is not None and (point not in POINTS or not POINTS[point].position):
        names = [name for name, at in POINTS.items() if at.position]
        raise InputError(f"{where}: there is no point {shown(point)}", f"use {', '.join(names)}")


class Settings:
    """The settings of a dictionary's JSON file, read by name and type, in words where they fail.

    Args:
        content: of the file.
        path: of it.
    """

    def __init__(self, content: Any, path: Path) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{path} is {shown(content)}, expected an object of settings", CHANGED)
        self.content, self.path = content, path

    def get(self, name: str, kind: type, default: Any = None, *, required: bool = False) -> Any:
        """A setting of the given type.

        Args:
            name: its key.
            kind: bool, int, float, str or dict; an int is a float, too.
            default: where it is missing or null.
            required: whether it has to be there.

        Raises:
            InputError: it is missing or of another type.
        """
        value = self.content.get(name)
        if value is None:
            if required:
                raise InputError(f"{self.path} has no {name!r}", CHANGED)
            return default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = number if kind is float else isinstance(value, kind)
        if kind is int and isinstance(value, bool):
            right = False
        if not right:
            raise InputError(
                f"{self.path}: {name} is {shown(value)}, expected {_WORDS[kind]}", CHANGED
            )
        return value

    def one_of(self, name: str, known: Mapping[str, Any], default: str | None = None) -> Any:
        """What one of several words stands for.

        Args:
            name: the setting's key.
            known: what each word stands for.
            default: the word where it is missing.

        Raises:
            InputError: another word.
        """
        word = self.get(name, str, default, required=default is None)
        if word not in known:
            raise InputError(
                f"{self.path}: {name} is {shown(word)}, which is not known here",
                f"use a dictionary with {', '.join(map(repr, known))}",
            )
        return known[word]

    def at_rest(self, neutral: Mapping[str, Any]) -> None:
        """Refuse settings that would change what the dictionary computes, in a way not built here.

        Args:
            neutral: the value of each that changes nothing.

        Raises:
            InputError: names one that has another value.
        """
        for name, value in neutral.items():
            found = self.content.get(name, value)
            if found != value and found is not None:
                raise InputError(
                    f"{self.path}: {name} is {shown(found)}, which jaxalign does not compute",
                    f"use a dictionary whose {name} is {shown(value)}",
                )


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "an object",
}

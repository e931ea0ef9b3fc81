"""How families of Llama's line spell rotation: its base, and its scaling for longer contexts."""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.settings import ROTARY, Settings
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.rotary import RotaryScaling

LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "original_positions",
}


def rope_of(settings: Settings) -> tuple[str, Settings]:
    """The object that describes rotation, in the spelling of transformers 5 or the one before.

    Args:
        settings: of the file, which loses it.

    Returns:
        its name and its settings, none where the file has no such object.

    Raises:
        InputError: both spellings at once.
    """
    given = {name: rope for name in ROTARY if (rope := settings.inner(name)).given}
    if len(given) > 1:
        raise InputError(
            f"{settings.where} has both rope_parameters and rope_scaling", "keep one of the two"
        )
    [found] = given.items() or [(ROTARY[0], settings.inner(ROTARY[0]))]
    return found


def rotary(settings: Settings) -> dict[str, Any]:
    """``rotary_base`` and ``rotary_scaling``, the same in all layers.

    Args:
        settings: of the file.

    Raises:
        InputError: a kind of scaling, or a setting of one, that is not known; or both spellings
            at once.
    """
    name, rope = rope_of(settings)
    base = rope.number("rope_theta", settings.number("rope_theta", 10000.0))
    return {"rotary_base": base, "rotary_scaling": scaling_of(name, rope)}


def scaling_of(name: str, rope: Settings) -> RotaryScaling | None:
    """The scaling that an object describes; None where rotation is plain.

    Args:
        name: of the object.
        rope: its settings but for the base.

    Raises:
        InputError: a kind of scaling, or a setting of one, that is not known.
    """
    kind = rope.kind()
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"{rope.where} asks for a partial_rotary_factor, which this family does not have",
            rope.as_published,
        )
    fields = {"linear": ("factor",), "llama3": tuple(LLAMA3)}.get(kind, ())
    if kind not in ("default", "linear", "llama3") or set(rope.left) != set(fields):
        raise InputError(
            f"{name} asks for rotary scaling ({', '.join([kind, *sorted(rope.left)])}), "
            "expected default, linear (factor) or llama3 (" + ", ".join(LLAMA3) + ")",
            "use a model with one of these",
        )
    if kind == "default":
        return None
    whole = "original_max_position_embeddings"
    values = {
        LLAMA3[field]: rope.whole(field) if field == whole else rope.number(field)
        for field in fields
    }
    return RotaryScaling(kind, **values)  # type: ignore[arg-type]


def rotary_settings(config: ModelConfig) -> dict[str, Any]:
    """The rotary settings in the spelling that old and new versions of transformers read."""
    scaling = config.rotary_scaling
    settings: dict[str, Any] = {"rope_theta": config.rotary_base}
    if scaling is not None:
        fields = LLAMA3 if scaling.kind == "llama3" else {"factor": "factor"}
        stretched = {name: getattr(scaling, field) for name, field in fields.items()}
        settings["rope_scaling"] = {"rope_type": scaling.kind, **stretched}
    return settings

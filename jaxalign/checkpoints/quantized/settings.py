"""Reading a ``quantization_config``: settings that name what they are, and refusals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxalign.checkpoints.quantized.linear import PackedLinear
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.errors import InputError


@runtime_checkable
class Format(Protocol):
    """A published format: how one linear layer's tensors are read.

    Attributes:
        title: the format and its settings, for people.
        inputs: how the tool that wrote it rounds a layer's input when it runs, of
            ``scheme.INPUTS``; None where it does not, "other" where in another way than those.
        rescales: whether its tools may move scales between weights, norms and activations, so that
            a matrix is the original's only up to what ``moved_scales`` finds.
    """

    title: str
    inputs: str | None
    rescales: bool

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.

        Raises:
            InputError: one of its tensors is missing or cannot be what it says.
        """


def integer(settings: Mapping[str, Any], *names: str) -> int:
    """A whole number under the first of some names that is there.

    Raises:
        InputError: it is missing or no whole number.
    """
    for name in names:
        if (value := settings.get(name)) is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise refused(f"{name} is {shown(value)}, expected a whole number")
            return value
    raise refused(f"{names[0]!r} is missing")


def flag(settings: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A setting that is true or false.

    Args:
        settings: all of them.
        name: the setting's.
        default: what it is where it is missing or null.

    Raises:
        InputError: it is of another type. ``"false"`` is a text, which Python takes for true.
    """
    value = settings.get(name)
    if not isinstance(value, bool | None):
        raise refused(f"{name} is {shown(value)}, expected true or false")
    return default if value is None else value


def text(settings: Mapping[str, Any], name: str, default: str = "") -> str:
    """A setting that is a text.

    Args:
        settings: all of them.
        name: the setting's.
        default: what it is where it is missing or null.

    Raises:
        InputError: it is of another type.
    """
    value = settings.get(name)
    if not isinstance(value, str | None):
        raise refused(f"{name} is {shown(value)}, expected a text")
    return default if value is None else value


def shown(value: Any) -> str:
    """A value of a file for an error, cut to 60 characters."""
    written = repr(value)
    return written if len(written) <= 60 else written[:59] + "…"


def bits_of(settings: Mapping[str, Any], *allowed: int) -> int:
    """The bits of a code.

    Raises:
        InputError: a number of bits that is not read here.
    """
    bits = integer(settings, "bits", "w_bit", "num_bits")
    if bits not in allowed:
        raise InputError(
            f"quantization_config says {bits} bits, expected {' or '.join(map(str, allowed))}",
            "other widths are not read; quantize the model to one that is",
        )
    return bits


def group_of_settings(settings: Mapping[str, Any]) -> int | None:
    """The group size, None for one scale an output.

    Raises:
        InputError: it is no group size.
    """
    size = integer(settings, "group_size", "q_group_size")
    if size == -1:
        return None
    if size < 1:
        raise refused(f"group_size is {size}, expected −1 or a positive number")
    return size


def block_of(settings: Mapping[str, Any], name: str) -> tuple[int, int]:
    """The sizes of a block, outputs and inputs.

    Args:
        settings: all of them.
        name: the setting's.

    Raises:
        InputError: it is missing, or no list of two positive whole numbers.
    """
    value = settings.get(name)
    whole = isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
    if not isinstance(value, list) or not whole or len(value) != 2:
        raise refused(f"{name} is {shown(value)}, expected a list of two positive numbers")
    return value[0], value[1]


def known_alone(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Check that there is no setting whose meaning is not known.

    Args:
        settings: all of them; names that begin with ``_`` are tools' own marks.
        known: the names that may be there.

    Raises:
        InputError: another one is there, and says something.
    """
    for name, value in settings.items():
        if name not in known and not name.startswith("_") and value is not None:
            raise refused(f"{name} is {shown(value)}, and that setting is not known")


def one_of(name: str, found: str, allowed: Sequence[str]) -> None:
    """Check that a setting has one of the values that are read here.

    Args:
        name: the setting's.
        found: its value.
        allowed: what it may be.

    Raises:
        InputError: it is something else.
    """
    if found not in allowed:
        raise refused(f"{name} is {shown(found)}, expected {' or '.join(map(repr, allowed))}")


def by_group(size: int | None) -> str:
    """A group size in words."""
    return "one scale an output" if size is None else f"groups of {size}"


def refused(what: str) -> InputError:
    """The error of a setting that cannot be used."""
    return InputError(
        f"quantization_config: {what}", "use the config.json that was written with these weights"
    )

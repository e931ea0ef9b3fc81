"""A precision scheme as a frozen value: what the weights are, and where activations are rounded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from jaxalign.errors import InputError

# Where a scheme may round activations, in the order the model reaches them.
SITES = ("embed", "attn_out", "mlp_out", "resid", "final_norm")


@dataclass(frozen=True)
class Scheme:
    """One way of computing the model.

    Attributes:
        name: how users call it and how results name it.
        compute_dtype: dtype of weights and activations. Norms, rotary angles, softmax and logits
            are computed in f32 whatever it is, and rounded once.
        int8_sites: the sites (of ``SITES``) after which activations are rounded to signed int8
            per example and at once dequantized; empty for none.
    """

    name: str
    compute_dtype: str = "float32"
    int8_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [site for site in self.int8_sites if site not in SITES]
        if unknown:
            raise InputError(f"scheme {self.name!r} rounds at {unknown}", f"use sites of {SITES}")

    @property
    def rounds_activations(self) -> bool:
        """Whether any site rounds over a whole example, so that every position must be computed."""
        return bool(self.int8_sites)


F32 = Scheme("f32")
F16 = Scheme("f16", compute_dtype="float16")
BF16 = Scheme("bf16", compute_dtype="bfloat16")
INT8_SIM = Scheme("int8-sim", int8_sites=SITES)

SCHEMES = {scheme.name: scheme for scheme in (F32, F16, BF16, INT8_SIM)}


def scheme_named(name: str) -> Scheme:
    """The scheme called ``name``.

    Raises:
        InputError: no scheme has that name; the nearest ones are suggested.
    """
    if name not in SCHEMES:
        near = difflib.get_close_matches(name, SCHEMES, n=3, cutoff=0.3) or list(SCHEMES)
        raise InputError(f"unknown precision scheme {name!r}", f"use one of {', '.join(near)}")
    return SCHEMES[name]

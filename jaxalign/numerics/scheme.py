"""A precision scheme as a frozen value: what the weights are, and where activations are rounded.

Names are read by a small grammar, so that every group size has one: ``nf4``, ``int4-g128``,
``awq-g64``; ``@f16`` or ``@bf16`` behind a name computes in that dtype, as deployed (by default
weights are unpacked to f32, so that the damage is that of the weights alone).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from jaxalign.errors import InputError, require_type

# Where a scheme may round activations, in the order the model reaches them.
SITES = ("embed", "attn_out", "mlp_out", "resid", "final_norm")

# How a linear layer's input may be rounded: int8 or float8 with one scale a token, int8 with one
# fixed scale from calibration, and LLM.int8's split into int8 and f16 columns.
INPUTS = ("int8-token", "int8-static", "e4m3fn-token", "e5m2-token", "llm-int8")
# Those that look at a whole example.
WHOLE_EXAMPLE = ("llm-int8",)

# Methods whose decisions cascade: GPTQ's next roundings make good the last ones, AWQ picks the best
# of a grid of scales and clips.
SOLVES = ("awq", "gptq")

# Codes of packed weights, with the bits of each.
WHOLE_NUMBERS = range(2, 9)  # bits of whole-number codes
CODES = {f"int{bits}": bits for bits in WHOLE_NUMBERS}
CODES |= {"nf4": 4, "fp4": 4, "e2m1": 4, "e4m3fn": 8, "e5m2": 8}
# How scales are held: as they are; in e4m3 beside one f32 scale of the whole matrix (NVFP4); as
# powers of two (MXFP4).
SCALES = ("float", "e4m3", "e8m0")

COMPUTE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}

# Scales that share a scale of their own where scales are quantized, too.
SCALES_PER_BLOCK = 256


@dataclass(frozen=True)
class WeightFormat:
    """How the matrix of a linear layer is stored.

    Attributes:
        codes: one of ``CODES``.
        group: inputs that share a scale; None where all inputs of an output channel do.
        levels: the scale of symmetric codes is ``max|w| / levels``. Tools disagree (7 or 7.5, 127
            or 127.5), so it is stated; int8 inputs are rounded by the convention of the weights.
        zero: whether each group has a zero point beside its scale (asymmetric codes).
        double: whether the scales are quantized, too (QLoRA, arXiv 2305.14314, section 3).
        absmax: whether ``scale`` holds ``max|w|`` itself, so that a weight is
            ``code · scale / levels``, multiplied in that order (bitsandbytes' int8).
        block: outputs that share a scale, too, where a scale belongs to a block of the matrix. The
            last block of a row or a column may then be smaller.
        scales: how scales are held, of ``SCALES``.
        scale_bits: bits of a scale in the files of the tools that deploy the format (a scale that
            is quantized, too, takes 8 and its share of another scale).
        zero_bits: bits of a zero point in those files.
        offset_bits: bits of an offset that is added to the weights of a group, in those files,
            where the format has offsets; with their share of a block's offset, as of its scale.
        wide: whether a weight is computed and kept in f32, whatever the scale's dtype (GGUF).
    """

    codes: str
    group: int | None = None
    levels: int | float = 1.0
    zero: bool = False
    double: bool = False
    absmax: bool = False
    block: int | None = None
    scales: str = "float"
    scale_bits: int = 32
    zero_bits: int = 4
    offset_bits: int = 0
    wide: bool = False

    @property
    def bits(self) -> int:
        """Bits of a code, as files of tools that deploy it hold them without a gap."""
        return CODES[self.codes]

    @property
    def per_byte(self) -> int:
        """Codes in a byte of memory here: two of up to 4 bits, else one."""
        return 2 if self.bits <= 4 else 1

    @property
    def lowest(self) -> int:
        """The lowest code beside a zero point: 0, or −128 of int8, which is stored signed."""
        return -128 if self.bits == 8 else 0

    def fits(self, inputs: int) -> bool:
        """Whether the group size divides the inputs of a channel, or need not."""
        return self.block is not None or inputs % (self.group or inputs) == 0

    def groups(self, inputs: int) -> int:
        """How many groups the inputs of a channel make.

        Raises:
            InputError: the group size does not divide them.
        """
        group = self.group or inputs
        if not self.fits(inputs):
            raise InputError(
                f"a linear layer has {inputs} inputs, which groups of {group} do not divide",
                f"leave out the scheme with groups of {group}, or name one whose groups divide "
                f"{inputs}",
            )
        return -(-inputs // group)


@dataclass(frozen=True)
class Scheme:
    """One way of computing the model.

    Attributes:
        name: how users call it and how results name it.
        compute_dtype: dtype of activations and of weights that are not packed. Norms, rotary
            angles, softmax and logits are computed in f32 whatever it is, and rounded once.
        int8_sites: the sites (of ``SITES``) after which activations are rounded to signed int8
            per example and at once dequantized; empty for none.
        weights: how the linear layers of the blocks are stored; None for ``compute_dtype``.
            Embedding, unembedding, norms and biases are never packed.
        inputs: how the input of a packed linear layer is rounded (of ``INPUTS``), or None.
        method: what chooses codes and scales: "" for rounding to the nearest code, or "awq",
            "gptq", "smoothquant", "hqq".
        act_order: GPTQ takes columns by falling second moment of their input.
        alpha: SmoothQuant's exponent, how much of the range goes from activations to weights.
        from_file: whether codes and scales are a checkpoint's, which rounding would not find.
        matrix_bits: bits of the matrices of all blocks in a checkpoint that packs them in more
            than one way; None where ``weights`` says it.
    """

    name: str
    compute_dtype: str = "float32"
    int8_sites: tuple[str, ...] = ()
    weights: WeightFormat | None = None
    inputs: str | None = None
    method: str = ""
    act_order: bool = False
    alpha: float = 0.5
    from_file: bool = False
    matrix_bits: int | None = None

    def __post_init__(self) -> None:
        unknown = [site for site in self.int8_sites if site not in SITES]
        if unknown:
            raise InputError(f"scheme {self.name!r} rounds at {unknown}", f"use sites of {SITES}")

    @property
    def rounds_activations(self) -> bool:
        """Whether a rounding looks at a whole example, so that every position must be computed."""
        return bool(self.int8_sites) or self.inputs in WHOLE_EXAMPLE

    @property
    def run(self) -> Scheme:
        """What a compiled program needs of the scheme: equal for schemes that can share one.

        How weights are packed is read off the parameters, so ``int4-g128``, ``awq-g128`` and
        ``gptq-g128`` run as ``f32``. For the static argument of compiled functions.

        Example:
            >>> scheme_named("awq-g128").run.name, scheme_named("nf4@f16").run.name
            ('f32', 'f16')
        """
        names = {dtype: name for name, dtype in COMPUTE.items()}
        parts = [names.get(self.compute_dtype, self.compute_dtype)]
        parts += ["int8-sim"] if self.int8_sites else []
        inputs = self.inputs if self.inputs in WHOLE_EXAMPLE else None
        parts += [inputs] if inputs else []
        name = "int8-sim" if (parts, self.int8_sites) == (["f32", "int8-sim"], SITES) else None
        return Scheme(name or "+".join(parts), self.compute_dtype, self.int8_sites, inputs=inputs)

    @property
    def needs_texts(self) -> bool:
        """Whether its weights or scales are chosen by activations on calibration texts."""
        return self.method in ("awq", "gptq", "smoothquant") or self.inputs == "int8-static"

    @property
    def solves(self) -> bool:
        """Whether its decisions hang together, so that one at a tie moves many weights."""
        return self.method in SOLVES and not self.from_file

    @property
    def to_nearest(self) -> bool:
        """Whether rounding each weight to the nearest code is all that it does to them."""
        return not (self.method or self.from_file or self.inputs == "int8-static")


F32 = Scheme("f32")
F16 = Scheme("f16", compute_dtype="float16")
BF16 = Scheme("bf16", compute_dtype="bfloat16")
INT8_SIM = Scheme("int8-sim", int8_sites=SITES)

_INT8 = WeightFormat("int8", levels=127)
_LLM_INT8 = WeightFormat("int8", levels=127, absmax=True)
_FLOAT8 = {
    name: WeightFormat(codes, levels=levels)
    for name, codes, levels in (("e4m3", "e4m3fn", 448.0), ("e5m2", "e5m2", 57344.0))
}
_FP8_BLOCK = replace(_FLOAT8["e4m3"], group=128, block=128)
_NVFP4 = WeightFormat("e2m1", group=16, levels=6.0, scales="e4m3", scale_bits=8)
_MXFP4 = WeightFormat("e2m1", group=32, levels=6.0, scales="e8m0", scale_bits=8)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        F32,
        F16,
        BF16,
        INT8_SIM,
        Scheme("fp8-e4m3", weights=_FLOAT8["e4m3"], inputs="e4m3fn-token"),
        Scheme("fp8-e5m2", weights=_FLOAT8["e5m2"], inputs="e5m2-token"),
        Scheme("fp8-block", weights=_FP8_BLOCK),
        Scheme("int8", weights=_INT8, inputs="int8-token"),
        Scheme("w8a8", weights=WeightFormat("int8", levels=127.5), inputs="int8-token"),
        Scheme("llm-int8", weights=_LLM_INT8, inputs="llm-int8"),
        Scheme("smoothquant", weights=_INT8, inputs="int8-token", method="smoothquant"),
        Scheme("smoothquant-static", weights=_INT8, inputs="int8-static", method="smoothquant"),
        *(
            Scheme(f"{codes}{suffix}", weights=WeightFormat(codes, group=64, double=double))
            for codes in ("nf4", "fp4")
            for suffix, double in (("", False), ("-dq", True))
        ),
        Scheme("nvfp4", weights=_NVFP4),
        Scheme("mxfp4", weights=_MXFP4),
    )
}


def _symmetric(bits: int) -> WeightFormat:
    """Whole codes around 0, ``max|w|`` on the largest."""
    return WeightFormat(f"int{bits}", levels=2 ** (bits - 1) - 1, scale_bits=16)


def _asymmetric(bits: int, zero_bits: int | None = None) -> WeightFormat:
    """Whole codes from 0 and a zero point, by default of as many bits."""
    zero_bits = bits if zero_bits is None else zero_bits
    return WeightFormat(
        f"int{bits}", levels=2**bits - 1, zero=True, scale_bits=16, zero_bits=zero_bits
    )


_SYMMETRIC, _ASYMMETRIC, _FLOAT_ZERO = _symmetric(4), _asymmetric(4), _asymmetric(4, 16)

# Families with a group size in their name: "-g128", or "-channel" for one scale a channel.
_GROUPED = {
    scheme.name: scheme
    for scheme in (
        *(Scheme(f"int{bits}", weights=_asymmetric(bits)) for bits in WHOLE_NUMBERS),
        *(Scheme(f"int{bits}-sym", weights=_symmetric(bits)) for bits in WHOLE_NUMBERS),
        Scheme("w4a16", weights=replace(_SYMMETRIC, levels=7.5)),
        Scheme("awq", weights=_ASYMMETRIC, method="awq"),
        Scheme("gptq", weights=_ASYMMETRIC, method="gptq"),
        Scheme("gptq-actorder", weights=_ASYMMETRIC, method="gptq", act_order=True),
        Scheme("hqq", weights=_FLOAT_ZERO, method="hqq"),
    )
}
_NAME = re.compile(r"(?P<base>.+?)(?:-(?P<group>g[1-9]\d*|channel))?(?:@(?P<compute>\w+))?")
EXAMPLES = (*SCHEMES, *(f"{base}-g128" for base in _GROUPED))


def scheme_named(name: str) -> Scheme:
    """The scheme called ``name``.

    Raises:
        InputError: no scheme has that name; the nearest ones are suggested.

    Example:
        >>> scheme_named("int4-sym-g32@f16").weights.group
        32
    """
    match = _NAME.fullmatch(name)
    base, group, compute = match.group("base", "group", "compute") if match else (name, None, None)
    scheme = (_GROUPED if group else SCHEMES).get(base)
    if scheme is None or (compute and (compute not in COMPUTE or scheme.weights is None)):
        raise InputError(
            f"unknown precision scheme {name!r}", f"use {_hint(name, base, group, compute)}"
        )
    scheme = replace(scheme, name=name) if compute or group else scheme
    if group and scheme.weights:
        size = None if group == "channel" else int(group[1:])
        scheme = replace(scheme, weights=replace(scheme.weights, group=size))
    return replace(scheme, compute_dtype=COMPUTE[compute]) if compute else scheme


def as_scheme(given: Any, name: str = "scheme") -> Scheme:
    """A scheme given as it is or by its name.

    Args:
        given: a ``Scheme``, or what ``scheme_named`` knows: ``"int4-g128@f16"``.
        name: of the argument, for the error.

    Raises:
        InputError: no scheme has that name, or it is neither a scheme nor a name.

    Example:
        >>> as_scheme("nf4") == scheme_named("nf4")
        True
    """
    require_type(name, given, (Scheme, str), "a scheme or its name", 'give for example "nf4"')
    return scheme_named(given) if isinstance(given, str) else given


def as_schemes(given: Any) -> tuple[Scheme, ...]:
    """Several schemes, each given as it is or by its name.

    Args:
        given: a list or a tuple; a lone name is refused, since its letters would be taken.

    Raises:
        InputError: it is no list or tuple, or ``as_scheme`` refuses a part of it.
    """
    expected = "a tuple of schemes or their names"
    require_type("schemes", given, (list, tuple), expected, 'give for example ("nf4", "int4-g64")')
    return tuple(as_scheme(one, "schemes") for one in given)


def _hint(name: str, base: str, group: str | None, compute: str | None) -> str:
    """What to write in place of a name that no scheme has."""
    if base in _GROUPED and not group:
        return f"{base}-g128, {base}-channel, or {base}-g and another group size"
    if base in SCHEMES and group:
        return f"{base}, which takes no group size"
    if base in SCHEMES and SCHEMES[base].weights is None and compute:
        return f"{base}, which packs no weights that @{compute} could compute with"
    if (base in SCHEMES or base in _GROUPED) and compute not in COMPUTE:
        return f"@{' or @'.join(COMPUTE)} behind a name"
    digits = re.match(r"int(\d+)", name)
    if digits and (len(digits[1]) > 1 or int(digits[1]) not in WHOLE_NUMBERS):
        return f"int{min(WHOLE_NUMBERS)} … int{max(WHOLE_NUMBERS)}, for example int4-g128"
    near = difflib.get_close_matches(name.lower(), EXAMPLES, n=3, cutoff=0.4)
    return f"one of {', '.join(near or EXAMPLES)}"

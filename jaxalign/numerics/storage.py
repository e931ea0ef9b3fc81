"""What one packed matrix costs as deployed, in the files of the tools that deploy its format.

Memory while computing is ``QTensor.nbytes``: there, scales and zero points are f32.
"""

from __future__ import annotations

import math

from jaxalign.numerics.scheme import SCALES_PER_BLOCK, WeightFormat

OF_MATRIX = 32  # bits of the scale of a whole matrix


def packed_bits(inputs: int, outputs: int, form: WeightFormat) -> int:
    """Bits of a matrix: its codes, and the scale and zero point of each group or block.

    Scales that are quantized, too, have 8 bits and another scale for 256 of them, the last of
    which may serve fewer (QLoRA, arXiv 2305.14314, section 3). Scales in e4m3 have one f32 scale of
    the whole matrix beside them.

    Args:
        inputs: ``A``, how many inputs the matrix has.
        outputs: ``O``, how many outputs.
        form: how the matrix is packed.

    Raises:
        InputError: the format's groups do not divide the inputs.

    Example:
        >>> packed_bits(4096, 4096, scheme_named("nf4-dq").weights) / 4096**2
        4.126953125
    """
    scales = form.groups(inputs) * -(-outputs // (form.block or 1))
    each = 8 if form.double else form.scale_bits
    blocks = math.ceil(scales / SCALES_PER_BLOCK) if form.double else 0
    each += form.zero_bits * form.zero + form.offset_bits
    bits = scales * each + blocks * form.scale_bits
    bits += OF_MATRIX if form.scales == "e4m3" else 0
    return inputs * outputs * form.bits + bits

"""The values of 4-bit codes: NF4 (QLoRA, arXiv 2305.14314, appendix E), FP4 and E2M1."""

from __future__ import annotations

import numpy as np

NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
# One sign bit, two of exponent, one of mantissa; in the order of bitsandbytes' codes.
_FP4 = [0, 0.0625, 8, 12, 4, 6, 2, 3]
FP4 = (np.array(_FP4 + [-value for value in _FP4]) / 12).astype(np.float32)

# FP4 of OCP's Microscaling Formats v1.0: sign, exponent and mantissa are the bits of the code.
_E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M1 = np.array(_E2M1 + [-float(value) for value in _E2M1], np.float32)

CODEBOOKS = {"nf4": NF4, "fp4": FP4, "e2m1": E2M1}

"""The values of 4-bit float codes: NF4 (QLoRA, arXiv 2305.14314, appendix E) and FP4."""

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

CODEBOOKS = {"nf4": NF4, "fp4": FP4}

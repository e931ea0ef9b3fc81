"""What a number is: precision schemes, rounding, the matrix product, exact compilation."""

from jaxalign.numerics.activation_rounding import fake_quantize_int8, round_activation
from jaxalign.numerics.dot import dot
from jaxalign.numerics.scheme import (
    BF16,
    F16,
    F32,
    INT8_SIM,
    SCHEMES,
    Scheme,
    as_scheme,
    scheme_named,
)
from jaxalign.runtime.canary import PrecisionError, check_canary
from jaxalign.runtime.compile import jit

__all__ = [
    "BF16",
    "F16",
    "F32",
    "INT8_SIM",
    "SCHEMES",
    "PrecisionError",
    "Scheme",
    "as_scheme",
    "check_canary",
    "dot",
    "fake_quantize_int8",
    "jit",
    "round_activation",
    "scheme_named",
]

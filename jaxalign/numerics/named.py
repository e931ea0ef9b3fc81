"""A scheme wherever one is asked for: the value, or its name."""

from __future__ import annotations

from jaxalign.errors import require_type
from jaxalign.numerics.scheme import Scheme, scheme_named


def as_scheme(scheme: Scheme | str, name: str = "scheme") -> Scheme:
    """The scheme that is meant.

    Args:
        scheme: a scheme, or its name: ``"nf4"``, ``"int4-g128@f16"``.
        name: of the argument, for the error.

    Raises:
        InputError: no scheme has that name, or it is neither.

    Example:
        >>> as_scheme("f16").compute_dtype
        'float16'
    """
    require_type(name, scheme, (Scheme, str), "a scheme or its name", 'give for example "nf4"')
    return scheme_named(scheme) if isinstance(scheme, str) else scheme

"""Sparse dictionaries: what activations are made of."""

from jaxalign.dictionaries.dictionary import (
    KINDS,
    Dictionary,
    check_dictionary,
    decode,
    encode,
    reconstruct,
)

__all__ = ["KINDS", "Dictionary", "check_dictionary", "decode", "encode", "reconstruct"]

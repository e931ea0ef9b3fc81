"""Sparse dictionaries: what activations are made of."""

from jaxalign.dictionaries.dictionary import (
    KINDS,
    Dictionary,
    check_dictionary,
    decode,
    encode,
    encode_decode,
    reconstruct,
)

__all__ = [
    "KINDS",
    "Dictionary",
    "check_dictionary",
    "decode",
    "encode",
    "encode_decode",
    "reconstruct",
]

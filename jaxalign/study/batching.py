"""Prompts in batches that calls hold, and the error where not even one prompt fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxalign.errors import InputError
from jaxalign.prompts import Batch, Prompt, batches, bucket_length


def dealt_batches(
    prompts: Sequence[Prompt], most: Callable[[int], int], limit: int, devices: int = 1
) -> list[Batch]:
    """Prompts of similar length in batches that devices can share.

    Args:
        prompts: tokenized.
        most: how many prompts of a padded length a device holds.
        limit: the model's context.
        devices: that share the prompts of a batch; they divide its width.
    """
    tokens = [prompt.tokens for prompt in prompts]
    lengths = {bucket_length(len(ids), limit) for ids in tokens}
    sizes = {length: devices * most(length) for length in lengths}
    return [batch.widen(devices) for batch in batches(tokens, sizes, limit)]


def too_small(what: str, need: float, left: float) -> InputError:
    """The error of a memory budget that does not hold the smallest call.

    Args:
        what: "one prompt of 16 positions".
        need, left: bytes.
    """
    return InputError(
        f"{what} needs {need / 1e9:.3g} GB beside the weights, but the memory budget leaves "
        f"{max(left, 0) / 1e9:.3g} GB",
        "raise --memory-gb or shorten the prompts",
    )

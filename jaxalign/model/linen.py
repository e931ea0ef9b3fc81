"""The model as a Flax Linen module, for people who compose modules.

The module owns no mathematics: it declares the same tree of parameters that ``convert`` loads and
calls ``forward``, so Linen users and array users run one model.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxalign.edits import Edit, HeadEdit
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.params import Params, init_params
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.shapes import Array, Bool, Float, Lengths, Tokens


class GPTNeoX(nn.Module):
    """GPT-NeoX or another family; ``apply`` takes the tree that ``convert.load_params`` returns.

    Attributes:
        config: the architecture.
        scheme: the precision or its name; parameters are given in its dtype.

    Example:
        >>> model = jaxalign.load("demo")
        >>> module = GPTNeoX(model.config)
        >>> logits = module.apply(variables(model.params), tokens, head_mask=mask)
    """

    config: ModelConfig
    scheme: Scheme | str = F32

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        lengths: Lengths | None = None,
        head_mask: Bool[Array, "L H"] | None = None,
        edit: Edit | None = None,
    ) -> Float[Array, "B S V"]:
        """Logits of every position.

        Args:
            tokens: int ``[B, S]``.
            lengths: int ``[B]``, real tokens of each prompt.
            head_mask: heads to switch off (zero-ablated).
            edit: any other edit; not together with ``head_mask``.

        Raises:
            ValueError: both ``head_mask`` and ``edit`` are given.
        """
        if head_mask is not None and edit is not None:
            raise ValueError("head_mask and edit are both given; put the mask into the edit")
        dtype = as_scheme(self.scheme).compute_dtype
        params = self.param("model", init_params, self.config, dtype)
        if head_mask is not None:
            zero = jnp.zeros((self.config.num_layers, 1, 1, 1, 1))
            edit = Edit(HeadEdit(head_mask[:, None, None], zero))
        out = forward(params, tokens, self.config, lengths=lengths, scheme=self.scheme, edit=edit)
        return out.logits


def variables(params: Params) -> dict[str, Any]:
    """Parameters as the variables that ``GPTNeoX.apply`` takes."""
    return {"params": {"model": params}}

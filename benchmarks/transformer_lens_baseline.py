"""The same study in TransformerLens: ``run_with_hooks`` with one head's ``hook_z`` set to zero.

From version 4 on a ``TransformerBridge`` stands in for ``HookedTransformer``. It wraps the model of
transformers with its weights as they are (nothing folded, nothing centred), so its logits are those
of the checkpoint and importances can be compared.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pytorch_baseline as pytorch
from jaxalign.errors import InputError


def load(folder: Path) -> Any:
    """The bridge over a local checkpoint, in f32, on the device that JAX computes on.

    Raises:
        InputError: TransformerLens is not installed, or older than its bridge.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise InputError(
            f"transformer-lens 4 cannot be imported ({error})", "pip install 'jaxalign[bench]'"
        ) from error
    # A model of its own: the bridge puts its hooks into the one it is given.
    model = pytorch.load(folder, attn_implementation="eager")
    return TransformerBridge.boot_transformers(str(folder), hf_model=model, device=pytorch.device())


def importance(
    bridge: Any,
    tokens: np.ndarray,
    target: np.ndarray,
    batch_size: int,
    first: int | None = None,
) -> np.ndarray:
    """``m(clean) − m(head zeroed)``, ``[P, L·H]``; arguments as in ``pytorch_baseline``."""
    import torch

    heads = pytorch.all_heads(bridge.cfg.n_layers, bridge.cfg.n_heads)[:first]

    def zero(z: Any, hook: Any, head: int) -> Any:
        z[:, :, head] = 0.0
        return z

    found = []
    with torch.inference_mode():
        for start in range(0, len(tokens), batch_size):
            ids, answer = (
                pytorch.on_device(a[start : start + batch_size]) for a in (tokens, target)
            )
            clean = pytorch.margin_of(bridge(ids)[:, -1], answer)
            effects = []
            for layer, head in heads:
                hook = functools.partial(zero, head=head)
                logits = bridge.run_with_hooks(
                    ids, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", hook)]
                )
                effects.append(clean - pytorch.margin_of(logits[:, -1], answer))
            found.append(torch.stack(effects, dim=1).cpu().numpy())
    return np.concatenate(found)

"""A tiny model, and a batch of edits of every kind that fits it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edits import (
    Add,
    Edit,
    HeadEdit,
    Replace,
    head_ablation_masks,
    residual_patch_masks,
    zero_ablation,
)
from jaxalign.engine import sweep
from jaxalign.model import ModelConfig, Params, cast, init_params
from jaxalign.model.generate import prefill, step
from jaxalign.numerics import F32, Scheme, jit
from jaxalign.shapes import Array

# One jitted function, so that calls of equal shapes share a program, in this process and, through
# the folder of compiled programs, with other tests'.
STATIC = ("config", "readout", "engine", "scheme", "single_step", "suffixes")
swept = jit(sweep, static_argnames=STATIC)


def logits_of(x: Array) -> Array:
    """A readout: the logits themselves."""
    return x


def loud(config: ModelConfig) -> Params:
    """f32 parameters far from their initial values, norms and biases too."""
    return jax.tree.map(
        lambda a: 3 * a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape),
        init_params(jax.random.key(0), config),
    )


def tiny(
    parallel: bool = True, scheme: Scheme = F32, layers: int = 3, **settings: int
) -> tuple[Params, ModelConfig]:
    """A GPT-NeoX of 4 heads and width 32.

    Args:
        parallel: residual layout.
        scheme: what the parameters are cast to.
        layers: how many.
        settings: other fields of the configuration.
    """
    sizes = {"vocab_size": 96, "num_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_layers": layers, "rotary_dims": 2}
    config = ModelConfig(**sizes | settings, parallel_residual=parallel)
    return cast(loud(config), scheme), config


def edits_for(config: ModelConfig, batch: int, length: int) -> dict[str, Edit]:
    """Batches of edits of every kind, by name; each of them changes the last logits.

    Args:
        config: of the model they fit.
        batch: ``B``, prompts.
        length: ``S``, positions.
    """
    rng = np.random.default_rng(0)
    L, H, D = config.num_layers, config.num_heads, config.hidden_size

    def draw(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    masks = head_ablation_masks(L, H)
    # Row by row fewer heads; those of one row lie in several layers, other ones for each prompt.
    several = np.sort(rng.random((6, L, batch, 1, H)) < 0.3, axis=0)[::-1].copy()
    nothing = HeadEdit(np.zeros((3, L, 1, 1, H), bool), jnp.full((L, 1, 1, H, D), jnp.nan))
    steered = np.eye(L, dtype=bool).reshape(L, L, 1, 1, 1)
    return {
        "zero": zero_ablation(L, H),
        "mean": Edit(HeadEdit(masks, draw(L, 1, 1, H, D))),
        "edge-align": Edit(HeadEdit(masks, draw(L, 1, 1, H, D // H), "edge-align")),
        "several heads, by prompt": Edit(HeadEdit(several, draw(L, batch, length, H, D))),
        "patching": Edit(
            Replace("resid", residual_patch_masks(L, length), draw(L + 1, batch, length, D))
        ),
        "steering": Edit(Add("attn_out", steered, value=draw(L, 1, 1, D))),
        "nothing": Edit(nothing),
    }


def continued(
    params: Params, tokens: Array, config: ModelConfig, room: int, edit: Edit
) -> tuple[Array, Array]:
    """Prompts continued greedily to ``room`` tokens, one call a token; and the next one's logits.

    Args:
        params, config: of the model.
        tokens: int ``[B, S]``, all of them real.
        room: ``T``, tokens in the end.
        edit: of one run, with ``T`` positions.
    """
    lengths = jnp.full(len(tokens), tokens.shape[1])
    one_more = jit(lambda new, cache: step(params, new, cache, config, edit=edit))
    logits, cache = prefill(params, tokens, lengths, config, positions=room, edit=edit)
    for _ in range(room - tokens.shape[1]):
        new = logits.argmax(axis=-1)
        tokens = jnp.concatenate([tokens, new[:, None]], axis=1)
        logits, cache = one_more(new, cache)
    return tokens, logits


def chosen(edits: dict[str, Edit], *names: str) -> dict[str, Edit]:
    """Some of the edits, by name."""
    return {name: edits[name] for name in names}


def prompt_pairs() -> tuple[Array, Array]:
    """Clean and corrupted prompts for ``tiny``, int ``[2, 6]``: their second tokens differ."""
    clean = np.random.default_rng(0).integers(0, 96, (2, 6))
    corrupted = clean.copy()
    corrupted[:, 1] = (corrupted[:, 1] + 40) % 96
    return jnp.asarray(clean), jnp.asarray(corrupted)


def two_logits(logits: Array) -> Array:
    """A metric: the difference of two tokens' logits."""
    return logits[:, 3] - logits[:, 7]

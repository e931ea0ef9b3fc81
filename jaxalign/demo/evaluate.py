"""What the bundled model knows: accuracy on prompts, loss on unseen text."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from jaxalign.demo import corpus
from jaxalign.demo.batches import padded
from jaxalign.demo.tokenizer import separator_of
from jaxalign.model import ModelConfig, Params, forward


@partial(jax.jit, static_argnums=3)
def _top_token(
    params: Params, tokens: jax.Array, lengths: jax.Array, config: ModelConfig
) -> jax.Array:
    logits = forward(params, tokens, config, lengths=lengths, last_only=True).logits
    return logits.argmax(axis=-1)


@partial(jax.jit, static_argnums=3)
def _losses(
    params: Params, tokens: jax.Array, lengths: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Return the summed cross-entropy in nats and the number of predicted tokens."""
    logits = forward(params, tokens, config, lengths=lengths).logits[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    real = jnp.arange(1, tokens.shape[1])[None, :] < lengths[:, None]
    return jnp.where(real, losses, 0.0).sum(), real.sum()


def correct_answers(
    params: Params,
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, str]],
) -> np.ndarray:
    """Tell for each (prompt, target) whether the target's first token is the top-1 prediction.

    Prompts are given bare, without ``<|endoftext|>`` in front, in one batch; the whole vocabulary
    competes.

    Args:
      params: the weights.
      config: of the model.
      tokenizer: of the model.
      prompts: pairs of a prompt and its target, ``B`` in all.

    Returns:
      bool ``[B]``.
    """
    tokens, lengths = padded([tokenizer.encode(prompt).ids for prompt, _ in prompts])
    wanted = np.array([tokenizer.encode(target).ids[0] for _, target in prompts])
    return np.asarray(_top_token(params, tokens, lengths, config)) == wanted


def unseen_loss(
    params: Params, config: ModelConfig, tokenizer: Tokenizer, count: int = 512
) -> tuple[float, float]:
    """Measure the loss on filler documents that no training run reads.

    Args:
      params: the weights.
      config: of the model.
      tokenizer: of the model.
      count: how many documents.

    Returns:
      Mean cross-entropy in nats per token and in bits per byte of text.
    """
    texts = corpus.unseen_filler(count)
    separator = separator_of(tokenizer)
    encoded = [[separator, *tokenizer.encode(text).ids][: config.max_positions] for text in texts]
    covered = sum(len(tokenizer.decode(tokens[1:]).encode()) for tokens in encoded)
    # A few groups of similar length, so that padding costs little.
    encoded.sort(key=len)
    total, predicted = 0.0, 0
    for start in range(0, len(encoded), 64):
        tokens, lengths = padded(encoded[start : start + 64])
        loss, number = _losses(params, tokens, lengths, config)
        total, predicted = total + float(loss), predicted + int(number)
    return total / predicted, total / covered / float(np.log(2))

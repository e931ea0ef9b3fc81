"""Train the bundled model: ``python -m jaxalign.demo.train [--steps N] [--output DIR]``.

Generates the text, trains the tokenizer and a GPT-NeoX of 6 layers and 8 heads on it (next-token
cross-entropy, AdamW with warm-up and cosine decay), rounds the weights to f16, evaluates the
rounded ones and writes a folder in the Hugging Face layout with ``provenance.json``.
An interrupted run goes on from its last checkpoint when the same command is given again.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from tokenizers import Tokenizer
from tqdm import tqdm

from jaxalign.checkpoints.parameters import save_checkpoint
from jaxalign.demo import provenance
from jaxalign.demo.batches import training_batch
from jaxalign.demo.checkpoint import FILE_NAME as CHECKPOINT
from jaxalign.demo.checkpoint import restore, save
from jaxalign.demo.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from jaxalign.model import ModelConfig, Params, forward, init_params

MODEL_FOLDER = Path(__file__).parent / "model"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the trained weights.

    Attributes:
      steps: optimizer steps.
      seed: of corpus, initialization and packing.
      rows: sequences in a batch.
      context: predicted tokens in a row, and the model's longest sequence.
      learning_rate: highest rate, reached after ``warmup`` steps; decays to 2 % of itself.
      warmup: steps of linear warm-up.
      weight_decay: on matrices only, not on biases and layer norms.
      clip: largest global norm of the gradient.
      vocab_size: tokens of the tokenizer.
      tokenizer_documents: documents that the tokenizer is trained on.
      layers, heads, width, hidden: sizes of the model.
    """

    steps: int = 3200
    seed: int = 0
    rows: int = 8
    context: int = 256
    learning_rate: float = 2e-3
    warmup: int = 150
    weight_decay: float = 0.1
    clip: float = 1.0
    vocab_size: int = 4096
    tokenizer_documents: int = 60_000
    layers: int = 6
    heads: int = 8
    width: int = 128
    hidden: int = 512

    def model(self) -> ModelConfig:
        """Return the architecture: Pythia's, except that half of each head's width rotates.

        A quarter of 16 would leave two frequencies, too few to tell positions apart.
        """
        return ModelConfig(
            vocab_size=self.vocab_size,
            num_layers=self.layers,
            num_heads=self.heads,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            max_positions=self.context,
            rotary_dims=self.width // self.heads // 2,
        )


@struct.dataclass
class TrainingState:
    """What a step reads and writes: parameters and the optimizer's moments."""

    params: Params
    optimizer: optax.OptState


def make_optimizer(config: TrainingConfig) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter 2019) after clipping, with its schedule."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup, max(1, config.steps // 4)),
        decay_steps=config.steps,
        end_value=0.02 * config.learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=_decays),
    )


def _decays(params: Params) -> Params:
    def is_matrix(path: tuple[jax.tree_util.GetAttrKey, ...], leaf: jax.Array) -> bool:
        return not any(word in path[-1].name for word in ("bias", "scale"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def initial_state(config: TrainingConfig) -> TrainingState:
    """Return seeded parameters and fresh moments."""
    params = init_params(jax.random.key(config.seed), config.model())
    return TrainingState(params, make_optimizer(config).init(params))


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def training_step(
    state: TrainingState, tokens: jax.Array, config: TrainingConfig
) -> tuple[TrainingState, jax.Array]:
    """Take one optimizer step.

    Args:
      state: donated; use the returned one.
      tokens: int32 ``[rows, context + 1]``.
      config: static.

    Returns:
      The next state and the mean cross-entropy of the batch in nats per token.
    """

    def loss(params: Params) -> jax.Array:
        logits = forward(params, tokens[:, :-1], config.model()).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer, state.params)
    return TrainingState(optax.apply_updates(state.params, updates), optimizer), value


def train(
    config: TrainingConfig, folder: Path, checkpoint_every: int, stop_after: int | None = None
) -> tuple[Params, Tokenizer, np.ndarray]:
    """Train from scratch or from the checkpoint in ``folder``.

    Args:
      config: of the run; a checkpoint of another one is refused.
      folder: holds tokenizer and checkpoint.
      checkpoint_every: steps between checkpoints.
      stop_after: stop at this step, with a checkpoint; None trains to the end.

    Returns:
      Parameters, tokenizer, and the loss of every step, f32 ``[steps]``.
    """
    state = initial_state(config)
    losses: list[float] = []
    if (folder / CHECKPOINT).exists():
        state, losses = restore(folder, state, asdict(config))
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = train_tokenizer(config.vocab_size, config.tokenizer_documents, config.seed)
        save_tokenizer(tokenizer, folder, config.context)
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    # disable=None silences the bar where the output is not a terminal.
    bar = tqdm(total=config.steps, initial=len(losses), unit="step", disable=None)
    for step in range(len(losses), last):
        batch = training_batch(tokenizer, config.seed, step, config.rows, config.context + 1)
        state, loss = training_step(state, batch, config)
        losses.append(float(loss))
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        if (step + 1) % checkpoint_every == 0 or step + 1 == last:
            save(folder, state, losses, asdict(config))
            if bar.disable:
                recent = np.mean(losses[-checkpoint_every:])
                print(f"step {step + 1} of {config.steps}: loss {recent:.4f}", flush=True)
    bar.close()
    return state.params, tokenizer, np.array(losses, np.float32)


def round_to_f16(params: Params) -> Params:
    """Return the f32 values of the weights as they are stored, after rounding to f16."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxalign.demo.train",
        description="Train the bundled GPT-NeoX on generated text; resumes where it stopped.",
    )
    parser.add_argument("--steps", type=int, default=TrainingConfig.steps)
    parser.add_argument("--seed", type=int, default=TrainingConfig.seed)
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER, help="folder to write")
    parser.add_argument("--checkpoint-every", type=int, default=250, metavar="STEPS")
    options = parser.parse_args(arguments)
    config = replace(TrainingConfig(), steps=options.steps, seed=options.seed)

    started = time.monotonic()
    params, tokenizer, losses = train(config, options.output, options.checkpoint_every)
    params = round_to_f16(params)
    save_checkpoint(params, config.model(), options.output, dtype="float16")
    record = provenance.record(
        params, tokenizer, asdict(config), losses, options.output, time.monotonic() - started
    )
    provenance.write(record, options.output)
    (options.output / CHECKPOINT).unlink()
    for name, value in record["evaluation"].items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()

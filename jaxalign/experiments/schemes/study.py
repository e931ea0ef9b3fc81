"""What each scheme costs and changes, beside what noise alone would change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxalign import stats
from jaxalign.convert import Model
from jaxalign.environment import describe
from jaxalign.errors import InputError
from jaxalign.experiments.schemes.run import Comparison, compare
from jaxalign.experiments.schemes.size import deployed_bytes, mean_bits, memory_bytes
from jaxalign.model.params import Params, cast
from jaxalign.numerics.compile import require_exact_compilation
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Batch, Prompt, PromptSet, batches, tokenize
from jaxalign.results import Estimate, NoiseFloor, SchemeRow, SchemesResult, number
from jaxalign.weight_error import noisy

NOISE_DRAWS = 3
LEVEL = 0.05
Prepare = Callable[[Params, Scheme], Params]


@dataclass(frozen=True)
class _Work:
    """The model, its prompts in batches, and where a bar shows how far the work is."""

    model: Model
    prompts: list[Prompt]
    batches: list[Batch]
    seed: int

    def compare(self, reference: Params, params: Params, **how: Any) -> Comparison:
        """Every prompt once; numpy arrays ``[P]``."""
        places: list[Any] = [None] * len(self.prompts)
        for batch in self.batches:
            target = batch.fill([np.int32(prompt.target) for prompt in self.prompts])
            arrays = batch.tokens, batch.lengths, target
            found = compare(reference, params, *arrays, config=self.model.config, **how)
            found = jax.tree.map(np.asarray, found)
            for row, i in enumerate(batch.index):
                places[i] = jax.tree.map(lambda a, row=row: a[row], found)
        return jax.tree.map(lambda *values: np.array(values, np.float64), *places)


def schemes_study(
    model: Model,
    prompts: PromptSet,
    schemes: Sequence[Scheme],
    *,
    prepare: Prepare = cast,
    memory_gb: float = 4.0,
    seed: int = 0,
    progress: bool = False,
) -> SchemesResult:
    """Compare schemes with f32 on the same prompts.

    Every measure stands beside two noise floors. Plan noise: the same precision, the prompts run
    one by one instead of in a batch. Weight noise: f32 with normal noise in every matrix, as large
    (Frobenius norm, matrix by matrix and head by head) as the scheme's error there; a scheme far
    below it keeps what matters, one far above it hits it.

    Args:
        model: in f32.
        prompts: from ``read_prompts``.
        schemes: low precisions; f32 is the first row of the result whatever they are.
        prepare: makes a scheme's parameters from the f32 ones (rounding to nearest by default).
        memory_gb: budget of one call.
        seed: of noise, bootstraps and permutations.
        progress: show a progress bar on a terminal.

    Raises:
        InputError: prompts or a scheme cannot be used.

    Example:
        >>> rows = schemes_study(jaxalign.load("demo"), jaxalign.read_prompts(), [INT8_SIM]).rows
        >>> rows[1].kl.value
    """
    if model.params.dtype != jnp.float32:
        raise InputError(f"the model was loaded in {model.params.dtype}", "load it in float32")
    require_exact_compilation()
    tokenized, _, notes = tokenize(prompts, model.tokenizer, model.config)
    most = _most_prompts(model, memory_gb, max(len(prompt.tokens) for prompt in tokenized))
    limit = model.config.max_positions
    work = list(batches([prompt.tokens for prompt in tokenized], most, limit))
    job = _Work(model, tokenized, work, seed)
    for scheme in schemes:
        mean_bits(model.config, scheme)  # refuses groups that do not divide, before any work
    rows = [
        _row(job, scheme, model.params if scheme == F32 else prepare(model.params, scheme))
        for scheme in _bar([F32, *schemes], progress)
    ]
    return SchemesResult(tuple(rows), _metadata(job, notes))


def _bar(schemes: list[Scheme], progress: bool) -> Iterable[Scheme]:
    bar = tqdm(schemes, disable=None if progress else True, leave=False, unit="scheme")
    for scheme in bar:
        bar.set_description(scheme.name)
        yield scheme
    bar.close()
    sys.stderr.flush()


def _most_prompts(model: Model, memory_gb: float, length: int) -> int:
    """Prompts in a batch: logits of both models, their logarithms and heads' contributions."""
    config = model.config
    each = 6 * config.vocab_size + 4 * config.num_layers * config.num_heads * config.hidden_size
    left = memory_gb * 1e9 - 2 * memory_bytes(model.params)
    most = int(left // (4 * length * each))
    if most < 1:
        raise InputError(
            f"one prompt of {length} positions needs {4e-9 * length * each:.3g} GB beside the "
            f"weights, but the memory budget leaves {max(left, 0) / 1e9:.3g} GB",
            "raise --memory-gb or shorten the prompts",
        )
    return min(most, 64)


def _row(job: _Work, scheme: Scheme, params: Params) -> SchemeRow:
    high, config = job.model.params, job.model.config
    found = job.compare(high, params, scheme=scheme.run)
    again = job.compare(params, params, scheme=scheme.run, reference_scheme=scheme.run, alone=True)
    noise = None
    if scheme != F32:
        noise = _weight_noise(job, scheme, params)

    def estimate(values: np.ndarray, *names: str, test: bool = False) -> Estimate:
        rng = stats.generator(job.seed, "schemes", scheme.name, *names)
        value, low, high = (number(x) for x in stats.mean_interval(values, rng))
        return Estimate(value, low, high, stats.sign_flip_p(values, rng) if test else None)

    def floor(name: str) -> NoiseFloor:
        measure, plan = getattr(found, name), getattr(again, name)
        above = estimate(measure - plan, name, "plan", test=True)
        random = None if noise is None else getattr(noise, name)
        return NoiseFloor(
            plan=float(plan.mean()),
            weights=None if random is None else float(random.mean()),
            above_plan=above,
            above_weights=None
            if random is None
            else estimate(measure - random, name, "weights", test=True),
            below=not (above.low is not None and above.low > 0 and (above.p or 0) < LEVEL),
        )

    change = found.margin - found.reference_margin
    return SchemeRow(
        scheme=scheme.name,
        bits=mean_bits(config, scheme),
        megabytes=deployed_bytes(config, scheme) / 1e6,
        memory_megabytes=memory_bytes(params) / 1e6,
        kl=estimate(found.kl, "kl"),
        agreement=estimate(found.agreement, "agreement"),
        margin=estimate(found.margin, "margin"),
        margin_change=None if scheme == F32 else estimate(change, "change", test=True),
        drift=estimate(found.drift, "drift"),
        kl_floor=floor("kl"),
        drift_floor=floor("drift"),
    )


def _weight_noise(job: _Work, scheme: Scheme, params: Params) -> Comparison | None:
    """The mean over draws of f32 with weight noise as large as the scheme's error."""
    high, config = job.model.params, job.model.config
    draws = []
    for draw in range(NOISE_DRAWS):
        key = jax.random.fold_in(jax.random.key(job.seed), draw)
        moved = noisy(high, params, key, config)
        if draw == 0 and _equal(moved, high):
            return None  # the scheme rounds activations only
        draws.append(job.compare(high, moved, scheme=F32))
    return jax.tree.map(lambda *values: np.mean(values, axis=0), *draws)


def _equal(a: Params, b: Params) -> bool:
    return all(bool((x == y).all()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _metadata(job: _Work, notes: list[str]) -> dict[str, Any]:
    source = job.model.source
    device, *_ = jax.tree.leaves(job.model.params)[0].devices()
    return {
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": source.model,
            "revision": source.revision,
            "note": source.note,
            "weights_sha256": job.model.weights_sha256,
        },
        "prompts": len(job.prompts),
        "positions": sum(len(prompt.tokens) for prompt in job.prompts),
        "noise_draws": NOISE_DRAWS,
        "bootstrap_samples": stats.BOOTSTRAP_SAMPLES,
        "seed": job.seed,
        "notes": notes,
        "environment": describe(device),
    }

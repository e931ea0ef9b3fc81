"""The damage study: the map on all prompts, the plan on one half, its validation on the other."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxalign.convert import Model
from jaxalign.environment import describe
from jaxalign.errors import InputError
from jaxalign.experiments.damage.components import parts_of, rows_with
from jaxalign.experiments.damage.cost import Unit, bits_per_weight, budget_bytes, units_of
from jaxalign.experiments.damage.damage_map import damage_map
from jaxalign.experiments.damage.measure import Bench, Effect
from jaxalign.experiments.damage.planner import (
    Measure,
    Scores,
    best,
    greedy,
    random_choices,
    refine,
    score,
    whole_layers,
)
from jaxalign.experiments.damage.validate import Candidates, validate
from jaxalign.model.params import Params, cast
from jaxalign.notes import note
from jaxalign.numerics.compile import require_exact_compilation
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Prompt, PromptSet, tokenize
from jaxalign.results.damage import DamageMap, PlanResult
from jaxalign.stats import generator
from jaxalign.study.option import check_options, memory_option, option, seed_option

FEWEST_PROMPTS = 4
# Above it, the list of draws alone would fill the memory.
MOST_DRAWS = 1_000_000
# Shares of what could be kept, at which the curve is drawn.
CURVE = (0.0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True)
class PlanOptions:
    """How a damage study runs.

    Attributes:
        budget: bits a weight ("5.0bits") or bytes ("1.5MB") of the matrices of all blocks.
        noise_draws: draws of random noise beside each component.
        random_choices: choices that the plan is judged against; at least 20.
        curve_choices: random choices at each budget of the curve.
        memory_gb: of one device for weights and activations.
        seed: of the split, noise, random choices and resampling.

    Raises:
        InputError: a value that cannot be used.
    """

    budget: str = field(
        default="5.0bits",
        metadata=option(
            "--budget",
            metavar="SIZE",
            help="for the matrices of all blocks: bits a weight (5.0bits) or bytes (1.5MB)",
        ),
    )
    noise_draws: int = field(
        default=4,
        metadata=option(
            "--noise-draws",
            metavar="N",
            least=1,
            most=MOST_DRAWS,
            help="random perturbations beside each component",
        ),
    )
    random_choices: int = field(
        default=50,
        metadata=option(
            "--random-choices",
            metavar="N",
            least=20,
            most=MOST_DRAWS,
            help="random choices to judge the plan against",
        ),
    )
    curve_choices: int = 20
    memory_gb: float = field(default=4.0, metadata=memory_option())
    seed: int = field(default=0, metadata=seed_option())

    def __post_init__(self) -> None:
        check_options(self)
        if self.curve_choices < 1:
            raise InputError("curve choices are a count", "give 1 or more")


def plan_study(
    model: Model,
    prompts: PromptSet,
    scheme: Scheme,
    options: PlanOptions = PlanOptions(),
    *,
    low: Params | None = None,
    progress: bool = False,
) -> PlanResult:
    """Map the damage of a weight scheme and plan what to keep in 16 bit within a budget.

    Args:
        model: from ``jaxalign.load``, in f32.
        prompts: from ``jaxalign.read_prompts``.
        scheme: how the other matrices are packed; computed in f32.
        options: budget, controls, seed.
        low: the scheme's parameters, where a calibration made them; rounded to the nearest by
            default.
        progress: say on stderr what is being measured.

    Raises:
        InputError: a scheme that packs no weights or does more than that, a budget that cannot be
            met, too few prompts, or a model that is not finite.

    Example:
        >>> nf4 = scheme_named("nf4")
        >>> result = plan_study(jaxalign.load("demo"), jaxalign.read_prompts(), nf4)
        >>> result.plan.verdict
        'beats random'
    """
    start = time.perf_counter()
    _check(model, scheme, low)
    assert scheme.weights is not None
    units = units_of(model.config, scheme.weights)
    budget = budget_bytes(options.budget, units)
    tokenized, _, notes = tokenize(prompts, model.tokenizer, model.config)
    choosing, validating = split(tokenized, options.seed)
    require_exact_compilation()
    low = cast(model.params, scheme) if low is None else low
    bench = _bench(model, low, tokenized, scheme, options)
    say = note if progress else _silent
    say(f"damage of {len(bench.parts.components())} components, {options.noise_draws} noise draws")
    damage = damage_map(bench, low, options.noise_draws, options.seed)
    say(f"planning on {len(choosing)} prompts")
    measure = _mixtures(bench.on(choosing), low, units)
    scores = score(measure, units)
    candidates = _candidates(measure, units, scores, budget, options)
    say(f"validating on {len(validating)} prompts")
    held = _mixtures(bench.on(validating), low, units)
    plan, curve = validate(held, units, candidates, options.budget, budget, options.seed)
    metadata = _metadata(model, tokenized, scheme, options, choosing, validating, units, notes)
    metadata["seconds"] = time.perf_counter() - start
    return PlanResult(damage, plan, curve, metadata)


def study_map(
    model: Model,
    prompts: PromptSet,
    scheme: Scheme,
    options: PlanOptions = PlanOptions(),
    *,
    low: Params | None = None,
) -> DamageMap:
    """The damage map alone; also of schemes that round activations and pack no weights.

    Raises:
        InputError: as ``plan_study``.
    """
    if scheme.weights is not None or not scheme.int8_sites:
        _check(model, scheme, low)
    tokenized, _, _ = tokenize(prompts, model.tokenizer, model.config)
    require_exact_compilation()
    low = cast(model.params, scheme) if low is None else low
    bench = _bench(model, low, tokenized, scheme, options)
    return damage_map(bench, low, options.noise_draws, options.seed)


def split(prompts: list[Prompt], seed: int) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " W"]]:
    """Which prompts choose and which validate: half of each task, drawn by the seed.

    Raises:
        InputError: fewer than four prompts.
    """
    if len(prompts) < FEWEST_PROMPTS:
        raise InputError(
            f"{len(prompts)} prompts cannot be split into a half that chooses and one that "
            "validates",
            f"give {FEWEST_PROMPTS} prompts or more",
        )
    rng = generator(seed, "plan split")
    tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
    order = np.concatenate(
        [rng.permutation([i for i, p in enumerate(prompts) if p.task == task]) for task in tasks]
    )
    return np.sort(order[::2]), np.sort(order[1::2])


def _check(model: Model, scheme: Scheme, low: Params | None) -> None:
    if model.params.dtype != jnp.float32:
        raise InputError(f"the model was loaded in {model.params.dtype}", "load it in float32")
    if scheme.weights is None:
        raise InputError(
            f"scheme {scheme.name!r} packs no weights, so there is nothing to keep in 16 bit",
            "use a scheme with packed weights, such as nf4 or int4-g32",
        )
    if scheme.inputs is not None or scheme.compute_dtype != "float32":
        raise InputError(
            f"scheme {scheme.name!r} also changes activations, and damage is that of weights alone",
            "use a scheme of weights without @, such as nf4 or int4-g32",
        )
    if scheme.method and low is None:
        raise InputError(
            f"scheme {scheme.name!r} chooses its codes by {scheme.method}",
            "give the calibrated parameters, or a scheme that rounds to the nearest code",
        )


def _bench(
    model: Model, low: Params, prompts: list[Prompt], scheme: Scheme, options: PlanOptions
) -> Bench:
    weights = sum(
        leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves((model.params, low))
    )
    memory = options.memory_gb * 1e9 - weights
    parts = parts_of(model.params, model.config, scheme)
    return Bench(model.params, model.config, scheme, parts, prompts, memory)


def _mixtures(bench: Bench, low: Params, units: list[Unit]) -> Measure:
    """From units to keep to what the model does that has all others in the low scheme."""
    names = bench.parts.names

    def measure(kept: Bool[np.ndarray, "R U"]) -> Effect:
        matrices = np.zeros((len(kept), bench.parts.layers, len(names)), bool)
        for u, unit in enumerate(units):
            for name in unit.matrices:
                matrices[:, unit.layer, names.index(name)] = ~kept[:, u]
        return bench.measure(low, rows_with(matrices, bench.parts))

    return measure


def _candidates(
    measure: Measure, units: list[Unit], scores: Scores, budget: int, options: PlanOptions
) -> Candidates:
    """Everything that is going to be validated, chosen without sight of the validating prompts."""
    least, full = sum(unit.low for unit in units), sum(unit.extra for unit in units)
    allowance = budget - least
    by, first, kl = best(measure, greedy(units, scores, allowance))
    kept, kl, exchanges = refine(measure, units, scores, first, kl, allowance)
    _, layers, _ = best(measure, whole_layers(units, scores, allowance))
    steps = sorted({int(share * full) for share in CURVE})
    rng = generator(options.seed, "random choices")
    return Candidates(
        plan=kept,
        greedy=first,
        layers=layers,
        random=random_choices(units, allowance, options.random_choices, rng),
        curve_budgets=[least + step for step in steps],
        curve_greedy=[best(measure, greedy(units, scores, step))[1] for step in steps],
        curve_layers=[best(measure, whole_layers(units, scores, step))[1] for step in steps],
        curve_random=[random_choices(units, s, options.curve_choices, rng) for s in steps],
        found_by=f"{by} a byte, {exchanges} exchange{'' if exchanges == 1 else 's'}",
        predicted_kl=float(scores.single[~kept].sum()),
        chosen_kl=kl,
    )


def _silent(text: str) -> None:
    """What is told where nobody asked for progress."""


def _metadata(
    model: Model,
    prompts: list[Prompt],
    scheme: Scheme,
    options: PlanOptions,
    choosing: np.ndarray,
    validating: np.ndarray,
    units: list[Unit],
    notes: list[str],
) -> dict[str, Any]:
    least, most = (sum(getattr(u, name) for u in units) for name in ("low", "high"))
    return {
        "model": {
            "name": model.source.model,
            "revision": model.source.revision,
            "weights_sha256": model.weights_sha256,
        },
        "scheme": scheme.name,
        "seed": options.seed,
        "options": asdict(options),
        "prompts": {
            "count": len(prompts),
            "choosing": choosing.tolist(),
            "validating": validating.tolist(),
        },
        "bits_low": bits_per_weight(least, units),
        "bits_high": bits_per_weight(most, units),
        "notes": notes,
        "environment": describe(jax.local_devices()[0]),
    }

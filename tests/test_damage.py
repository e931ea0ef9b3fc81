"""The damage map: each row is the model with that component replaced, and nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pythia_shape import tiny_config

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.devices.mesh import make_mesh, shard_packed, shard_params
from jaxalign.edit import Edit
from jaxalign.errors import InputError
from jaxalign.measures.metrics import kl_divergence, logit_difference
from jaxalign.model import cast, forward, init_params
from jaxalign.model.decoder import block, embed, real_positions, unembed
from jaxalign.model.layers import at_position, normalize
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.numerics.dot import dense
from jaxalign.numerics.scheme import F32, INT8_SIM, scheme_named
from jaxalign.prompts import Prompt, PromptText
from jaxalign.studies.plan.calls import Bench
from jaxalign.studies.plan.components import Component, no_changes, parts_of, rows_of
from jaxalign.studies.plan.map import describe_map, measure_map
from jaxalign.study.weight_noise import low_matrices, noisy_params

CLOSE = {"rtol": 0, "atol": 1e-5}
SCHEME = scheme_named("int4-g16")
LENGTHS = (5, 8, 3, 7)
MATRICES = ("query", "key_value", "out", "up", "down")
LAYOUTS = (
    pytest.param(True, id="parallel"),
    pytest.param(False, id="sequential", marks=pytest.mark.slow),
)


def random_params(config, seed=0):
    """Every parameter random, the matrices large enough for every part to matter."""
    params = init_params(jax.random.key(seed), config)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def prompts(lengths=LENGTHS, vocab=97, seed=1):
    rng = np.random.default_rng(seed)
    return [
        Prompt(PromptText("", ""), "task", tuple(rng.integers(0, vocab, n).tolist()), int(target))
        for n, target in zip(lengths, rng.integers(0, vocab, len(lengths)), strict=True)
    ]


def bench_of(config, params, scheme, memory=1e9, asked=None):
    parts = parts_of(params, config, scheme)
    return Bench(params, config, scheme, parts, asked or prompts(), memory)


def damage_map(bench, low, draws, seed):
    keys = [jax.random.fold_in(jax.random.key(seed), draw) for draw in range(draws)]
    noises = [noisy_params(bench.params, low, key, config=bench.config) for key in keys]
    return describe_map(measure_map(bench, low, noises), seed)


def tiny(parallel=True, **overrides):
    settings = {"num_hidden_layers": 2, "use_parallel_residual": parallel} | overrides
    config = config_from_hf(tiny_config(**settings))
    return config, random_params(config)


def padded(asked):
    tokens = np.zeros((len(asked), 8), np.int32)
    for row, prompt in zip(tokens, asked, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    lengths = np.array([len(prompt.tokens) for prompt in asked])
    return jnp.asarray(tokens), jnp.asarray(lengths)


def read(logits, clean, asked):
    targets = jnp.array([prompt.target for prompt in asked])
    m = logit_difference(logits, targets) - logit_difference(clean, targets)
    return np.asarray(m), np.asarray(kl_divergence(clean, logits))


def replaced(params, low, component, config):
    """The parameters with one component taken from ``low``, written out by hand."""
    blocks = dict(vars(params.blocks.attention)) | dict(vars(params.blocks.mlp))
    lows = dict(vars(low.blocks.attention)) | dict(vars(low.blocks.mlp))
    h = config.head_size
    for name in MATRICES:
        array, other = np.array(blocks[name]), np.asarray(dense(lows[name]))
        layers = range(config.num_layers) if component.layer is None else [component.layer]
        for layer in layers:
            if component.kind in ("layer", "whole") or component.name == name:
                array[layer] = other[layer]
            elif component.kind == "head" and name in ("query", "key_value", "out"):
                own = slice(int(component.name) * h, (int(component.name) + 1) * h)
                at = (layer, own) if name == "out" else (layer, ..., own)
                array[at] = other[at]
        blocks[name] = jnp.asarray(array)
    own = {
        part: dataclasses.replace(
            getattr(params.blocks, part),
            **{n: blocks[n] for n in MATRICES if hasattr(getattr(params.blocks, part), n)},
        )
        for part in ("attention", "mlp")
    }
    return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **own))


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_each_row_is_the_model_with_that_component_replaced(parallel):
    config, params = tiny(parallel)
    low, asked = cast(params, SCHEME), prompts()
    bench = bench_of(config, params, SCHEME)
    components = bench.parts.components()
    assert len(components) == 2 * (5 + 4 + 1) + 1
    effect = bench.measure(low, rows_of(components, bench.parts))
    tokens, lengths = padded(asked)
    run = jax.jit(lambda p: forward(p, tokens, config, lengths=lengths, last_only=True).logits)
    clean = run(params)
    for i, component in enumerate(components):
        m, kl = read(run(replaced(params, low, component, config)), clean, asked)
        np.testing.assert_allclose(effect.change[i], m, **CLOSE, err_msg=str(component))
        np.testing.assert_allclose(effect.kl[i], kl, **CLOSE, err_msg=str(component))
        assert np.abs(m).max() > 1e-3, f"{component} changes nothing, so nothing is tested"


def test_everything_is_the_scheme_itself():
    config, params = tiny()
    low, asked = cast(params, SCHEME), prompts()
    bench = bench_of(config, params, SCHEME)
    effect = bench.measure(low, rows_of([Component("whole")], bench.parts))
    tokens, lengths = padded(asked)
    logits = [
        forward(p, tokens, config, lengths=lengths, scheme=scheme, last_only=True).logits
        for p, scheme in ((params, F32), (low, SCHEME))
    ]
    m, kl = read(logits[1], logits[0], asked)
    np.testing.assert_allclose(effect.change[0], m, **CLOSE)
    np.testing.assert_allclose(effect.kl[0], kl, **CLOSE)


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_each_activation_site_rounds_alone(parallel):
    config, params = tiny(parallel)
    asked = prompts()
    bench = bench_of(config, params, INT8_SIM)
    components = bench.parts.components()
    assert [str(c) for c in components[6:8]] == ["embed", "final_norm"]
    effect = bench.measure(params, rows_of(components, bench.parts))
    tokens, lengths = padded(asked)
    real = real_positions(lengths, 8)

    @jax.jit
    def run(at):
        """The model with the sites ``at`` (one flag a site and layer) rounded."""

        def rounded(x, site, flag):
            return jnp.where(flag, round_activation(x, site, INT8_SIM, real), x)

        x = rounded(embed(params, tokens, config, F32, real), "embed", at["embed"])
        for layer in range(2):
            weights = jax.tree.map(lambda a, layer=layer: a[layer], params.blocks)
            _, parts = block(x, weights, Edit(), config, F32, real)
            attn = rounded(parts["attn_out"], "attn_out", at["attn_out"][layer])
            if parallel:
                mlp = rounded(parts["mlp_out"], "mlp_out", at["mlp_out"][layer])
                y = mlp + attn + x
            else:
                # What the MLP reads has moved: a block whose attention adds nothing, on the sum.
                still = jax.tree.map(jnp.zeros_like, weights.attention)
                alone = dataclasses.replace(weights, attention=still)
                _, parts = block(attn + x, alone, Edit(), config, F32, real)
                mlp = rounded(parts["mlp_out"], "mlp_out", at["mlp_out"][layer])
                y = mlp + attn + x
            x = rounded(y, "resid", at["resid"][layer])
        normed = normalize(x, params.final_norm, config)
        normed = rounded(normed, "final_norm", at["final_norm"])
        return unembed(params, at_position(normed, lengths - 1)[:, 0], config)

    def flags(component):
        at = {site: np.zeros(2, bool) for site in ("attn_out", "mlp_out", "resid")}
        at |= {"embed": False, "final_norm": False}
        if component is None:
            return at
        if component.kind == "whole":
            return {site: np.ones_like(flag) for site, flag in at.items()}
        for site in ("attn_out", "mlp_out", "resid"):
            own = component.kind == "layer" or component.name == site
            if own and component.layer is not None:
                at[site][component.layer] = True
        if component.name in ("embed", "final_norm"):
            at[component.name] = True
        return at

    clean = run(flags(None))
    for i, component in enumerate(components):
        m, kl = read(run(flags(component)), clean, asked)
        assert np.abs(m).max() > 0, component
        # A code that flips at a tie moves what follows by a step; a wrong site moves all of it.
        np.testing.assert_allclose(effect.change[i], m, atol=1e-3, rtol=0, err_msg=str(component))
        assert np.median(np.abs(effect.change[i] - m)) < 1e-5, component
        np.testing.assert_allclose(effect.kl[i], kl, atol=1e-4, rtol=0, err_msg=str(component))


def test_chunks_of_rows_and_prompts_change_nothing(monkeypatch):
    config, params = tiny()
    low, asked = cast(params, SCHEME), prompts((5, 20, 3, 7, 9, 8))
    bench = bench_of(config, params, SCHEME, asked=asked)
    rows = rows_of(bench.parts.components(), bench.parts)
    whole = bench.measure(low, rows)
    calls = []
    call = Bench._call

    def counted(self, low, rows, batch, size, key):
        calls.append((len(rows), batch.shape))
        return call(self, low, rows, batch, size, key)

    monkeypatch.setattr(Bench, "_call", counted)
    monkeypatch.setattr(Bench, "_room", lambda self, length: 12)
    monkeypatch.setattr("jaxalign.studies.plan.calls.LEAST_ROWS", 6)
    parts = bench.measure(low, rows)
    assert len(calls) > 4
    assert max(batch[0] for _, batch in calls) == 2
    np.testing.assert_allclose(parts.change, whole.change, **CLOSE)
    np.testing.assert_allclose(parts.kl, whole.kl, **CLOSE)


def test_prompts_that_are_dealt_to_devices_give_what_one_device_gives():
    config, params = tiny()
    low, asked = cast(params, SCHEME), prompts((5, 8, 3))  # one more than the devices divide
    bench = bench_of(config, params, SCHEME, asked=asked)
    rows = rows_of(bench.parts.components(), bench.parts)
    mesh = make_mesh(jax.devices()[:2])
    placed = shard_params(params, mesh, config)
    several = dataclasses.replace(bench, params=placed, mesh=mesh)
    one, two = bench.measure(low, rows), several.measure(shard_packed(low, mesh), rows)
    np.testing.assert_allclose(two.change, one.change, **CLOSE)
    np.testing.assert_allclose(two.kl, one.kl, **CLOSE)


def test_rows_start_at_the_first_step_that_they_change():
    config, params = tiny()
    bench = bench_of(config, params, dataclasses.replace(SCHEME, int8_sites=INT8_SIM.int8_sites))
    asked = [
        Component("site", None, "embed"),
        Component("matrix", 0, "down"),
        Component("head", 1, "2"),
        Component("site", 1, "resid"),
        Component("site", None, "final_norm"),
        Component("layer", 1),
        Component("whole"),
    ]
    assert rows_of(asked, bench.parts).first().tolist() == [0, 1, 2, 2, 3, 2, 0]
    assert no_changes(2, bench.parts).first().tolist() == [4, 4]


def test_a_row_that_changes_nothing_is_the_clean_run_to_the_bit():
    config, params = tiny()
    bench = bench_of(config, params, SCHEME)
    rows = no_changes(2, bench.parts)
    rows.matrices[1, 0, 0] = True
    effect = bench.measure(params, rows)  # "low" is the model itself
    assert (effect.kl == 0).all()
    assert (effect.change == 0).all()


def test_scales_that_a_calibration_moved_are_moved_back():
    config, params = tiny()
    low = cast(params, SCHEME)
    s = jnp.exp(jax.random.normal(jax.random.key(0), (2, 32)))
    norm = low.blocks.attention_norm
    attention = low.blocks.attention
    moved = dataclasses.replace(
        low.blocks,
        attention_norm=dataclasses.replace(norm, scale=norm.scale / s, bias=norm.bias / s),
        attention=dataclasses.replace(
            attention,
            query=dense(attention.query) * s[..., None],
            key_value=dense(attention.key_value) * s[..., None, None],
            out=dataclasses.replace(attention.out, input_divisor=s),
        ),
    )
    for layer in range(2):
        at = lambda tree, layer=layer: jax.tree.map(lambda a: a[layer], tree)  # noqa: E731
        found = low_matrices(at(params.blocks), at(moved), config)
        expected = low_matrices(at(params.blocks), at(low.blocks), config)
        expected["out"] = expected["out"] / s[layer][:, None]
        for name in MATRICES:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_noise_has_the_norm_of_the_error_in_every_matrix_and_head():
    config, params = tiny()
    low = cast(params, SCHEME)
    drawn = noisy_params(params, low, jax.random.key(3), config=config)
    again = noisy_params(params, low, jax.random.key(4), config=config)
    h, norm = config.head_size, np.linalg.norm
    for part, names in (("attention", ("query", "key_value", "out")), ("mlp", ("up", "down"))):
        for name in names:
            w, q, n, other = (
                np.asarray(dense(getattr(getattr(p.blocks, part), name)))
                for p in (params, low, drawn, again)
            )
            assert not np.allclose(n, other)
            for layer in range(2):
                error, noise = q[layer] - w[layer], n[layer] - w[layer]
                np.testing.assert_allclose(norm(noise), norm(error), rtol=1e-4)
                correlation = (noise * error).sum() / norm(noise) / norm(error)
                assert abs(correlation) < 0.2
                for head in range(config.num_heads if part == "attention" else 0):
                    own = slice(head * h, (head + 1) * h)
                    own = (own,) if name == "out" else (..., own)
                    np.testing.assert_allclose(norm(noise[own]), norm(error[own]), rtol=1e-4)


def test_divergence_keeps_its_digits_where_it_is_tiny():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((3, 500)) * 4
    moved = base + 1e-5 * rng.standard_normal((3, 500))
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (base, moved))
    exact = (np.exp(p) * (p - q)).sum(axis=-1)
    found = kl_divergence(jnp.asarray(base, jnp.float32), jnp.asarray(moved, jnp.float32))
    assert exact.max() < 1e-9
    # f32 logits near 10 know their own difference of 1e-5 to a few per cent.
    np.testing.assert_allclose(found, exact, rtol=0.1)


def test_the_map_sets_the_sum_beside_the_whole_and_noise_beside_each_component():
    config, params = tiny()
    bench = bench_of(config, params, SCHEME)
    low = cast(params, SCHEME)
    found = damage_map(bench, low, draws=3, seed=0)
    by_name = {(s.parts, s.metric): s for s in found.sums}
    assert set(by_name) == {
        (parts, metric) for parts in ("matrices and sites", "layers") for metric in ("kl", "change")
    }
    total = sum(c.kl.value for c in found.of("matrix"))
    kl = by_name["matrices and sites", "kl"]
    assert kl.sum.value == pytest.approx(total)
    assert kl.whole.value == pytest.approx(found.of("whole")[0].kl.value)
    assert kl.ratio.value == pytest.approx(total / kl.whole.value)
    assert kl.ratio.low < kl.ratio.value < kl.ratio.high
    assert kl.difference.value == pytest.approx(total - kl.whole.value)
    for each in found.sums:
        undefined = each.whole.low <= 0 <= each.whole.high
        assert (each.ratio.value is None) == undefined
    assert len(kl.noise_ratios) == 3
    assert all(len(c.noise_kl) == 3 for c in found.components)
    assert found == damage_map(bench, low, draws=3, seed=0)
    assert found != damage_map(bench, low, draws=3, seed=1)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_an_error_along_the_input_does_more_than_noise_of_its_size():
    """A rank-one error that reads what is always there, against noise of the same norm."""
    config, params = tiny()
    norm = params.blocks.mlp_norm
    # An input of the MLP that is large on every token, and a matrix that is wrong there alone.
    biased = dataclasses.replace(norm, bias=norm.bias.at[:, 0].set(10.0))
    params = dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, mlp_norm=biased))
    up = params.blocks.mlp.up
    wrong = dataclasses.replace(params.blocks.mlp, up=up.at[:, 0, :].add(0.05))
    low = dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, mlp=wrong))
    found = damage_map(bench_of(config, params, SCHEME), low, draws=5, seed=0)
    verdicts = {(c.layer, c.name): c.verdict for c in found.of("matrix")}
    assert verdicts[0, "up"] == verdicts[1, "up"] == "more than noise"
    assert {verdicts[layer, "down"] for layer in range(2)} == {""}  # no error, so no ratio


def test_a_model_that_is_not_finite_is_refused():
    config, params = tiny()
    broken = dataclasses.replace(params, embed=params.embed.at[:].set(jnp.inf))
    bench = bench_of(config, broken, SCHEME)
    with pytest.raises(InputError, match="not finite"):
        bench.measure(broken, no_changes(1, bench.parts))


def test_memory_for_less_than_two_rows_is_refused():
    config, params = tiny()
    bench = bench_of(config, params, SCHEME, memory=1e4)
    with pytest.raises(InputError, match="do not fit into"):
        bench.measure(params, no_changes(1, bench.parts))

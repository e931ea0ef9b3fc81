"""Many devices give what one gives; a copy of the parameters may lie on several."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.commands import opening
from jaxalign.devices.deal import deal, rounds, sharded_sweep
from jaxalign.devices.mesh import (
    choose_mesh,
    make_mesh,
    param_shardings,
    part_bytes,
    shard_params,
    usable_devices,
)
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.edits.batch import rows as rows_of
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer, logit_difference
from jaxalign.model import ModelConfig, init_params
from jaxalign.numerics import F16, F32, INT8_SIM, jit
from testing.edits import chosen, edits_for, tiny

L, H, D, S, B, V = 3, 4, 32, 9, 3, 96
LENGTHS = jnp.array([9, 5, 7])
PYTHIA_12B = ModelConfig(50688, 36, 40, 5120, 20480, rotary_dims=32)


def mesh_of(edits, spread=1):
    return make_mesh(jax.devices()[: edits * spread], spread)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, S)))


@pytest.fixture(scope="module")
def edits():
    """Several batches of edits; none of their numbers of rows is divided by 8."""
    config = tiny()[1]
    every = edits_for(config, B, S)
    idle = np.concatenate([head_ablation_masks(L, H)[:5], np.zeros((3, L, 1, 1, H), bool)])
    [mean] = every["mean"].sites
    names = ("zero", "edge-align", "several heads, by prompt", "patching")
    return chosen(every, *names) | {"some rows edit nothing": Edit(HeadEdit(idle, mean.value))}


def run(mesh, params, config, tokens, chosen, scheme=F32, engine="wave", readout=lambda x: x):
    """What is read off every batch of edits, on a mesh or (None) by ``sweep`` itself."""
    call = sweep if mesh is None else functools.partial(sharded_sweep, mesh)
    return jit(
        lambda p, t: call(p, t, LENGTHS, config, chosen, readout, engine=engine, scheme=scheme)
    )(shard_params(params, mesh, config), tokens)


@pytest.fixture(scope="module")
def by_one(edits, tokens):
    """What one device says of every batch of edits in f32, by engine."""
    params, config = tiny()
    chosen = list(edits.values())
    return functools.cache(lambda engine: run(None, params, config, tokens, chosen, engine=engine))


@pytest.fixture(scope="module")
def by_one_in(edits, tokens):
    """What one device says of two batches of edits, by scheme."""

    @functools.cache
    def said(scheme):
        params, config = tiny(scheme=scheme)
        return run(None, params, config, tokens, few(edits), scheme)

    return said


def few(edits):
    return [edits["zero"], edits["several heads, by prompt"]]


def distance(one, other):
    return np.sqrt(sum(float(jnp.square(a - b).sum()) for a, b in zip(one, other, strict=True)))


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_row_is_dealt_once_and_what_is_left_edits_nothing(edits, devices):
    for edit in edits.values():
        hands = deal(edit, B, devices)
        assert hands.shape == (devices, rounds(rows_of(edit), devices))
        dealt, times = np.unique(hands, return_counts=True)
        assert dealt[dealt < rows_of(edit)].tolist() == list(range(rows_of(edit)))
        assert (times[dealt < rows_of(edit)] == 1).all()


@pytest.mark.parametrize("devices", [2, 3, 4, 8, 16])
def test_at_every_layer_the_busiest_device_has_no_more_rows_than_it_must(devices):
    layers, heads = 6, 8
    masks = np.random.default_rng(0).permutation(head_ablation_masks(layers, heads))
    hands = deal(Edit(HeadEdit(masks, np.zeros((layers, 1, 1, 1, 1)))), 2, devices)
    births = np.append(np.nonzero(masks)[1], layers)  # a row that edits nothing is never born
    for layer in range(layers):
        alive = (births <= layer).sum()
        assert (births[hands] <= layer).sum(axis=1).max() == -(-alive // devices)


@pytest.mark.parametrize(
    ("devices", "engine"), [(8, "wave"), pytest.param(3, "vmap", marks=pytest.mark.slow)]
)
def test_many_devices_equal_one_device_in_f32(edits, tokens, by_one, devices, engine):
    params, config = tiny()
    chosen = list(edits.values())
    found = run(mesh_of(devices), params, config, tokens, chosen, engine=engine)
    for name, ours, theirs in zip(edits, found, by_one(engine), strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name
        assert not np.allclose(theirs[0], theirs[1], atol=1e-3), f"{name} edits nothing"


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(scheme, marks=pytest.mark.slow) for scheme in (INT8_SIM, F16)],
    ids=lambda s: s.name,
)
def test_many_devices_differ_from_one_by_less_than_the_precision_does(
    edits, tokens, by_one_in, scheme
):
    low, config = tiny(scheme=scheme)
    many = run(mesh_of(3), low, config, tokens, few(edits), scheme)
    one = by_one_in(scheme)
    assert distance(one, many) < distance(one, by_one_in(F32)) / 2


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize(
    ("scheme", "engine"),
    [
        (F32, "wave"),
        pytest.param(F16, "wave", marks=pytest.mark.slow),
        (INT8_SIM, "wave"),
        pytest.param(F16, "vmap", marks=pytest.mark.slow),
    ],
)
def test_the_clean_run_has_the_same_bits_on_every_device(tokens, scheme, engine):
    params, config = tiny(scheme=scheme)
    nan = jnp.full((L, 1, 1, H, D), jnp.nan)
    idle = Edit(HeadEdit(np.zeros((8, L, 1, 1, H), bool), nan))  # a row for each device
    [rows] = run(mesh_of(8), params, config, tokens, [idle], scheme, engine)
    assert len(rows) == 9
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_masks_may_be_arguments_of_the_compiled_function(edits, tokens):
    params, config = tiny()
    edit = edits["several heads, by prompt"]
    mesh = mesh_of(4)
    answer = Answer(jnp.arange(B), jnp.arange(B))

    @jit
    def compute(params, mask, value, answer):
        chosen = [Edit(HeadEdit(mask, value))]
        return sharded_sweep(mesh, params, tokens, LENGTHS, config, chosen, answer)

    [found] = compute(
        shard_params(params, mesh, config), *(edit.sites[0].mask, edit.sites[0].value), answer
    )
    [expected] = jit(lambda p: sweep(p, tokens, LENGTHS, config, [edit], answer))(params)
    np.testing.assert_allclose(found.logit_diff, expected.logit_diff, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_sweep_works_inside_grad_and_vmap(edits, tokens):
    params, config = tiny()
    edit = edits["zero"]
    mesh = mesh_of(3)
    placed = shard_params(params, mesh, config)
    value = jnp.asarray(np.random.default_rng(1).standard_normal((L, 1, 1, H, D)), jnp.float32)

    def total(value, call, params):
        moved = [Edit(HeadEdit(edit.sites[0].mask, value))]
        answer = functools.partial(logit_difference, target=jnp.arange(B))
        [m] = call(params, tokens, LENGTHS, config, moved, answer)
        return (m[:1] - m[1:]).sum()

    many = functools.partial(sharded_sweep, mesh)
    slopes = [
        jax.jit(jax.grad(functools.partial(total, call=call, params=p)))(value)
        for call, p in ((many, placed), (sweep, params))
    ]
    np.testing.assert_allclose(*slopes, atol=1e-4)
    assert float(jnp.abs(slopes[0]).max()) > 0
    both = jax.jit(jax.vmap(functools.partial(total, call=many, params=placed)))
    pair = both(jnp.stack([value, 2 * value]))
    one = jax.jit(functools.partial(total, call=sweep, params=params))
    np.testing.assert_allclose(pair[0], one(value), rtol=1e-4)


@pytest.mark.usefixtures("users_programs")
def test_without_a_mesh_it_is_the_sweep_to_the_bit(edits, tokens):
    params, config = tiny()
    chosen = [edits["zero"]]
    without, plain = (
        jit(lambda p, call=call: call(p, tokens, LENGTHS, config, chosen, lambda x: x))(params)
        for call in (functools.partial(sharded_sweep, None), sweep)
    )
    assert np.array_equal(without[0], plain[0])


@pytest.mark.parametrize("spread", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_copy_sharded_over_devices_equals_a_whole_one_in_f32(edits, tokens, by_one, spread):
    params, config = tiny()
    found = run(mesh_of(2, spread), params, config, tokens, list(edits.values()))
    for name, ours, theirs in zip(edits, found, by_one("wave"), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name


@pytest.mark.parametrize(
    "scheme", [pytest.param(F16, marks=pytest.mark.slow), INT8_SIM], ids=lambda s: s.name
)
def test_a_sharded_copy_differs_from_a_whole_one_by_less_than_the_precision_does(
    edits, tokens, by_one_in, scheme
):
    low, config = tiny(scheme=scheme)
    spread = run(mesh_of(1, 4), low, config, tokens, few(edits), scheme)
    one = by_one_in(scheme)
    assert distance(one, spread) < distance(one, by_one_in(F32))


def test_the_answer_is_read_from_a_sharded_vocabulary(edits, tokens):
    params, config = tiny()
    answer = Answer(jnp.array([0, 47, 95]), jnp.array([48, 2, 94]))
    found, expected = (
        run(mesh, params, config, tokens, [edits["zero"]], readout=answer)[0]
        for mesh in (mesh_of(2, 4), None)
    )
    for field in ("logit_diff", "distractor_diff"):
        a, b = getattr(found, field), getattr(expected, field)
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert np.array_equal(found.correct, expected.correct)


@pytest.mark.parametrize("spread", [1, 2, 4])
def test_a_device_holds_its_part_of_the_parameters_and_no_more(spread):
    params, config = tiny()
    placed = shard_params(params, mesh_of(2, spread), config)
    for device in jax.devices()[: 2 * spread]:
        held = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(placed)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert held == part_bytes(config, spread)
    assert part_bytes(config, spread) <= part_bytes(config, 1) / spread * 1.1


def exchanges(spread, edit, **other):
    """What a layer of a sharded copy exchanges, by kind: its compiled body is walked once a block.

    ``sums`` are whole activations ``[runs, S, D]``, ``flags`` a number or less a run; the rest by
    XLA's own names.
    """
    config = ModelConfig(V, L, H, D, 64, rotary_dims=2, **other)
    params = init_params(jax.random.key(0), config)
    mesh = mesh_of(1, spread)

    def answers(params, tokens):
        answer = Answer(jnp.arange(B), jnp.arange(B))
        return sharded_sweep(mesh, params, tokens, LENGTHS, config, [edit], answer)

    tokens = jax.ShapeDtypeStruct((B, S), jnp.int32)
    lowered = jax.jit(answers).lower(shard_params(params, mesh, config), tokens)
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = collections.Counter()
    for line in lowered.compile().as_text().splitlines():
        operation = re.search(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", line)
        if operation and "closed_call/while/body/" in line:  # the layers' loop, a walk over blocks
            for shape in re.findall(r"\w+\[([\d,]*)\]", operation[1]):
                summed = "sums" if shape.endswith(f",{S},{D}") else "flags"
                found[summed if operation[2] == "all-reduce" else operation[2]] += 1
    return dict(found)


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("spread", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_layer_of_a_sharded_copy_makes_megatrons_two_sums_and_one_for_births(edits, spread):
    # After W_O and after the MLP; and each head that a birth replaces, which one device holds.
    assert exchanges(spread, edits["zero"]) == {"sums": 2 + 1}


@pytest.mark.usefixtures("users_programs")
def test_edits_of_later_layers_are_one_more_sum_in_each(edits):
    # What they take out of the runs alive; what they put in is replicated.
    assert exchanges(2, edits["several heads, by prompt"]) == {"sums": 2 + 1 + 1}


@pytest.mark.usefixtures("users_programs")
def test_a_birth_in_a_sequential_block_needs_the_sum_of_its_mlp(edits):
    assert exchanges(2, edits["zero"], parallel_residual=False) == {"sums": 2 + 2}


@pytest.mark.usefixtures("users_programs")
def test_devices_with_whole_copies_exchange_nothing_within_a_layer(edits):
    assert exchanges(1, edits["zero"]) == {}


def test_twelve_billion_parameters_take_the_fewest_devices_that_hold_them():
    gb = 1e9
    whole = part_bytes(PYTHIA_12B, 1)
    assert whole == pytest.approx(47.4 * gb, rel=0.01)
    devices = jax.devices()
    assert dict(choose_mesh(PYTHIA_12B, devices, 140 * gb).shape) == {"edits": 8, "model": 1}
    assert dict(choose_mesh(PYTHIA_12B, devices, 60 * gb).shape) == {"edits": 4, "model": 2}
    assert dict(choose_mesh(PYTHIA_12B, devices, 60 * gb, reserve=20 * gb).shape) == {
        "edits": 2,
        "model": 4,
    }
    assert choose_mesh(PYTHIA_12B, devices[:1], 100 * gb) is None


def test_a_model_too_large_for_all_devices_is_refused_with_the_arithmetic():
    with pytest.raises(InputError, match=r"need 11\.9 GB .* over 8 of 8, .* is 10 GB .*memory-gb"):
        choose_mesh(PYTHIA_12B, jax.devices(), 10e9)


def test_heads_that_the_devices_do_not_divide_are_refused_with_what_would_do():
    config = ModelConfig(96, 3, 6, 96, 384)
    with pytest.raises(InputError, match=r"over 4 of 8 .* 6 heads cannot be divided by 4"):
        choose_mesh(config, jax.devices(), float(part_bytes(config, 4)), copies=1)
    with pytest.raises(InputError, match=r"6 heads cannot be divided over 4 devices"):
        param_shardings(mesh_of(1, 4), config)


def test_devices_that_are_not_there_or_do_not_divide_are_refused():
    assert len(usable_devices()) == 8
    assert len(usable_devices("cpu", 3)) == 3
    for count in (0, 9):
        with pytest.raises(InputError, match=rf"--devices {count}: expected 1 to 8"):
            usable_devices(None, count)
    with pytest.raises(InputError, match="8 devices cannot be cut into groups of 3"):
        make_mesh(jax.devices(), 3)


def test_the_command_reads_a_shared_model_into_the_hosts_memory_not_onto_a_device():
    source = opening.locate("demo")
    with jax.default_device(jax.devices()[5]):
        shared = opening.load_for(jax.devices()[4:6], source)
        own = opening.load_for(jax.devices()[5:6], source)
    assert jax.tree.leaves(shared.params)[0].devices() == {jax.devices("cpu")[0]}
    assert jax.tree.leaves(own.params)[0].devices() == {jax.devices()[5]}

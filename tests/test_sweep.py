"""The wave equals the plain path, and nothing but the edit changes a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.edits.batch import rows, stack, touches_one_step
from jaxalign.edits.runs import Runs
from jaxalign.engine import blocks, sweep
from jaxalign.engine import readout as readouts
from jaxalign.engine.budget import bytes_per_call, bytes_per_row, plan_chunks
from jaxalign.engine.line import line_up
from jaxalign.engine.walk import Line
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer, logit_difference
from jaxalign.model import ModelConfig, forward, init_params
from jaxalign.model.layers import Pass
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, jit
from testing.edits import chosen, edits_for, logits_of, swept, tiny

L, H, D, S, B, V = 3, 4, 32, 9, 5, 96
LENGTHS = jnp.array([9, 5, 7, 3, 9])


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, S)))


@pytest.fixture(scope="module")
def edits():
    return edits_for(tiny()[1], B, S)


def run(params, config, tokens, some, engine="wave", scheme=F32, lengths=LENGTHS):
    """The last logits under some batches of edits."""
    return swept(
        params, tokens, lengths, config, list(some), logits_of, engine=engine, scheme=scheme
    )


def assert_rows_equal(rows):
    assert all(np.array_equal(row, rows[0]) for row in rows), "no bit may move"


@pytest.mark.parametrize(
    ("scheme", "parallel"),
    [
        (F32, True),
        (F32, False),
        pytest.param(INT8_SIM, True, marks=SLOW),
        pytest.param(INT8_SIM, False, marks=SLOW),
    ],
    ids=["f32, parallel", "f32, sequential", "int8-sim, parallel", "int8-sim, sequential"],
)
def test_wave_equals_vmap_over_masks(edits, tokens, scheme, parallel):
    params, config = tiny(parallel, scheme)
    if scheme is INT8_SIM:  # how values are shared is nothing to it
        edits = {name: edit for name, edit in edits.items() if name not in ("zero", "mean")}
    wave, plain = (
        run(params, config, tokens, edits.values(), engine, scheme) for engine in ("wave", "vmap")
    )
    for name, ours, expected in zip(edits, wave, plain, strict=True):
        assert ours.shape == expected.shape == (1 + rows(edits[name]), B, V)
        if name == "nothing":
            continue
        far = np.abs(ours - expected).max(axis=-1) / np.abs(expected).max()  # a row and prompt
        if scheme is F32:
            assert far.max() <= 1e-5, name
        else:  # an activation within rounding of a tie takes the other of two int8 codes
            assert (far <= 1e-5).mean() >= 0.95, name
            assert far.max() <= 5e-2, name
        assert not np.allclose(expected[0], expected[1], atol=1e-3), f"{name} edits nothing"


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("engine", ["wave", "vmap"])
@pytest.mark.parametrize(
    "scheme", [F32, F16, pytest.param(BF16, marks=SLOW), INT8_SIM], ids=lambda s: s.name
)
def test_rows_that_edit_nothing_have_the_bits_of_the_clean_row(edits, tokens, scheme, engine):
    params, config = tiny(scheme=scheme)
    two = chosen(edits, "zero", "nothing").values()
    zero, idle = run(params, config, tokens, two, engine, scheme)
    assert_rows_equal([*idle, zero[0]])


@pytest.mark.parametrize("scheme", [F16, pytest.param(BF16, marks=SLOW)], ids=lambda s: s.name)
def test_wave_in_16_bits_differs_from_vmap_by_less_than_the_precision_does(edits, tokens, scheme):
    params, config = tiny(scheme=scheme)
    exact, _ = tiny()
    two = chosen(edits, "zero", "nothing").values()
    wave, _ = run(params, config, tokens, two, "wave", scheme)
    plain, _ = run(params, config, tokens, two, "vmap", scheme)
    f32, _ = run(exact, config, tokens, two)
    assert jnp.linalg.norm(wave - plain) < jnp.linalg.norm(wave - f32)


def test_clean_row_equals_the_model_without_edits(edits, tokens):
    params, config = tiny()
    plain = jit(lambda p: forward(p, tokens, config, lengths=LENGTHS, last_only=True).logits)(
        params
    )
    for out in run(params, config, tokens, edits.values()):
        np.testing.assert_allclose(out[0], plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_padding_and_what_stands_in_it_change_no_bit(edits, tokens, scheme):
    params, config = tiny(scheme=scheme)
    two = chosen(edits, "zero", "nothing").values()
    real = np.arange(S)[None] < np.asarray(LENGTHS)[:, None]
    noise = jnp.where(real, tokens, (tokens + 41) % V)
    ours, other = (run(params, config, t, two, scheme=scheme)[0] for t in (tokens, noise))
    assert np.array_equal(ours, other)


@pytest.mark.parametrize("scheme", [F32, pytest.param(INT8_SIM, marks=SLOW)], ids=lambda s: s.name)
def test_batch_neighbours_and_bucket_move_a_prompt_by_rounding_only(edits, tokens, scheme):
    params, config = tiny(scheme=scheme)
    two = chosen(edits, "zero", "nothing").values()

    def zeroed(t, n):
        return run(params, config, t, two, scheme=scheme, lengths=n)[0]

    together = zeroed(tokens, LENGTHS)
    wider = zeroed(jnp.pad(tokens, ((0, 0), (0, 7))), LENGTHS)
    some = [0, 3, 4]  # of the greatest and of the least length, each a program of its own
    alone = jnp.concatenate(
        [zeroed(tokens[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1]) for i in some], axis=1
    )
    shuffled = zeroed(tokens[::-1], LENGTHS[::-1])
    scale = np.abs(together).max()
    assert np.array_equal(together, shuffled[:, ::-1]), "the same program: the same bits"
    assert np.abs(together - wider).max() <= 1e-6 * scale
    assert np.abs(together[:, some] - alone).max() <= 1e-6 * scale


def test_runs_stand_in_line_by_birth_whatever_order_their_rows_have():
    masks = head_ablation_masks(L, H)[::-1]
    zero = Edit(HeadEdit(masks, np.zeros((L, 1, 1, 1, 1))))
    runs, alive, place = line_up([zero], stack([zero])[1], B, L)
    assert alive.tolist() == [B * (1 + H * max(0, step - 1)) for step in range(L + 2)]
    last_born = place[1 : 1 + H]  # the first rows edit the last layer
    assert np.asarray(last_born).min() == B * (1 + H * (L - 1))
    assert np.array_equal(runs.prompt[place], np.broadcast_to(np.arange(B), place.shape))


def test_batches_of_one_shape_are_stacked_wherever_they_stand_in_the_list(edits, tokens):
    [head] = edits["several heads, by prompt"].sites
    others = Edit(HeadEdit(head.mask[::-1], -head.value))
    some = [edits["several heads, by prompt"], edits["zero"], others, edits["patching"]]
    stacks, places = stack(some)
    assert places == [(0, 0, 0), (1, 0, 0), (0, 6, 1), (2, 0, 0)]
    [stacked] = stacks[0].sites
    assert stacked.mask.shape[:2] == (L, 2 * 6)
    assert stacked.value.shape == (L, 2, B, S, H, D)
    params, config = tiny()
    by_all = run(params, config, tokens, edits.values())
    expected = dict(zip(edits, by_all, strict=True))
    [reversed_alone] = run(params, config, tokens, [others])
    wanted = expected["several heads, by prompt"], expected["zero"], reversed_alone
    wanted += (expected["patching"],)
    outs = run(params, config, tokens, some)
    for together, alone in zip(outs, map(np.asarray, wanted), strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-6 * np.abs(alone).max())
        assert np.abs(alone[1:] - alone[0]).max() > 1e-2 * np.abs(alone).max()


def test_a_run_replaces_no_head_but_its_own_and_row_order_does_not_matter(edits, tokens):
    params, config = tiny()
    [several] = edits["several heads, by prompt"].sites
    idle = np.zeros((6, L, B, 1, H), bool)
    idle[2, 1, 3, 0, [0, 2, 3]] = True  # three heads of one layer, for one prompt alone
    order = np.random.default_rng(1).permutation(6)
    one, ordered, mixed = (
        run(params, config, tokens, [Edit(HeadEdit(mask, several.value))])[0]
        for mask in (idle, several.mask, several.mask[order])
    )
    changed = (np.asarray(one[1:]) != np.asarray(one[:1])).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[2, 3]]
    np.testing.assert_allclose(mixed[1:], ordered[1:][order], atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "size"), [(12, 1), pytest.param(40, 3, marks=SLOW), (10_000, 1110)]
)
def test_the_size_of_a_block_changes_nothing(edits, tokens, positions, size, monkeypatch):
    params, config = tiny()
    expected = dict(zip(edits, run(params, config, tokens, edits.values()), strict=True))
    some = chosen(edits, "several heads, by prompt", "patching")
    monkeypatch.setattr(blocks, "block_positions", lambda config: positions)
    assert blocks.block_size(B, S, config) == size
    anew = jit(lambda *a: sweep(*a), static_argnums=(3, 5))
    outs = anew(params, tokens, LENGTHS, config, list(some.values()), logits_of)
    for name, ours in zip(some, outs, strict=True):
        np.testing.assert_allclose(ours, expected[name], atol=1e-5 * np.abs(expected[name]).max())


def test_the_answer_is_read_the_same_from_all_logits_and_by_parts(edits, tokens, monkeypatch):
    params, config = tiny()
    monkeypatch.setattr(readouts, "TOKENS_READ", 40)  # not a divisor of V
    monkeypatch.setattr(readouts, "RUNS_READ", 7)
    answer = Answer(jnp.array([0, 39, 40, 95, 5]), jnp.array([95, 2, 80, 0, 5]))
    final = jax.random.normal(jax.random.key(3), (9, B, D))
    parts, expected = (
        jit(lambda p, f, r=r: readouts.read_out(p, f, config, r))(params, final)
        for r in (answer, lambda logits: answer(logits))
    )
    assert np.array_equal(parts.correct, expected.correct)
    for field in ("logit_diff", "distractor_diff"):
        a, b = getattr(parts, field), getattr(expected, field)
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    # An f16 step is the most that a last-bit difference before rounding can make of it.
    step = np.spacing(np.abs(expected.logit_diff_f16).max().astype(np.float16))
    assert np.abs(parts.logit_diff_f16 - expected.logit_diff_f16).max() <= 4 * step


@SLOW
def test_sweep_works_inside_another_jit_grad_and_vmap(edits, tokens):
    params, config = tiny()
    [masks], [mean] = edits["zero"].sites, edits["mean"].sites
    targets = jnp.arange(B)

    def importance(value, engine):
        moved = [Edit(HeadEdit(masks.mask, value))]

        def margin(logits):
            return logit_difference(logits, targets)

        [m] = sweep(params, tokens, LENGTHS, config, moved, margin, engine=engine)
        return (m[:1] - m[1:]).sum()

    slopes = [
        jax.jit(jax.grad(lambda v, e=e: importance(v, e)))(mean.value) for e in ("wave", "vmap")
    ]
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-4)
    assert float(jnp.abs(slopes[0]).max()) > 0
    batched = jax.vmap(lambda v: importance(v, "wave"))(jnp.stack([mean.value, 2 * mean.value]))
    assert batched.shape == (2,)


def test_a_promise_that_rows_touch_one_step_is_read_off_their_masks(edits):
    assert touches_one_step([edits["zero"], edits["patching"], edits["nothing"]], B)
    assert not touches_one_step([edits["zero"], edits["several heads, by prompt"]], B)


def test_unknown_engine_is_refused_with_the_known_ones(edits, tokens):
    params, config = tiny()
    with pytest.raises(InputError, match=r"engine 'fast' is unknown.*wave or vmap"):
        sweep(params, tokens, LENGTHS, config, [edits["zero"]], logits_of, engine="fast")


@pytest.mark.parametrize("engine", ["wave", "vmap"])
def test_chunks_stay_within_the_budget(engine):
    config = ModelConfig(50304, 6, 8, 512, 2048)
    fixed, row = bytes_per_call(config, 16), bytes_per_row(config, 16, engine)
    for budget in (1e8, 3e8, 1e9, 1e10):
        prompts, rows = plan_chunks(config, 289, 16, budget, engine=engine)
        assert fixed + prompts * rows * row <= budget
        assert (prompts, rows) == (1, rows) or rows == 289
    assert plan_chunks(config, 289, 16, 1e12, engine=engine)[0] > 1


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("engine", ["wave", "vmap"])
@pytest.mark.parametrize("length", [pytest.param(16, marks=SLOW), 128])
def test_a_compiled_sweep_needs_no_more_memory_than_was_planned(length, engine):
    config = ModelConfig(512, 3, 4, 64, 256, rotary_dims=4)
    params = init_params(jax.random.key(0), config)
    masks = head_ablation_masks(3, 4)
    donors = jnp.zeros((3, 20, length, 4, 64))
    edits = [Edit(HeadEdit(masks, donors)), Edit(HeadEdit(masks, donors[:, :1]))]
    tokens, lengths = jnp.zeros((20, length), int), jnp.full(20, length)
    answer = Answer(lengths, lengths)

    def run(p, e):
        return sweep(p, tokens, lengths, config, e, answer, engine=engine)

    compiled = jax.jit(run).lower(params, edits).compile()
    planned = bytes_per_call(config, length) + 25 * 20 * bytes_per_row(config, length, engine)
    assert 0.1 * planned < compiled.memory_analysis().temp_size_in_bytes <= planned


def test_budget_too_small_for_one_row_is_refused_with_the_arithmetic():
    config = ModelConfig(50304, 6, 8, 512, 2048)
    with pytest.raises(InputError, match=r"16 positions needs .* GB .*--memory-gb"):
        plan_chunks(config, 289, 16, 1e5)


@pytest.mark.parametrize("size", [1, 3, 5, 40])
def test_positions_walked_are_those_of_whole_blocks(size):
    alive = [2, 5, 8]
    four = [jnp.zeros(max(alive) + size, jnp.int32)] * 4
    line = Line(
        runs=Runs(*four),
        alive=jnp.array(alive),
        size=size,
        read=jnp.zeros((2, 1), jnp.int32),
        run=Pass(ModelConfig(64, 2, 4, 32, 64, rotary_dims=4)),
        single_step=True,
    )
    visits = 0
    for count in alive:
        visits += int(line.walk(0, count, lambda at, runs, carry: carry + 1, 0))
    assert blocks.walked_positions(alive, 7, size) == 7 * size * visits
    # As measured on an H200: filler is what makes large blocks slow.
    runs = [64 * (1 + 8 * layer) for layer in range(6)]
    assert [blocks.walked_positions(runs, 16, n // 16) for n in (1024, 4096, 16384, 65536)] == [
        129024,
        147456,
        196608,
        393216,
    ]


def test_blocks_of_a_gpu_are_its_own(monkeypatch):
    config = ModelConfig(64, 2, 4, 32, 1 << 16, rotary_dims=4)
    assert blocks.block_positions(config) == blocks.LEAST_POSITIONS
    monkeypatch.setattr(blocks, "default_platform", lambda: "gpu")
    assert blocks.block_positions(config) == blocks.GPU_POSITIONS

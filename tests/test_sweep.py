"""The wave equals the plain path, and nothing but the edit changes a row."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.edit import Edit, HeadEdit, ResidualEdit, head_ablation_masks
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer, logit_difference
from jaxalign.memory import bytes_per_call, bytes_per_row, plan_chunks
from jaxalign.model import ModelConfig, cast, forward, init_params
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, jit
from jaxalign.run_edits import line_up, stack_edits
from jaxalign.sweep import sweep
from jaxalign.wave import block_size

L, H, D, S, B, V = 3, 4, 32, 9, 5, 97
LENGTHS = jnp.array([9, 5, 7, 3, 9])


def make(parallel=True, scheme=F32):
    config = ModelConfig(V, L, H, D, 64, rotary_dims=2, parallel_residual=parallel)
    params = jax.tree.map(
        lambda a: 3 * a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape),
        init_params(jax.random.key(0), config),
    )
    return cast(params, scheme), config


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, V, (B, S)))


@pytest.fixture(scope="module")
def edits():
    rng = np.random.default_rng(0)
    masks = head_ablation_masks(L, H)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    donors = draw(L, B, S, H, D)
    several = np.sort(rng.random((6, L, B, 1, H)) < 0.3, axis=0)[::-1].copy()
    patches = np.zeros(((L + 1) * S, L + 1, 1, S), bool)
    rows = np.arange(len(patches))
    patches[rows, rows // S, 0, rows % S] = True
    return {
        "zero": Edit(head=HeadEdit(masks, jnp.zeros((L, 1, 1, 1, 1)))),
        "mean": Edit(head=HeadEdit(masks, draw(L, 1, 1, H, D))),
        "donors": Edit(head=HeadEdit(masks, donors)),
        "edge-align": Edit(head=HeadEdit(masks, draw(L, 1, 1, H, D // H), "edge-align")),
        "several heads, by prompt": Edit(head=HeadEdit(several, donors)),
        "patching": Edit(residual=ResidualEdit(patches, draw(L + 1, B, S, D))),
    }


def logits_of(x):
    return x


# Edits of one shape share a program, in this process and with other tests'.
swept = jit(sweep, static_argnames=("config", "readout", "plan", "scheme"))


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_wave_equals_vmap_over_masks(edits, tokens, scheme, parallel):
    params, config = make(parallel, scheme)
    chosen = list(edits.values())
    wave, plain = (
        swept(params, tokens, LENGTHS, config, chosen, logits_of, plan=plan, scheme=scheme)
        for plan in ("wave", "vmap")
    )
    for name, ours, expected in zip(edits, wave, plain, strict=True):
        assert ours.shape == expected.shape == (1 + edits[name].rows, B, V)
        far = np.abs(ours - expected).max(axis=-1) / np.abs(expected).max()  # a row and prompt
        if scheme is F32:
            assert far.max() <= 1e-5, name
        else:  # an activation within rounding of a tie takes the other of two int8 codes
            assert (far <= 1e-5).mean() >= 0.95, name
            assert far.max() <= 5e-2, name
        assert not np.allclose(expected[0], expected[1], atol=1e-3), f"{name} edits nothing"


@pytest.mark.parametrize("scheme", [F16, BF16], ids=lambda s: s.name)
def test_wave_in_16_bits_differs_from_vmap_by_less_than_the_precision_does(edits, tokens, scheme):
    params, config = make(scheme=scheme)
    exact, _ = make()
    edit = [edits["zero"]]
    wave, plain, f32 = (
        swept(p, tokens, LENGTHS, config, edit, logits_of, plan=plan, scheme=s)[0]
        for plan, s, p in (
            ("wave", scheme, params),
            ("vmap", scheme, params),
            ("wave", F32, exact),
        )
    )
    noise, drift = jnp.linalg.norm(wave - plain), jnp.linalg.norm(wave - f32)
    assert noise < drift


@pytest.mark.parametrize("plan", ["wave", "vmap"])
@pytest.mark.parametrize("scheme", [F32, F16, INT8_SIM], ids=lambda s: s.name)
def test_rows_that_edit_nothing_equal_the_clean_row_to_the_bit(edits, tokens, scheme, plan):
    params, config = make(scheme=scheme)
    value = jnp.full((L, 1, 1, H, D), jnp.nan)
    nothing = Edit(head=HeadEdit(np.zeros((3, L, 1, 1, H), bool), value))
    chosen = [edits["zero"], nothing]
    zero, rows = swept(params, tokens, LENGTHS, config, chosen, logits_of, plan=plan, scheme=scheme)
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert plan == "vmap" or np.array_equal(zero[0], rows[0])


def test_clean_row_equals_the_model_without_edits(edits, tokens):
    params, config = make()
    chosen = list(edits.values())
    plain = jit(lambda p: forward(p, tokens, config, lengths=LENGTHS, last_only=True).logits)(
        params
    )
    for out in swept(params, tokens, LENGTHS, config, chosen, logits_of, plan="wave", scheme=F32):
        np.testing.assert_allclose(out[0], plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_padding_and_what_stands_in_it_change_no_bit(edits, tokens, scheme):
    params, config = make(scheme=scheme)
    edit = [edits["zero"]]
    real = np.arange(S)[None] < np.asarray(LENGTHS)[:, None]
    noise = jnp.where(real, tokens, (tokens + 41) % V)
    ours, other = (
        swept(params, t, LENGTHS, config, edit, logits_of, plan="wave", scheme=scheme)[0]
        for t in (tokens, noise)
    )
    assert np.array_equal(ours, other)


@pytest.mark.parametrize(
    "scheme", [F32, pytest.param(INT8_SIM, marks=pytest.mark.slow)], ids=lambda s: s.name
)
def test_batch_neighbours_and_bucket_move_a_prompt_by_rounding_only(edits, tokens, scheme):
    params, config = make(scheme=scheme)
    edit = [edits["zero"]]

    def run(t, n):
        return swept(params, t, n, config, edit, logits_of, plan="wave", scheme=scheme)[0]

    together = run(tokens, LENGTHS)
    wider = run(jnp.pad(tokens, ((0, 0), (0, 7))), LENGTHS)
    some = [0, 3, 4]  # of the greatest and of the least length, each a program of its own
    alone = jnp.concatenate(
        [run(tokens[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1]) for i in some], axis=1
    )
    shuffled = run(tokens[::-1], LENGTHS[::-1])
    scale = np.abs(together).max()
    assert np.array_equal(together, shuffled[:, ::-1]), "the same plan, other places: the same bits"
    assert np.abs(together - wider).max() <= 1e-6 * scale
    assert np.abs(together[:, some] - alone).max() <= 1e-6 * scale


def test_runs_stand_in_line_by_birth_whatever_order_their_rows_have(edits):
    masks = head_ablation_masks(L, H)[::-1]
    zero = Edit(head=HeadEdit(masks, np.zeros((L, 1, 1, 1, 1))))
    runs, alive, place = line_up([zero], stack_edits([zero])[1], B, L)
    assert alive.tolist() == [B * (1 + H * max(0, step - 1)) for step in range(L + 2)]
    last_born = place[1 : 1 + H]  # the first rows edit the last layer
    assert np.asarray(last_born).min() == B * (1 + H * (L - 1))
    assert np.array_equal(runs.prompt[place], np.broadcast_to(np.arange(B), place.shape))


def test_batches_of_one_shape_are_stacked_wherever_they_stand_in_the_list(edits, tokens):
    donors = edits["donors"]
    others = Edit(head=HeadEdit(donors.head.mask[::-1], -donors.head.value))
    chosen = [donors, edits["zero"], others, edits["patching"]]
    stacks, places = stack_edits(chosen)
    assert places == [(0, 0, 0), (1, 0, 0), (0, L * H, 1), (2, 0, 0)]
    assert stacks[0].head.mask.shape[:2] == (L, 2 * L * H)
    assert stacks[0].head.value.shape == (L, 2, B, S, H, D)
    params, config = make()

    def run(some):
        return swept(params, tokens, LENGTHS, config, some, logits_of, plan="wave", scheme=F32)

    for together, edit in zip(run(chosen), chosen, strict=True):
        alone = np.asarray(run([edit])[0])
        np.testing.assert_allclose(together, alone, atol=1e-6 * np.abs(alone).max())
        assert np.abs(alone[1:] - alone[0]).max() > 1e-2 * np.abs(alone).max()


def test_a_run_replaces_no_head_but_its_own_and_none_is_no_work(edits, tokens):
    params, config = make()
    idle = np.zeros((6, L, B, 1, H), bool)
    idle[2, 1, 3, 0, [0, 2, 3]] = True  # three heads of one layer, for one prompt alone
    edit = Edit(head=HeadEdit(idle, edits["donors"].head.value))
    run = params, tokens, LENGTHS, config
    [found] = swept(*run, [edit], logits_of, plan="wave", scheme=F32)
    changed = (np.asarray(found[1:]) != np.asarray(found[:1])).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[2, 3]]


def test_row_order_does_not_matter(edits, tokens):
    params, config = make()
    chosen = edits["several heads, by prompt"]
    order = np.random.default_rng(1).permutation(chosen.rows)
    mixed = Edit(head=HeadEdit(chosen.head.mask[order], chosen.head.value))
    ours, expected = (
        swept(params, tokens, LENGTHS, config, [e], logits_of, plan="wave", scheme=F32)[0]
        for e in (mixed, chosen)
    )
    np.testing.assert_allclose(ours[1:], expected[1:][order], atol=1e-5)


@pytest.mark.parametrize("positions", [1, 12, 40, 10_000])
def test_the_size_of_a_block_changes_nothing(edits, tokens, positions, monkeypatch):
    params, config = make()
    chosen = list(edits.values())

    run = params, tokens, LENGTHS, config, chosen, logits_of
    expected = swept(*run, plan="wave", scheme=F32)
    monkeypatch.setattr("jaxalign.wave.block_positions", lambda config: positions)
    assert block_size(B, S, config) == {1: 1, 12: 1, 40: 3, 10_000: 1110}[positions]
    anew = jit(lambda *a, **k: sweep(*a, **k), static_argnums=(3, 5))
    for ours, wanted in zip(anew(*run), expected, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_answer_is_read_the_same_from_all_logits_and_by_parts(edits, tokens, monkeypatch):
    params, config = make()
    module = sys.modules["jaxalign.sweep"]  # the package exports a function of that name
    monkeypatch.setattr(module, "TOKENS_READ", 40)  # not a divisor of V
    monkeypatch.setattr(module, "RUNS_READ", 7)
    answer = Answer(jnp.array([0, 39, 40, 96, 5]), jnp.array([96, 2, 80, 0, 5]))
    chosen = [edits["zero"], edits["mean"]]
    parts, whole = (
        jit(lambda p, c, r=r: sweep(p, tokens, LENGTHS, config, c, r))(params, chosen)
        for r in (answer, lambda logits: answer(logits))
    )
    for ours, expected in zip(parts, whole, strict=True):
        assert np.array_equal(ours.correct, expected.correct)
        for field in ("logit_diff", "distractor_diff"):
            a, b = getattr(ours, field), getattr(expected, field)
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
        # An f16 step is the most that a last-bit difference before rounding can make of it.
        step = np.spacing(np.abs(expected.logit_diff_f16).max().astype(np.float16))
        assert np.abs(ours.logit_diff_f16 - expected.logit_diff_f16).max() <= 4 * step


@pytest.mark.slow
def test_sweep_works_inside_another_jit_grad_and_vmap(edits, tokens):
    params, config = make()
    edit = edits["zero"]
    targets = jnp.arange(B)

    def importance(value, plan):
        moved = Edit(head=HeadEdit(edit.head.mask, value))
        [m] = sweep(
            params,
            tokens,
            LENGTHS,
            config,
            [moved],
            lambda logits: logit_difference(logits, targets),
            plan=plan,
        )
        return (m[:1] - m[1:]).sum()

    value = edits["mean"].head.value
    slopes = [jax.jit(jax.grad(lambda v, p=p: importance(v, p)))(value) for p in ("wave", "vmap")]
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-4)
    assert float(jnp.abs(slopes[0]).max()) > 0
    batched = jax.vmap(lambda v: importance(v, "wave"))(jnp.stack([value, 2 * value]))
    assert batched.shape == (2,)


def test_steering_without_a_mask_is_refused_in_a_sweep(edits, tokens):
    params, config = make()
    steered = Edit(head=edits["zero"].head, attn_add=jnp.ones((L, 1, 1, D)))
    with pytest.raises(ValueError, match=r"attn_add has no mask.*forward"):
        sweep(params, tokens, LENGTHS, config, [steered], logits_of)


def test_unknown_plan_is_refused_with_the_known_ones(edits, tokens):
    params, config = make()
    with pytest.raises(InputError, match=r"plan 'fast' is unknown.*wave or vmap"):
        sweep(params, tokens, LENGTHS, config, [edits["zero"]], logits_of, plan="fast")


@pytest.mark.parametrize("plan", ["wave", "vmap"])
def test_chunks_stay_within_the_budget(plan):
    config = ModelConfig(50304, 6, 8, 512, 2048)
    fixed, row = bytes_per_call(config, 16), bytes_per_row(config, 16, plan)
    for budget in (1e8, 3e8, 1e9, 1e10):
        prompts, rows = plan_chunks(config, 289, 16, budget, plan=plan)
        assert fixed + prompts * rows * row <= budget
        assert (prompts, rows) == (1, rows) or rows == 289
    assert plan_chunks(config, 289, 16, 1e12, plan=plan)[0] > 1


@pytest.mark.usefixtures("no_kept_programs")
@pytest.mark.parametrize("length", [16, 128])
def test_a_compiled_wave_needs_no_more_memory_than_was_planned(length):
    config = ModelConfig(512, 3, 4, 64, 256, rotary_dims=4)
    params = init_params(jax.random.key(0), config)
    masks = head_ablation_masks(3, 4)
    donors = jnp.zeros((3, 20, length, 4, 64))
    edits = [Edit(head=HeadEdit(masks, donors)), Edit(head=HeadEdit(masks, donors[:, :1]))]
    tokens, lengths = jnp.zeros((20, length), int), jnp.full(20, length)
    answer = Answer(lengths, lengths)

    def run(p, e):
        return sweep(p, tokens, lengths, config, e, answer)

    compiled = jax.jit(run).lower(params, edits).compile()
    planned = bytes_per_call(config, length) + 25 * 20 * bytes_per_row(config, length)
    assert 0.1 * planned < compiled.memory_analysis().temp_size_in_bytes <= planned


def test_budget_too_small_for_one_row_is_refused_with_the_arithmetic():
    config = ModelConfig(50304, 6, 8, 512, 2048)
    with pytest.raises(InputError, match=r"16 positions needs .* GB .*--memory-gb"):
        plan_chunks(config, 289, 16, 1e5)

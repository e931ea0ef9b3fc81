"""The wave equals the plain path, and nothing but the edit changes a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.edit import Edit, HeadEdit, ResidualEdit, head_ablation_masks
from jaxalign.errors import InputError
from jaxalign.memory import bytes_per_row, plan_chunks
from jaxalign.metrics import logit_difference
from jaxalign.model import ModelConfig, cast, forward, init_params
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, jit
from jaxalign.sweep import schedule, sweep

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


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_wave_equals_vmap_over_masks(edits, tokens, scheme, parallel):
    params, config = make(parallel, scheme)
    chosen = list(edits.values())
    wave, plain = (
        jit(
            lambda p, plan=plan: sweep(
                p, tokens, LENGTHS, config, chosen, logits_of, plan=plan, scheme=scheme
            )
        )(params)
        for plan in (schedule(chosen), None)
    )
    for name, ours, expected in zip(edits, wave, plain, strict=True):
        assert ours.shape == expected.shape == (1 + len(schedule([edits[name]]).touched[0]), B, V)
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
        jit(
            lambda p, plan=plan, s=s: sweep(
                p, tokens, LENGTHS, config, edit, logits_of, plan=plan, scheme=s
            )
        )(p)[0]
        for plan, s, p in (
            (schedule(edit), scheme, params),
            (None, scheme, params),
            (schedule(edit), F32, exact),
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
    chosen_plan = schedule(chosen) if plan == "wave" else None
    zero, rows = jit(
        lambda p: sweep(
            p, tokens, LENGTHS, config, chosen, logits_of, plan=chosen_plan, scheme=scheme
        )
    )(params)
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert plan == "vmap" or np.array_equal(zero[0], rows[0])


def test_clean_row_equals_the_model_without_edits(edits, tokens):
    params, config = make()
    chosen = list(edits.values())
    plain = jit(lambda p: forward(p, tokens, config, lengths=LENGTHS, last_only=True).logits)(
        params
    )
    for out in jit(
        lambda p: sweep(p, tokens, LENGTHS, config, chosen, logits_of, plan=schedule(chosen))
    )(params):
        np.testing.assert_allclose(out[0], plain, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_padding_and_what_stands_in_it_change_no_bit(edits, tokens, scheme):
    params, config = make(scheme=scheme)
    edit = [edits["zero"]]
    run = jit(
        lambda p, t: sweep(
            p, t, LENGTHS, config, edit, logits_of, plan=schedule(edit), scheme=scheme
        )
    )
    real = np.arange(S)[None] < np.asarray(LENGTHS)[:, None]
    noise = jnp.where(real, tokens, (tokens + 41) % V)
    assert np.array_equal(run(params, tokens)[0], run(params, noise)[0])


@pytest.mark.parametrize("scheme", [F32, INT8_SIM], ids=lambda s: s.name)
def test_batch_neighbours_and_bucket_move_a_prompt_by_rounding_only(edits, tokens, scheme):
    params, config = make(scheme=scheme)
    edit = [edits["zero"]]

    def run(t, n):
        return jit(
            lambda p, t, n: sweep(
                p, t, n, config, edit, logits_of, plan=schedule(edit), scheme=scheme
            )
        )(params, t, n)[0]

    together = run(tokens, LENGTHS)
    wider = run(jnp.pad(tokens, ((0, 0), (0, 7))), LENGTHS)
    alone = jnp.concatenate(
        [run(tokens[i : i + 1, : LENGTHS[i]], LENGTHS[i : i + 1]) for i in range(B)], axis=1
    )
    shuffled = run(tokens[::-1], LENGTHS[::-1])
    scale = np.abs(together).max()
    assert np.array_equal(together, shuffled[:, ::-1]), "the same plan, other places: the same bits"
    assert np.abs(together - wider).max() <= 1e-6 * scale
    assert np.abs(together - alone).max() <= 1e-6 * scale


def test_wave_of_pythia_70m_makes_85_layer_rows_and_a_last_sliver():
    masks = head_ablation_masks(6, 8)
    plan = schedule([Edit(head=HeadEdit(masks, np.zeros((6, 1, 1, 1, 1))))])
    last_layer_rows = 1 + 8 * 5
    assert plan.layer_rows(6) - last_layer_rows == 85


def test_rows_out_of_order_are_refused_with_their_place():
    masks = head_ablation_masks(L, H)[::-1]
    with pytest.raises(ValueError, match=r"edits\[0\]: row 4 begins before row 3"):
        schedule([Edit(head=HeadEdit(masks, np.zeros((L, 1, 1, 1, 1))))])


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
    slopes = [
        jax.jit(jax.grad(lambda v, p=p: importance(v, p)))(value) for p in (schedule([edit]), None)
    ]
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-4)
    assert float(jnp.abs(slopes[0]).max()) > 0
    batched = jax.vmap(lambda v: importance(v, schedule([edit])))(jnp.stack([value, 2 * value]))
    assert batched.shape == (2,)


def test_steering_without_a_mask_is_refused_in_a_sweep(edits, tokens):
    params, config = make()
    steered = Edit(head=edits["zero"].head, attn_add=jnp.ones((L, 1, 1, D)))
    with pytest.raises(ValueError, match=r"attn_add has no mask.*forward"):
        sweep(params, tokens, LENGTHS, config, [steered], logits_of)


def test_chunks_stay_within_the_budget():
    config = ModelConfig(50304, 6, 8, 512, 2048)
    for budget in (2e7, 1e8, 1e9, 1e10):
        prompts, rows = plan_chunks(config, 289, 16, budget)
        assert prompts * rows * bytes_per_row(config, 16) <= budget
        assert (prompts, rows) == (1, rows) or rows == 289
    assert plan_chunks(config, 289, 16, 1e12)[0] > 1


def test_budget_too_small_for_one_row_is_refused_with_the_arithmetic():
    config = ModelConfig(50304, 6, 8, 512, 2048)
    with pytest.raises(InputError, match=r"16 positions needs .* GB .*--memory-gb"):
        plan_chunks(config, 289, 16, 1e5)

"""Runs that hold the last positions of their prompts only: the same numbers, less work."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxalign.edits import Add, Edit, HeadEdit, Replace, Scale
from jaxalign.edits.batch import first_positions, touches_one_step
from jaxalign.edits.ready import patch_masks
from jaxalign.engine import sweep
from jaxalign.engine.packing import bins
from jaxalign.engine.readout import FromClean, read_out
from jaxalign.engine.suffix import WHOLE, Suffixes, needed, suffixes_of
from jaxalign.measures.metrics import (
    Answer,
    AnswersDifference,
    continuation_loss,
    kl_divergence,
    probability_of,
)
from jaxalign.model import ModelConfig, forward, init_params
from jaxalign.numerics import BF16, F32, INT8_SIM, jit
from testing.edits import logits_of, swept, tiny

B, S, V = 4, 9, 96
LENGTHS = np.array([9, 5, 7, 2])
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, S)))
REAL = jnp.asarray(LENGTHS)

SEQUENTIAL = "sequential, grouped queries, windows, caps"
CONFIGS = {
    "parallel": tiny()[1],
    SEQUENTIAL: ModelConfig(
        V, 3, 4, 32, 64, rotary_dims=8, num_kv_heads=2, head_size=8, parallel_residual=False,
        norm="rms", gated=True, activation="silu", windows=(3, None, 4), attention_cap=5.0,
        logit_cap=9.0,
    ),
}  # fmt: skip


def parameters(config):
    return jax.tree.map(
        lambda a: 3 * a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape),
        init_params(jax.random.key(0), config),
    )


def values(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def at_positions(point, config, apart):
    """A row for each place from position 3 on, and one that acts nowhere."""
    H, K, h, F, D, L = (
        config.num_heads, config.num_kv_heads, config.head_size, config.intermediate_size,
        config.hidden_size, config.num_layers,
    )  # fmt: skip
    shapes = {
        "resid": (L + 1, B, S, D), "q": (L, B, S, H, h), "k": (L, B, S, K, h),
        "v": (L, B, S, K, h), "scores": (L, B, H, S, S), "pattern": (L, B, H, S, S),
        "z": (L, B, S, H, h), "mlp_hidden": (L, B, S, F), "mlp_out": (L, B, S, D),
        "final_norm": (B, S, D),
    }  # fmt: skip
    masks = patch_masks(point, shapes[point], apart)
    first = first_positions(Edit(Replace(point, masks, values(*shapes[point]))), B, S)[:, 0]
    masks = np.concatenate([masks[first >= 3][::-2], np.zeros_like(masks[:1])])
    return Edit(Replace(point, masks, values(*shapes[point])))


def heads_at_the_end(config):
    """Every head, zeroed at each prompt's last real position."""
    L, H = config.num_layers, config.num_heads
    masks = np.zeros((L * H, L, B, S, H), bool)
    for row, (layer, head) in enumerate(itertools.product(range(L), range(H))):
        masks[row, layer, np.arange(B), LENGTHS - 1, head] = True
    return Edit(HeadEdit(masks, np.zeros((L, 1, 1, 1, 1), np.float32)))


def groups(config):
    behind = [at_positions("resid", config, "S"), at_positions("mlp_out", config, "S")]
    behind += [at_positions("final_norm", config, "S"), heads_at_the_end(config)]
    inside = [at_positions("z", config, "HS"), at_positions("k", config, "KS")]
    inside += [at_positions("scores", config, "Q"), at_positions("pattern", config, "Q")]
    inside += [at_positions("mlp_hidden", config, "S")]
    return {"behind the attention": behind, "anywhere": inside}


def wanted(edits):
    """Few lengths, two at the least."""
    each = [needed(edit, LENGTHS, S) for edit in edits]
    return tuple(tuple((6 if n > 2 else 2) if n <= 6 else S for n in rows) for rows in each)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        pytest.param("parallel", "behind the attention", marks=pytest.mark.slow),
        pytest.param("parallel", "anywhere", marks=pytest.mark.slow),
        pytest.param(SEQUENTIAL, "behind the attention", marks=pytest.mark.slow),
        (SEQUENTIAL, "anywhere"),
    ],
)
def test_runs_of_the_last_positions_say_what_whole_runs_say(name, group):
    config = CONFIGS[name]
    params, edits = parameters(config), groups(config)[group]
    suffixes = wanted(edits)
    assert {2, 6} <= {n for rows in suffixes for n in rows}
    how = {"at": None, "every_layer": False}
    plain = jit(lambda p, e: sweep(p, TOKENS, REAL, config, e, logits_of, engine="vmap", **how))
    wave = jit(lambda p, e: sweep(p, TOKENS, REAL, config, e, logits_of, suffixes=suffixes))
    for edit, ours, expected in zip(edits, wave(params, edits), plain(params, edits), strict=True):
        point = edit.sites[0].point
        scale = np.abs(expected).max()
        assert np.abs(ours - expected).max() <= 1e-5 * scale, point
        assert np.abs(expected[1:] - expected[:1]).max() > 1e-2 * scale, f"{point} edits nothing"
        idle = np.array([not np.asarray(m).any() for m in edit.sites[0].mask])
        assert np.array_equal(ours[1:][idle], np.repeat(ours[:1], idle.sum(), axis=0)), point


@pytest.mark.parametrize("point", ["resid", pytest.param("z", marks=pytest.mark.slow)])
def test_a_row_may_be_edited_at_another_step_of_each_prompt(point):
    params, config = tiny()
    size = (
        (config.num_layers + 1, B, S, 32) if point == "resid" else (config.num_layers, B, S, 4, 8)
    )
    mask = np.zeros((6, *size[:3], *[1] * (len(size) - 3)), bool)
    rng = np.random.default_rng(4)
    for row, prompt in itertools.product(range(6), range(B)):
        mask[row, rng.integers(size[0]), prompt, LENGTHS[prompt] - 1 - row % 2] = True
    edit = Edit(Replace(point, mask, values(*size)))
    assert touches_one_step([edit], B)
    assert not touches_one_step([edit], B, together=True)
    plain, ours = (
        jit(lambda p, how=how: sweep(p, TOKENS, REAL, config, [edit], logits_of, **how)[0])(params)
        for how in ({"engine": "vmap"}, {"suffixes": ((2,) * 6,)})
    )
    assert np.abs(ours - plain).max() <= 1e-5 * np.abs(plain).max()
    assert (np.abs(plain[1:] - plain[:1]).max(axis=-1) > 1e-3).mean() > 0.5


@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("vmap", "wave")), "suffixes"],
)
def test_chosen_positions_are_read_after_every_layer(engine):
    params, config = tiny()
    edits = [at_positions("resid", config, "S"), heads_at_the_end(config)]
    at = jnp.array([[1, 8], [4, 4], [6, 2], [0, 1]])
    how = {"engine": "vmap"} if engine == "vmap" else {"suffixes": ()}
    if engine == "suffixes":
        how = {"suffixes": wanted(edits)}
    run = jit(
        lambda p, e: sweep(p, TOKENS, REAL, config, e, logits_of, at=at, every_layer=True, **how)
    )
    found = run(params, edits)
    prompt = np.arange(B)[:, None]
    for edit, ours in zip(edits, found, strict=True):
        assert ours.shape == (1 + len(edit.sites[0].mask), config.num_layers + 1, B, 2, V)
        for row in (0, len(ours) - 2, 1):
            one = edit.map_arrays(
                lambda d, a, r=row: np.asarray(a)[max(r - 1, 0)] if d.per_row else a
            )
            out = forward(
                params, TOKENS, config, lengths=REAL, edit=one if row else None,
                capture=("embed", "resid"),
            )  # fmt: skip
            expected = out.logits[prompt, at]
            np.testing.assert_allclose(ours[row, -1], expected, atol=2e-5 * np.abs(expected).max())
            stream = out.activations["embed"][prompt, at]
            wide = stream - stream.mean(axis=-1, keepdims=True)
            unit = wide / jnp.sqrt((wide**2).mean(axis=-1, keepdims=True) + config.norm_eps)
            normed = unit * params.final_norm.scale[None, None] + params.final_norm.bias[None, None]
            lens = normed @ params.unembed.T
            np.testing.assert_allclose(ours[row, 0], lens, atol=2e-5 * np.abs(lens).max())


def test_rows_are_compared_with_the_clean_one_and_a_continuation_is_scored():
    params, config = tiny()
    edit = heads_at_the_end(config)
    logits, kl = (
        swept(params, TOKENS, REAL, config, [edit], readout)[0]
        for readout in (logits_of, FromClean(kl_divergence))
    )
    assert np.abs(kl[0]).max() == 0
    base = jnp.repeat(logits[:1], len(logits), axis=0)
    np.testing.assert_allclose(kl, kl_divergence(base, logits), rtol=1e-3, atol=1e-6)
    p = jax.nn.softmax(logits, axis=-1)
    sets = jnp.array([[1, 5], [2, 6], [3, 7], [4, 8]])
    chosen = np.take_along_axis(
        np.asarray(p), np.broadcast_to(np.asarray(sets), (len(p), B, 2)), -1
    ).sum(-1)
    np.testing.assert_allclose(probability_of(logits, sets), chosen, rtol=1e-5)
    at = jnp.stack([REAL - 2, REAL - 1], axis=1)
    continuation = jnp.array([[3, 4], [5, -1], [7, 8], [9, 1]])
    read = lambda logits: continuation_loss(logits, continuation)  # noqa: E731
    [loss] = jit(lambda p: sweep(p, TOKENS, REAL, config, [edit], read, at=at))(params)
    clean = forward(params, TOKENS, config, lengths=REAL).logits
    said = -jax.nn.log_softmax(clean, axis=-1)[np.arange(B)[:, None], at]
    each = np.take_along_axis(
        np.asarray(said), np.maximum(np.asarray(continuation), 0)[..., None], -1
    )[..., 0]
    expected = [each[b][continuation[b] >= 0].mean() for b in range(B)]
    np.testing.assert_allclose(loss[0], expected, rtol=1e-5)


def test_a_row_needs_the_positions_from_its_first_edit_to_the_end_of_its_longest_prompt():
    mask = np.zeros((3, 2, B, S, 1), bool)
    mask[0, 1, 0, 4] = True  # five positions of the prompt of nine
    mask[1, 0, :, 1] = True
    steer = np.zeros((3, 2, 1, S), np.float32)
    steer[0, 0, 0, 6] = 1.0
    edit = Edit(Replace("mlp_out", mask, values(2, B, S, 8)), Add("attn_out", steer, values(3, 8)))
    first = first_positions(edit, B, S)
    assert first.tolist() == [[4, 6, 6, 6], [1, 1, 1, 1], [S] * B]
    assert needed(edit, LENGTHS, S).tolist() == [5, 8, 1]
    everywhere = Edit(Scale("z", -np.ones((1, 2, 1, 1, 4, 1), np.float32)))
    assert needed(everywhere, LENGTHS, S).tolist() == [S]
    edges = np.zeros((1, 2, 1, 1, S, S), bool)
    edges[0, 0, 0, 0, 7, 2] = True  # position 7 does not see 2
    cut = Edit(Replace("scores", edges, np.full((2, 1, 1, 1, 1), -np.inf, np.float32)))
    assert needed(cut, LENGTHS, S).tolist() == [2]


@pytest.mark.parametrize("known", [True, False])
def test_bins_hold_every_row_once_and_next_to_no_filler(known):
    rng = np.random.default_rng(3)
    sizes = [*range(1, 16)] * 6 + rng.integers(1, 16, 37).tolist()
    births = rng.integers(0, 4, len(sizes)).tolist()
    found = bins(sizes, births if known else None, 15)
    assert sorted(row for rows in found for row in rows) == [*range(len(sizes))]
    held = [sum(sizes[row] for row in rows) for rows in found]
    assert max(held) <= 15
    groups = [[births[row] for row in rows] for rows in found]
    assert all(len(set(group)) == 1 for group in groups) == known
    fewest = -(-sum(sizes) // 15)
    if known:
        fewest = sum(-(-sum(np.array(sizes)[np.array(births) == b]) // 15) for b in range(4))
    assert len(found) <= 1.1 * fewest


def test_positions_are_left_out_where_it_saves_more_than_compiling_takes():
    small, large = tiny()[1], ModelConfig(50304, 24, 16, 1024, 4096)
    masks = patch_masks("resid", (25, 1, 32, 1), "S")
    edits = [Edit(Replace("resid", masks, np.zeros((25, 1, 1, 1), np.float32)))]
    lengths = jnp.full(64, 32)
    found = suffixes_of(edits, lengths, 32, large, F32)
    assert found.sizes == ((*range(32, 0, -1),) * 25,)
    assert found.births == tuple(np.repeat(np.arange(25), 32).tolist())
    few = [Edit(Replace("resid", np.zeros((2, 4, 1, S, 1), bool), np.zeros((4, 1, 1, 1))))]
    assert suffixes_of(few, REAL, S, small, F32) == WHOLE
    for scheme in (BF16, INT8_SIM):
        assert suffixes_of(edits, lengths, 32, large, scheme) == WHOLE
    seen = []
    jax.make_jaxpr(lambda e: seen.append(suffixes_of(e, lengths, 32, large, F32)) or 0)(edits)
    assert seen == [WHOLE], "traced masks say nothing"


def test_a_row_that_overflows_spoils_no_other_in_its_bin():
    params, config = tiny()
    by = np.zeros((4, config.num_layers, 1, S, 1), np.float32)
    by[0, 0, 0, S - 1], by[1, 1, 0, S - 2], by[2, 0, 0, S - 2] = 3e38, np.nan, 1.0
    by[3, 0, 0, S - 3] = 0.5
    edit, whole = Edit(Scale("mlp_out", by)), jnp.full(B, S)
    plain, ours = (
        jit(lambda p, how=how: sweep(p, TOKENS, whole, config, [edit], logits_of, **how)[0])(params)
        for how in ({"engine": "vmap"}, {"suffixes": ((1, 2, 2, 3),)})
    )
    sound = np.isfinite(np.asarray(plain)).all(axis=(1, 2))
    assert sound.tolist() == [True, False, False, True, True]
    assert np.isfinite(np.asarray(ours)).all(axis=(1, 2)).tolist() == sound.tolist()
    assert np.abs(ours[sound] - plain[sound]).max() <= 1e-5 * np.abs(plain[sound]).max()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"suffixes": ((3,),)}, r"suffixes are \[1\] rows, expected \[12\]"),
        ({"suffixes": ((0,) * 12,)}, r"a suffix of 0 positions, expected 1 … 9"),
        (
            {"suffixes": Suffixes(((9,) * 12,), (1, 1))},
            r"births are \(1, 1\), expected a step for e",
        ),
        ({"suffixes": 5}, r"suffixes are 5, expected for each batch of edits a tuple"),
        ({"suffixes": ((2.5,) * 12,)}, r"suffixes are \(\(2.5, .*expected for each batch"),
        ({"suffixes": ((3,) * 12,), "scheme": BF16}, r"'bf16' computes in bfloat16"),
        ({"suffixes": ((3,) * 12,), "scheme": INT8_SIM}, r"int8-sim' rounds over all positions"),
        ({"at": jnp.array([[8], [5], [1], [0]])}, r"position 5 of prompt 1, expected 0 … 4"),
        ({"at": jnp.zeros((3, 1), int)}, r"at is int.*\[3, 1\], expected int \[4, P\]"),
        ({"at": jnp.zeros((4, 1), int) > 0}, r"at is bool.*expected int \[4, P\]"),
    ],
)
def test_what_cannot_be_read_or_left_out_is_refused(how, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    scheme = how.get("scheme", F32)
    params, config = tiny(scheme=scheme)
    edits = [heads_at_the_end(config)]
    with pytest.raises(ValueError, match=message):
        sweep(params, TOKENS, REAL, config, edits, logits_of, **how)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_difference_of_named_tokens_is_read_without_the_other_logits(name):
    config = CONFIGS[name]
    params = parameters(config)
    final = jax.random.normal(jax.random.key(1), (5, 3, B, config.hidden_size))
    tokens = jnp.array([[3, 4, 9], [V - 1, 0, 0], [7, 7, 2], [5, 1, 8]])
    metric = AnswersDifference(tokens, jnp.array([[0.5, 0.5, -1.0], [1.0, -1.0, 0.0]] * 2))
    ours = read_out(params, final, config, metric, steps=True)
    plain = read_out(params, final, config, lambda logits: metric(logits), steps=True)
    np.testing.assert_allclose(ours, plain, atol=1e-5 * np.abs(plain).max())
    assert np.ptp(np.asarray(plain)) > 1


def test_a_promise_that_is_seen_to_be_broken_is_refused():
    params, config = tiny()
    everywhere = Edit(Scale("mlp_out", np.ones((2, config.num_layers, 1, 1, 1), np.float32)))
    with pytest.raises(ValueError, match="row 1 of edit 0 acts 9 positions before the end of a"):
        sweep(params, TOKENS, REAL, config, [everywhere], logits_of, suffixes=((9, 3),))
    late = Suffixes(((9, 9),), (1, 2))
    with pytest.raises(ValueError, match=r"births of edit 0 are \[1, 2\], expected \[1, 1\]"):
        sweep(params, TOKENS, REAL, config, [everywhere], logits_of, suffixes=late)


def test_a_readout_without_a_value_for_each_prompt_is_refused():
    params, config = tiny()
    with pytest.raises(ValueError, match=r"readout gives shape \(\) for logits of 4 texts"):
        sweep(params, TOKENS, REAL, config, [heads_at_the_end(config)], jnp.mean)


def test_a_scheme_that_packs_refuses_parameters_that_are_not_packed():
    params, config = tiny()
    with pytest.raises(ValueError, match="params hold no packed matrix, but scheme 'nf4' packs"):
        forward(params, TOKENS, config, lengths=REAL, scheme="nf4")


def test_an_answer_reads_one_position():
    params, config = tiny()
    answer = Answer(jnp.zeros(B, int), jnp.ones(B, int))
    with pytest.raises(ValueError, match="reads one position"):
        sweep(
            params, TOKENS, REAL, config, [heads_at_the_end(config)], answer,
            at=jnp.zeros((B, 1), int),
        )  # fmt: skip

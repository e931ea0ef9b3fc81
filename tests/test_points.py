"""Every point of every layout: edited by every engine as PyTorch with hooks edits it."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from engines import ENGINES, LENGTHS
from family_checkpoints import made_once, prompts, torch_and_transformers
from flax import struct
from torch_points import MODELS, changed, logits, write

from jaxalign.edits import Add, Edit, Replace, Scale, Site, acts, knock_out
from jaxalign.edits.points import BEHIND_ATTENTION, POINTS
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer
from jaxalign.model import forward
from jaxalign.model.checks import points_of
from jaxalign.model.decoder import CAPTURES
from jaxalign.model.generate import generate
from jaxalign.numerics import BF16, F16, INT8_SIM, jit
from testing.edits import continued, logits_of, swept, tiny

KINDS = ("replace", "add", "scale")
ROWS = 2  # one changes a single layer, one every layer


def sizes_of(config, batch, length):
    letters = {"L": config.num_layers, "B": batch, "S": length, "Q": length, "h": config.head_size}
    letters |= {"H": config.num_heads, "K": config.num_kv_heads, "D": config.hidden_size}
    letters |= {"F": config.intermediate_size, "L+1": config.num_layers + 1}
    return letters | {"V": config.vocab_size}


def shape_at(point, config, batch, length):
    """``(steps, B, …)`` of a point's value; one step where it stands at the model's end."""
    at, sizes = POINTS[point], sizes_of(config, batch, length)
    layers = [sizes[axis] for axis in at.layers] or [1]
    return (*layers, batch, *(sizes[axis] for axis in (*at.position, *at.unit)))


def drawn(point, kind, config, batch=3, length=11, last=None):
    """A batch of two edits, as a site and as ``(row, step, x) → x`` of NumPy; where ``last`` is
    given, of so many of the prompts' last positions."""
    rng = np.random.default_rng([*map(ord, point + kind)])
    steps, *shape = shape_at(point, config, batch, length)
    mask = rng.random((ROWS, steps, *shape)) < 0.3
    mask[0, np.arange(steps) != steps // 2] = False
    if last is not None:
        late = np.arange(length) >= np.asarray(LENGTHS)[:, None] - last  # [B, S]
        by_query = late[:, None, :, None]
        by_unit = late.reshape(late.shape + (1,) * (mask.ndim - 4))
        mask &= by_unit if POINTS[point].position else by_query
    value = rng.standard_normal((steps, *shape)).astype(np.float32)
    unit = shape[1 + len(POINTS[point].position) :]
    direction = rng.standard_normal((ROWS, *unit)).astype(np.float32)
    amount = np.where(mask, rng.standard_normal(mask.shape), 0).astype(np.float32)
    # What stands once has no axis of layers.
    cut = (lambda a, axis: a) if POINTS[point].layers else (lambda a, axis: a.squeeze(axis))
    if kind == "replace":
        site = Replace(point, cut(mask, 1), cut(value, 0))
        return site, lambda row, step, x: np.where(mask[row, step], value[step], x)
    if kind == "add":
        site = Add(point, cut(amount, 1), direction)
        return site, lambda row, step, x: x + amount[row, step] * direction[row]
    site = Scale(point, cut(amount, 1))
    return site, lambda row, step, x: np.where(
        mask[row, step], x * np.where(mask[row, step], 1 + amount[row, step], 1), x
    )


def by_hooks(model, point, change, config, tokens):
    """Last logits of the clean run and of every row, ``[1 + M, B, V]``, by PyTorch."""
    torch, _ = torch_and_transformers()
    steps, _, *shape = shape_at(point, config, *tokens.shape)
    found = [logits(model, tokens)]
    for row in range(ROWS):
        with contextlib.ExitStack() as stack:
            for at in range(steps):

                def given(x, row=row, at=at):
                    with np.errstate(invalid="ignore"):  # −∞ · 0, where nothing is changed
                        return torch.from_numpy(change(row, at, x.numpy()).astype(np.float32))

                stack.enter_context(changed(model, point, at, tuple(shape), given))
            found.append(logits(model, tokens))
    return np.stack(found)[:, np.arange(len(tokens)), np.asarray(LENGTHS) - 1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' model and ours, made once."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return made_once(tmp_path_factory, write)


def compare(models, variant, kinds, engines):
    """All points in one call, and those behind the attention, which share more, in another."""
    model, params, config = models(variant)
    tokens = prompts()
    every = [(p, kind) for n, p in enumerate(points_of(config)) for kind in kinds(n)]
    behind = [key for key in every if key[0] in BEHIND_ATTENTION]
    for late in sorted({engine == "suffixes" for engine in engines}):
        last = {key: (2, 3, 5)[n % 3] if late else None for n, key in enumerate(every)}
        expected, sites = {}, {}
        for point, kind in every:
            site, change = drawn(point, kind, config, last=last[point, kind])
            sites[point, kind] = Edit(site)
            expected[point, kind] = by_hooks(model, point, change, config, tokens)
        for engine in engines:
            if (engine == "suffixes") != late:
                continue
            for keys in [every, *([behind] if engine in ("wave", "suffixes") else [])]:
                given = (
                    params,
                    jnp.asarray(tokens),
                    LENGTHS,
                    config,
                    [sites[key] for key in keys],
                    logits_of,
                )
                if late:
                    found = swept(*given, suffixes=tuple((last[key],) * ROWS for key in keys))
                else:
                    found = ENGINES[engine](*given)
                for key, ours in zip(keys, found, strict=True):
                    is_what(ours, expected[key], (engine, *key))


def is_what(ours, wanted, name):
    far = np.abs(ours - wanted).max() / np.abs(wanted).max()
    assert far <= 1e-5, name
    moved = np.abs(wanted[1:] - wanted[0]).max(axis=(1, 2))
    assert (moved > 1e-3 * np.abs(wanted).max()).any(), (name, "changes nothing")


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["gemma2"])
def test_each_point_is_edited_as_pytorch_with_hooks_edits_it(models, variant):
    compare(models, variant, lambda n: [KINDS[n % 3]], ["wave"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", MODELS)
def test_each_kind_at_each_point_is_what_pytorch_with_hooks_computes(models, variant):
    compare(models, variant, lambda n: KINDS, [*ENGINES, "suffixes"])


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["gpt_neox, parallel", "gemma2"])
def test_each_point_is_read_as_pytorch_with_hooks_reads_it(models, variant):
    model, params, config = models(variant)
    tokens = prompts()
    names = ("embed", *points_of(config))
    found = jit(lambda p, t: forward(p, t, config, capture=names))(params, tokens).activations
    for point in points_of(config):
        steps, _, *shape = shape_at(point, config, *tokens.shape)
        for at in range(steps):
            seen = []

            def keep(x, seen=seen):
                seen.append(x.numpy().copy())
                return x

            with changed(model, point, at, tuple(shape), keep):
                logits(model, tokens)
            if point == "resid":
                ours = found["embed"] if at == 0 else found["resid"][at - 1]
            else:
                ours = found[point][at] if POINTS[point].layers else found[point]
            np.testing.assert_allclose(ours, seen[0], atol=2e-5, err_msg=f"{point} {at}")


def every_point(config, batch, length, sites):
    """One run with a site at each point of a model: ``sites(point, shape)``."""
    shapes = {p: shape_at(p, config, batch, length) for p in points_of(config)}
    whole = {p: s if POINTS[p].layers else s[1:] for p, s in shapes.items()}
    return Edit(*(sites(point, shape) for point, shape in whole.items()))


@pytest.mark.parametrize("scheme", [F16, BF16, INT8_SIM], ids=lambda s: s.name)
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
def test_what_acts_nowhere_changes_no_bit_at_any_point(scheme, parallel):
    params, config = tiny(parallel, scheme)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 5)))
    run = jit(lambda edit: forward(params, tokens, config, scheme=scheme, edit=edit).logits)
    clean = run(None)
    nowhere = {
        "replace": lambda p, s: Replace(p, np.zeros(s, bool), np.full(s, np.nan, np.float32)),
        "add": lambda p, s: Add(p, np.zeros(s, bool), value=np.full(s, np.inf, np.float32)),
        "scale": lambda p, s: Scale(p, np.zeros(s, np.float32)),
    }
    for kind, site in nowhere.items():
        assert np.array_equal(run(every_point(config, 2, 5, site)), clean), kind


@pytest.mark.parametrize("scheme", [F16, BF16], ids=lambda s: s.name)
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
def test_what_acts_and_changes_nothing_keeps_the_clean_bits(scheme, parallel):
    params, config = tiny(parallel, scheme)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 7)))
    L, H, D, h = config.num_layers, config.num_heads, config.hidden_size, config.head_size
    every = np.eye(L, dtype=np.float32)  # a row a layer
    heads = Add("z", every[..., None, None, None, None], np.zeros((L, H, h), np.float32))
    streams = [
        Add(point, every[..., None, None, None], np.zeros((L, D), np.float32))
        for point in ("attn_out", "mlp_out")
    ]
    found = swept(
        params, tokens, jnp.array([7, 3, 5]), config, [*map(Edit, [heads, *streams])], logits_of,
        scheme=scheme,
    )  # fmt: skip
    for each in found:
        assert np.array_equal(each, np.repeat(each[:1], L + 1, axis=0))


def test_generation_edits_every_point_as_a_pass_over_the_whole_text_does():
    params, config = tiny(parallel=False)
    rng = np.random.default_rng(0)
    tokens, lengths = jnp.asarray(rng.integers(0, 96, (2, 5))), jnp.array([5, 5])
    room = 8

    def scaled(point, shape):
        return Scale(point, (rng.standard_normal(shape) * (rng.random(shape) < 0.2)).astype("f4"))

    edit = every_point(config, 2, room, scaled)
    text, logits = continued(params, tokens, config, room, edit)
    whole = jit(lambda edit: forward(params, text, config, edit=edit).logits)(edit)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5 * np.abs(whole).max())
    made = generate(params, tokens, lengths, config, steps=room - 5, edit=edit)
    assert np.array_equal(made.tokens, text[:, 5:])


def test_a_scheme_that_sees_whole_examples_is_edited_alike_by_both_engines():
    params, config = tiny(scheme=INT8_SIM)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 11)))
    edits = [Edit(drawn(p, "add", config)[0]) for p in ("q", "mlp_hidden", "final_norm")]
    wave, plain = (
        swept(params, tokens, LENGTHS, config, edits, logits_of, engine=engine, scheme=INT8_SIM)
        for engine in ("wave", "vmap")
    )
    for ours, expected in zip(wave, plain, strict=True):
        far = np.abs(ours - expected).max(axis=-1) / np.abs(expected).max()
        assert (far <= 1e-5).mean() >= 0.8
        assert far.max() <= 5e-2


def test_an_edit_never_lets_a_position_see_one_behind_it():
    params, config = tiny()
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 96, (2, 6)))
    shape = shape_at("scores", config, 2, 6)
    edit = Edit(Replace("scores", np.ones(shape, bool), rng.standard_normal(shape).astype("f4")))
    run = jit(lambda t: forward(params, t, config, edit=edit, capture=("pattern",)))
    out, other = run(tokens), run(tokens.at[:, -1].add(-3))
    assert np.array_equal(np.triu(out.activations["pattern"], 1), np.zeros(shape))
    assert np.array_equal(out.logits[:, :-1], other.logits[:, :-1])


def test_knocked_out_edges_leave_their_attention_to_the_others():
    params, config = tiny()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (1, 6)))
    edges = np.zeros((config.num_layers, 1, config.num_heads, 6, 6), bool)
    edges[1, 0, 2, 5, 1:3] = True
    run = jit(lambda e: forward(params, tokens, config, edit=e, capture=("pattern",)).activations)
    clean, cut = (np.asarray(run(e)["pattern"]) for e in (None, knock_out(edges)))
    rest = np.where(edges, 0, clean)
    np.testing.assert_allclose(
        cut[1, 0, 2, 5], rest[1, 0, 2, 5] / rest[1, 0, 2, 5].sum(), atol=1e-6
    )
    assert np.array_equal(cut[0], clean[0])
    taken = np.asarray(run(Edit(Scale("pattern", -edges.astype("f4"))))["pattern"])
    np.testing.assert_allclose(taken[1, 0, 2, 5], rest[1, 0, 2, 5], atol=1e-7)


def test_a_position_without_any_source_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    edges = np.zeros((1, 2, 1, 1, 5, 5), bool)
    edges[..., 3, :4] = True
    with pytest.raises(InputError, match="position 3 has every source knocked out"):
        knock_out(edges)
    for strange in (np.eye(5, dtype=bool), np.zeros((3, 1, 1, 5, 5))):
        with pytest.raises(InputError, match=r"expected bool \[L, B, H, Q, S\]"):
            knock_out(strange)
    with pytest.raises(InputError, match="position 0 has every source knocked out"):
        knock_out(np.eye(5, dtype=bool)[None, None, None, None])


@pytest.mark.parametrize("batch", [False, True], ids=["a run", "a batch"])
def test_a_position_whose_window_is_knocked_out_is_refused(batch):
    windows = (None, 2, None)
    params, config = tiny(windows=windows)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 5)))
    edges = np.zeros((3, 1, 1, 5, 5), bool)
    edges[0, ..., 3, 1:4] = edges[2, ..., 3, 1:4] = True  # position 0 is left
    edges[1, ..., 3, 3] = True  # position 2 is left
    some, all_of_it = edges, edges.copy()
    all_of_it[1, ..., 3, 2] = True

    def ran(edges):
        edit = knock_out(edges[None] if batch else edges)
        if batch:
            return sweep(params, tokens, jnp.array([5, 5]), config, [edit], logits_of)[0]
        return forward(params, tokens, config, edit=edit).logits

    assert np.isfinite(ran(some)).all()
    said = "position 3 of layer 1 has every source knocked out, of the 2 positions that it sees"
    with pytest.raises(ValueError, match=said):
        ran(all_of_it)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (
            lambda: Add("logits", np.ones((1, 1, 1)), np.ones(95)),
            r"Add.direction has shape \(95,\), expected \[96|1\]",
        ),
        (
            lambda: Replace("mlp_up", np.ones((3, 1, 6, 1), bool), np.ones((3, 1, 1, 1))),
            r"Replace.mask has shape \(3, 1, 6, 1\), expected \[3, 2|1, 5|1, 64|1\]",
        ),
        (lambda: Scale("mlp_gate", np.ones((3, 1, 1, 64))), "at the point 'mlp_gate', which"),
        (
            lambda: Replace("patern", np.ones((3, 1)), np.ones((3, 1))),
            "at the point 'patern'",
        ),
        (lambda: Replace("q", np.ones((3, 1, 1, 4, 1), bool)), "Replace takes value or own, and n"),
        (
            lambda: Add("q", np.ones((3, 1, 1, 4, 1)), np.ones((4, 8)), np.ones((3, 1, 1, 4, 8))),
            "Add takes direction or value, and both",
        ),
        (
            lambda: Add("resid", np.ones((4, 1, 1, 1)), np.ones(31)),
            r"Add.direction has shape \(31,\), expected \[32|1\]",
        ),
        (
            lambda: Scale("mlp_hidden", np.ones((3, 1, 1, 63))),
            r"Scale.by has shape \(3, 1, 1, 63\), expected \[3, 2|1, 5|1, 64|1\]",
        ),
        (lambda: Scale("resid_mid", np.ones((3, 1, 1, 32))), "at the point 'resid_mid', which"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_by_name(site, said):
    params, config = tiny()
    with pytest.raises(ValueError, match=said):
        forward(params, jnp.ones((2, 5), jnp.int32), config, edit=Edit(site()))


@pytest.mark.parametrize("point", ["final_norm", "logits", "mlp_in", "mlp_up"])
def test_what_shares_the_clean_attention_may_be_all_that_a_row_edits(point):
    """Behind the last layer, or inside the MLP of a parallel block, whose clean output is there."""
    params, config = tiny()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 11)))
    edit = Edit(drawn(point, "add", config)[0])
    wave, plain = (
        swept(params, tokens, LENGTHS, config, [edit], logits_of, engine=engine)[0]
        for engine in ("wave", "vmap")
    )
    np.testing.assert_allclose(wave, plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(plain[1:] - plain[:1]).max(axis=(1, 2)).min() > 1e-3


def test_an_answer_is_read_off_edited_logits_as_off_any():
    """Unedited logits are folded over the vocabulary; edited ones are read whole."""
    params, config = tiny()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 11)))
    by = np.zeros((2, 1, 1, 96), np.float32)
    by[1, ..., 5] = 40
    edits = [Edit(Add("logits", by, np.ones((2, 96), np.float32)))]
    answer = Answer(jnp.array([5, 7, 9]), jnp.array([7, 5, 5]))
    read = jit(lambda e: sweep(params, tokens, LENGTHS, config, e, answer))
    found = read(edits)[0]
    whole = swept(params, tokens, LENGTHS, config, edits, logits_of)[0]
    clean = forward(params, tokens, config, lengths=LENGTHS, last_only=True).logits
    np.testing.assert_allclose(whole[:2], np.stack([clean] * 2), atol=1e-5)
    np.testing.assert_allclose(whole[2] - clean, np.eye(96)[[5] * 3] * 40, atol=1e-4)
    for name, value in vars(answer(whole)).items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-5, err_msg=name)


def test_rows_may_each_put_a_value_of_their_own():
    params, config = tiny()
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 96, (3, 11)))
    mask = np.zeros((2, 3, 1, 11, 1, 1), bool)
    mask[:, 1, :, 2:5] = True
    own = rng.standard_normal((2, 3, 11, 4, 8)).astype(np.float32)
    apart = [
        Edit(Replace("z", mask[i : i + 1], np.tile(own[i], (3, 1, 1, 1, 1)))) for i in range(2)
    ]
    for engine in ("wave", "vmap"):
        found = swept(
            params,
            tokens,
            LENGTHS,
            config,
            [Edit(Replace("z", mask, own=own)), *apart],
            logits_of,
            engine=engine,
        )
        for row in range(2):
            np.testing.assert_allclose(found[0][1 + row], found[1 + row][1], atol=1e-5)
            assert np.abs(found[0][1 + row] - found[0][0]).max() > 1e-3


@pytest.mark.parametrize(
    ("point", "axes", "said"),
    [
        ("mlp_out", "B|1 S|1", "Own.mask says where the site acts, but mlp_out is in every layer"),
        ("final_norm", "L B|1 S|1", "Own.mask says by layer where .* begin its axes with B|1"),
    ],
)
def test_a_site_says_by_layer_where_it_acts_where_its_point_is_in_layers(point, axes, said):
    @struct.dataclass
    class Own(Site):
        kind: ClassVar = "scale"
        mask: jax.Array = acts(axes)

        def apply(self, x, inputs=None, weights=None):
            return x

    Own.point = point
    params, config = tiny()
    mask = jnp.ones([3 if axis == "L" else 1 for axis in axes.split()], bool)
    with pytest.raises(ValueError, match=said):
        forward(params, jnp.ones((2, 5), jnp.int32), config, edit=Edit(Own(mask)))


def test_captures_are_the_points_and_the_stream_before_the_first_block():
    assert set(CAPTURES) == {"embed", *POINTS}

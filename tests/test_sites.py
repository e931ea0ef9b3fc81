"""A site of one's own: declared once, applied by every engine, refused by name elsewhere."""

from __future__ import annotations

import functools
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import make_mesh, shard_params
from jaxalign.edits import Add, Edit, HeadEdit, Replace, Site, acts, per_row
from jaxalign.edits.batch import by_row, check, rows, take_rows
from jaxalign.edits.ready import zero_ablation
from jaxalign.edits.site import KINDS
from jaxalign.engine import sweep
from jaxalign.model import ModelConfig, forward, init_params
from jaxalign.model.attention import attend, keys_values, project_heads, queries
from jaxalign.model.decoder import POINTS
from jaxalign.model.generate import generate
from jaxalign.model.layers import Pass, mlp, normalize
from jaxalign.numerics import INT8_SIM, jit
from jaxalign.shapes import lead
from testing.edits import continued, logits_of, swept, tiny

L, H, D, S, B, V = 2, 4, 32, 7, 3, 96
LENGTHS = jnp.array([7, 4, 6])


@struct.dataclass
class ScaleMLP(Site):
    """Each row scales a layer's MLP output by a factor of its own."""

    point: ClassVar = "mlp_out"
    kind: ClassVar = "scale"

    mask: jax.Array = acts("L B|1 S|1")
    factor: jax.Array = per_row("L")

    def apply(self, x, inputs=None, weights=None):
        return jnp.where(lead(self.mask[..., None], x), self.factor * x, x)


@struct.dataclass
class AddDirection(Site):
    """Each row adds a direction of its own to the stream, as strongly as its coefficients say."""

    point: ClassVar = "resid"
    kind: ClassVar = "add"

    coefficient: jax.Array = acts("L+1 B|1 S|1")
    direction: jax.Array = per_row("D")

    def apply(self, x, inputs=None, weights=None):
        moved = x + lead(self.coefficient[..., None] * lead(self.direction, x), x)
        return jnp.where(lead(self.coefficient[..., None] != 0, x), moved, x)


@struct.dataclass
class NegateZ(Site):
    """What some heads read, negated: a point before the attention output."""

    point: ClassVar = "z"
    kind: ClassVar = "scale"

    mask: jax.Array = acts("L B|1 S|1 H")

    def apply(self, x, inputs=None, weights=None):
        return jnp.where(lead(self.mask[..., None], x), -x, x)


@struct.dataclass
class Nowhere(Site):
    """At a point that the model does not have."""

    point: ClassVar = "patern"
    kind: ClassVar = "scale"

    mask: jax.Array = acts("L B|1 S|1 H")


def batches():
    """Batches of edits at every point of the model, and one that mixes two sites at one point."""
    rng = np.random.default_rng(0)
    layers = np.eye(L, dtype=bool).reshape(L, L, 1, 1)
    coefficient = np.zeros((4, L + 1, B, S), np.float32)
    for row, (stage, position) in enumerate([(0, 2), (1, 0), (2, 3)]):  # the fourth adds nothing
        coefficient[row, stage, :, position] = row + 1
    directions = AddDirection(coefficient, rng.standard_normal((4, D)).astype(np.float32))
    patched = rng.random((4, L + 1, 1, S, 1)) < 0.3
    stream = rng.standard_normal((L + 1, B, S, D)).astype(np.float32)
    return {
        "MLP": Edit(ScaleMLP(layers, np.full((L, L), 3, np.float32))),
        "directions": Edit(directions),
        "replace, then add": Edit(directions, Replace("resid", patched, stream)),
        "steering": Edit(
            Add("attn_out", layers[..., None], value=rng.standard_normal((L, 1, 1, D), np.float32))
        ),
        "z": Edit(NegateZ(np.eye(L * H, dtype=bool).reshape(L * H, L, 1, 1, H))),
    }


def by_hand(params, config, tokens, row, value):
    """The last logits of one row, written down without ``apply_at``: the definition.

    ``row`` has the arrays by row of every site, zeros where the row does not have the site;
    ``value`` has the arrays that all rows share.
    """
    everywhere, run = jnp.arange(tokens.shape[1])[None], Pass(config)

    def stream(x, stage):
        x = jnp.where(row["Replace.mask"][stage], value["Replace"][stage], x)
        return x + row["AddDirection.coefficient"][stage][..., None] * row["AddDirection.direction"]

    x = stream(params.embed[tokens], 0)
    for layer in range(L):
        w = jax.tree.map(lambda a, layer=layer: a[layer], params.blocks)
        normed = normalize(x, w.attention_norm, config)
        q = queries(normed, everywhere, w.attention, run)
        z = attend(q, *keys_values(normed, w.attention, run), everywhere, run)
        z = jnp.where(row["NegateZ.mask"][layer][..., None], -z, z)
        steered = row["Add.coefficient"][layer]
        attended = project_heads(z, w.attention)
        attended = attended + jnp.where(steered, value["Add"][layer], 0)
        middle = x if config.parallel_residual else x + attended
        out = mlp(normalize(middle, w.mlp_norm, config), w.mlp, config)[1]
        factor = row["ScaleMLP.factor"][layer]
        out = jnp.where(row["ScaleMLP.mask"][layer][..., None], out * factor, out)
        x = stream(x + attended + out, layer + 1)
    normed = normalize(x, params.final_norm, config)
    logits = normed @ (params.embed if params.unembed is None else params.unembed).T
    return logits[jnp.arange(len(tokens)), LENGTHS - 1]


def all_by_hand(params, config, tokens, edits):
    """The clean row and the rows of each batch of edits, by ``by_hand``."""
    every = edits.values()
    owned = [
        {f"{type(s).__name__}.{d.name}": a for s, d, a in e.arrays() if d.per_row} for e in every
    ]
    value = {type(s).__name__: a for e in every for s, d, a in e.arrays() if not d.per_row}
    clean = {key: np.zeros_like(a[:1]) for arrays in owned for key, a in arrays.items()}
    counts = [rows(edit) for edit in every]
    idle = [{key: a.repeat(count, 0) for key, a in clean.items()} for count in counts]
    parts = [clean, *(none | arrays for none, arrays in zip(idle, owned, strict=True))]
    together = {key: np.concatenate([part[key] for part in parts]) for key in clean}
    with jax.numpy_rank_promotion("allow"):
        call = jax.vmap(lambda row: by_hand(params, config, tokens, row, value))
        logits = np.asarray(jax.jit(call)(together))
    parts = np.split(logits[1:], np.cumsum(counts)[:-1])
    return {
        name: np.concatenate([logits[:1], part]) for name, part in zip(edits, parts, strict=True)
    }


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, V, (B, S)))


def sharded(params, config, tokens, edits):
    mesh = make_mesh(jax.devices()[:3], 1)
    call = jax.jit(lambda p: sharded_sweep(mesh, p, tokens, LENGTHS, config, edits, logits_of))
    return call(shard_params(params, mesh, config))


def runs(params, config, tokens, edits, parallel):
    """Last logits of every batch of edits, by engine; all engines share how a block is computed."""
    behind = [name for name in edits if name != "z"]  # these fork behind the clean attention
    found = {}
    for engine, names in (("wave", behind), ("wave", list(edits)), ("vmap", list(edits))):
        if parallel or names is behind:
            some = [edits[name] for name in names]
            outs = swept(params, tokens, LENGTHS, config, some, logits_of, engine=engine)
            found[engine, len(names)] = dict(zip(names, outs, strict=True))
    if parallel:  # dealing rows knows nothing of the layout
        names = ["replace, then add", "z"]
        outs = sharded(params, config, tokens, [edits[name] for name in names])
        found["sharded", len(names)] = dict(zip(names, outs, strict=True))
    return found


@pytest.mark.parametrize(
    "parallel",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["parallel", "sequential"],
)
def test_sites_at_every_point_equal_a_model_written_by_hand_in_every_engine(tokens, parallel):
    params, config = tiny(parallel, layers=L)
    edits = batches()
    hand = all_by_hand(params, config, tokens, edits)
    found = runs(params, config, tokens, edits, parallel)
    for engine, outs in found.items():
        for name, ours in outs.items():
            scale = np.abs(hand[name]).max()
            np.testing.assert_allclose(
                ours, hand[name], atol=1e-5 * scale, err_msg=f"{engine} {name}"
            )
    for name, expected in hand.items():
        moved = np.abs(expected[1:] - expected[:1]).max(axis=(1, 2))
        assert (moved[: 3 if "dir" in name else None] > 1e-3).all(), f"{name} edits nothing"


def test_sites_survive_a_scheme_that_sees_whole_examples(tokens):
    params, config = tiny(scheme=INT8_SIM, layers=L)
    some = [batches()[name] for name in ("MLP", "z")]
    wave, plain = (
        swept(params, tokens, LENGTHS, config, some, logits_of, engine=engine, scheme=INT8_SIM)
        for engine in ("wave", "vmap")
    )
    for ours, expected in zip(wave, plain, strict=True):
        far = np.abs(ours - expected).max(axis=-1) / np.abs(expected).max()
        assert (far <= 1e-5).mean() >= 0.9
        assert far.max() <= 5e-2


def test_generation_applies_sites_in_the_prompt_and_in_what_is_new(tokens):
    params, config = tiny(layers=L)
    room = S + 2
    mask = np.zeros((L, 1, room), bool)
    mask[1, 0, [2, S]] = True  # one position of the prompts, and the first new one
    edit = Edit(
        ScaleMLP(mask, np.full(L, -4, np.float32)),
        AddDirection(np.ones((L + 1, 1, 1), np.float32), np.linspace(-1, 1, D, dtype=np.float32)),
        NegateZ(np.arange(L * H).reshape(L, 1, 1, H) % 3 == 0),
    )
    lengths = jnp.full(B, S)
    text, logits = continued(params, tokens, config, room, edit)
    run = jit(lambda edit: forward(params, text, config, edit=edit).logits)
    whole, clean = run(edit), run(jax.tree.map(np.zeros_like, edit))
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5 * np.abs(whole).max())
    made = generate(params, tokens, lengths, config, steps=2, edit=edit)
    assert np.array_equal(made.tokens, text[:, S:])
    assert np.abs(clean - whole).max() > 1e-2


def test_a_point_that_the_model_does_not_have_is_refused_by_name(tokens):
    params, config = tiny(layers=L)
    planted = Edit(Nowhere(jnp.zeros((3, L, 1, 1, H), bool)))
    run = params, tokens, LENGTHS, config, [planted], logits_of
    mesh = make_mesh(jax.devices()[:2], 1)
    for call in (sweep, functools.partial(sharded_sweep, mesh)):
        for engine in ("wave", "vmap"):
            with pytest.raises(ValueError, match=r"Nowhere acts at .*'patern'.*only at resid,"):
                call(*run, engine=engine)
    one = Edit(Nowhere(jnp.zeros((L, 1, 1, H), bool)))
    with pytest.raises(ValueError, match="Nowhere acts at the point 'patern'"):
        forward(params, tokens, config, edit=one)
    with pytest.raises(ValueError, match="Nowhere acts at the point 'patern'"):
        generate(params, tokens, LENGTHS, config, steps=1, edit=one)


def test_what_rows_cannot_choose_is_refused_in_a_sweep(tokens):
    @struct.dataclass
    class Everywhere(Site):
        point: ClassVar = "mlp_out"
        kind: ClassVar = "add"
        value: jax.Array = per_row("D")

    params, config = tiny(layers=L)
    edit = Edit(Everywhere(jnp.ones((3, D))))
    for engine in ("wave", "vmap"):
        with pytest.raises(ValueError, match=r"Everywhere has no array by row that says where"):
            sweep(params, tokens, LENGTHS, config, [edit], logits_of, engine=engine)
    with pytest.raises(ValueError, match="a batch of edits needs a site"):
        sweep(params, tokens, LENGTHS, config, [Edit()], logits_of)


def test_what_is_no_site_is_refused():
    with pytest.raises(ValueError, match=r"Edit takes sites, such as HeadEdit.*not ndarray"):
        Edit(np.zeros(3))
    with pytest.raises(ValueError, match=r"acts\('B S'\): the first axes have to be L or L\+1"):
        acts("B S")


def test_sites_at_one_point_apply_in_a_stated_order():
    mask = np.zeros((L, 1, 1), bool)
    add = Add("attn_out", mask[..., None], value=np.zeros((L, 1, 1, D)))
    head = HeadEdit(np.zeros((L, 1, 1, H), bool), np.zeros((L, 1, 1, 1, 1)))
    assert [site.kind for site in Edit(add, head).sites] == ["replace", "add"]
    assert KINDS == ("weight", "replace", "splice", "scale", "add")


def test_rows_are_taken_and_axes_named_by_the_declarations_alone():
    edit = batches()["replace, then add"]
    taken = take_rows(edit, jnp.array([2, 7]))  # there is no row 7
    replaced, added = taken.sites
    assert np.array_equal(added.direction[0], edit.sites[1].direction[2])
    assert not added.coefficient[1].any()
    assert not replaced.mask[1].any()
    assert replaced.value is edit.sites[0].value
    axes = by_row(edit, 0, None)
    assert (axes.sites[0].mask, axes.sites[0].value) == (0, None)
    assert (axes.sites[1].coefficient, axes.sites[1].direction) == (0, 0)
    sizes = {"L": L, "B": B, "S": S, "H": H, "D": D + 1}
    with pytest.raises(ValueError, match=r"Replace\.value has shape \(3, 3, 7, 32\), ex"):
        check(edit, sizes, POINTS, batch=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": jnp.array([[1, 999_999]])}, "tokens are 1 … 999999, expected 0 … "),
        ({"tokens": jnp.array([[-1, 2]])}, "tokens are -1 … 2"),
        ({"lengths": jnp.array([3])}, "lengths are 3 … 3, expected 1 … 2"),
        ({"lengths": jnp.array([0])}, "lengths are 0 … 0"),
    ],
)
def test_prompts_that_jax_would_clamp_are_refused(given, said):
    """Indexing beyond an array's end gives its last row in JAX, and no error."""
    config = ModelConfig(11, 1, 1, 8, 16, rotary_dims=4)
    params = init_params(jax.random.key(0), config)
    whole = {"tokens": jnp.array([[1, 2]]), "lengths": jnp.array([2])} | given
    tokens, lengths = whole["tokens"], whole["lengths"]
    with pytest.raises(ValueError, match=re.escape(said)):
        forward(params, tokens, config, lengths=lengths)
    with pytest.raises(ValueError, match=re.escape(said)):
        sweep(params, tokens, lengths, config, [zero_ablation(1, 1)], lambda logits: logits)

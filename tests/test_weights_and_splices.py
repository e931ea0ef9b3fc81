"""Single weights and dictionaries: what PyTorch computes with the weight or the value changed."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import ENGINES, LENGTHS
from family_checkpoints import made_once, prompts, torch_and_transformers
from torch_points import MODELS, logits, spliced, weighed, write

from jaxalign.edits import MATRIX_NAMES, Edit, HeadEdit, Replace, Scale, Splice, WeightEdit
from jaxalign.edits.points import BEHIND_ATTENTION
from jaxalign.edits.weights import _AXES as AXES
from jaxalign.model import cast, forward
from jaxalign.model.generate import generate
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, jit
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor
from testing.edits import continued, logits_of, swept, tiny

ROWS, FEATURES = 2, 24


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' model and ours, made once."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return made_once(tmp_path_factory, write)


def matrices_of(config):
    return [name for name in MATRIX_NAMES if name != "gate" or config.gated]


def weights_of(matrix, config):
    """Three coordinates a row: the first row in one layer, the second in all, one of them twice in
    an output."""
    rng = np.random.default_rng([*map(ord, matrix)])
    sizes = {"D": config.hidden_size, "F": config.intermediate_size}
    sizes |= {"Hh": config.attention_width, "Kh": config.num_kv_heads * config.head_size}
    outputs, inputs = (sizes[axis] for axis in AXES[matrix])
    row, column = (rng.integers(0, size, (ROWS, 3)) for size in (outputs, inputs))
    row[:, 1], column[:, 1] = row[:, 0], (column[:, 0] + 1) % inputs
    by = rng.normal(0, 20, (ROWS, config.num_layers, 1, 3)).astype(np.float32)
    by[0, np.arange(config.num_layers) != 1] = 0
    by[1, 0, 0, 2] = 0
    return WeightEdit(matrix, by, row=row, column=column)


def weighed_row(model, site, row):
    """The contexts in which PyTorch's model has a row's weights."""
    for layer, by in enumerate(site.by[row, :, 0]):
        places = zip(site.row[row].tolist(), site.column[row].tolist(), strict=True)
        scaled = {place: 1 + float(b) for place, b in zip(places, by, strict=True)}
        yield weighed(model, site.matrix, layer, scaled)


def encode(arrays, x):
    return jax.nn.relu(x @ arrays["into"] + arrays["bias"][None, None])


def decode(arrays, features, x):
    return features @ arrays["out"]


def dictionary_of(width, *layers):
    rng = np.random.default_rng(width)

    def draw(*shape):
        return (rng.standard_normal((*layers, *shape)) / 4).astype(np.float32)

    return {"into": draw(width, FEATURES), "bias": draw(FEATURES), "out": draw(FEATURES, width)}


def splices_of(config):
    """Splices of each kind: batches of two rows."""
    rng = np.random.default_rng(0)
    L, D, heads = config.num_layers, config.hidden_size, config.attention_width
    feature = np.array([[1, 5], [7, 3]])
    by = np.array([[3, -1], [-1, 8]], np.float32)

    def where(*steps):
        mask = rng.random((ROWS, *steps, 1, 11)) < 0.5
        mask[..., [3, 6, 10]] = True  # the last positions
        return mask

    chosen = {"feature": feature, "by": by}
    one = np.arange(L)[None, :, None, None] == 1
    return {
        "a dictionary of each step": Splice(
            "resid", where(L + 1), dictionary_of(D, L + 1), encode, decode, **chosen, stacked=True
        ),
        "a transcoder, without its error": Splice(
            "mlp_out", where(L), dictionary_of(D, L), encode, decode, **chosen, reads="mlp_in",
            keep_error=False, stacked=True,
        ),
        "features of heads set to a value": Splice(
            "z", where(L) & one, dictionary_of(heads), encode, decode, **chosen,
            to=rng.standard_normal((ROWS, 2)).astype(np.float32),
        ),
        "a reconstruction": Splice(
            "final_norm", where(), dictionary_of(D), encode, decode, keep_error=False
        ),
    }  # fmt: skip


def splice_value(site, row, step, x, read):
    """What stands there in a row: the definition, in NumPy."""
    arrays = {k: a[step] if site.stacked else a for k, a in site.dictionary.items()}
    f = np.maximum(read @ arrays["into"] + arrays["bias"], 0)
    g = f.copy()
    if site.feature is not None:
        ids, by = site.feature[row], site.by[row]
        g[..., ids] = f[..., ids] * (1 + by) if site.to is None else 0
        if site.to is not None:
            g[..., ids] = f[..., ids] + by * (site.to[row] - f[..., ids])
    y = g @ arrays["out"]
    y = x + y - f @ arrays["out"] if site.keep_error else y
    mask = site.mask[row] if site.point == "final_norm" else site.mask[row, step]
    return np.where(mask[..., None], y, x).astype(np.float32)


def spliced_row(model, site, row):
    """The contexts in which PyTorch's model has a row's values."""
    torch, _ = torch_and_transformers()
    steps = 1 if site.point == "final_norm" else site.mask.shape[1]
    width = jax.tree.leaves(site.dictionary)[1].shape[-2]
    for step in range(steps):

        def change(x, read, step=step):
            value = splice_value(site, row, step, x.numpy(), read.numpy())
            return torch.from_numpy(value)

        reads = site.reads or site.point
        yield spliced(model, site.point, step, width, reads, change)


def expected_logits(model, site, contexts, tokens):
    """Last logits of the clean run and of every row, ``[1 + M, B, V]``, by PyTorch."""
    found = [logits(model, tokens)]
    for row in range(ROWS):
        with contextlib.ExitStack() as stack:
            for context in contexts(model, site, row):
                stack.enter_context(context)
            found.append(logits(model, tokens))
    return np.stack(found)[:, np.arange(len(tokens)), np.asarray(LENGTHS) - 1]


def compare(models, variant, engines):
    model, params, config = models(variant)
    tokens = prompts()
    weights = {name: weights_of(name, config) for name in matrices_of(config)}
    sites = weights | splices_of(config)
    expected = {
        name: expected_logits(
            model, site, weighed_row if name in weights else spliced_row, tokens
        )
        for name, site in sites.items()
    }  # fmt: skip
    behind = [name for name, site in sites.items() if site.point in BEHIND_ATTENTION]
    for engine in engines:
        for names in [[*sites], *([behind] if engine == "wave" else [])]:
            edits = [Edit(sites[name]) for name in names]
            found = ENGINES[engine](
                params, jnp.asarray(tokens), LENGTHS, config, edits, logits_of
            )  # fmt: skip
            for name, ours in zip(names, found, strict=True):
                far = np.abs(ours - expected[name]).max() / np.abs(expected[name]).max()
                assert far <= 1e-5, (engine, name, far)
                moved = np.abs(expected[name][1:] - expected[name][0]).max(axis=(1, 2))
                assert (moved > 1e-4 * np.abs(expected[name]).max()).all(), name


@pytest.mark.parity
@pytest.mark.parametrize("variant", ["gemma2"])
def test_weights_and_splices_are_what_pytorch_computes(models, variant):
    compare(models, variant, ["wave"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", MODELS)
def test_every_engine_computes_what_pytorch_does(models, variant):
    compare(models, variant, ENGINES)


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 96, (3, 11)))


def sites_of(config):
    return {name: weights_of(name, config) for name in matrices_of(config)} | splices_of(config)


@pytest.mark.parametrize(
    "parallel",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["parallel", "sequential"],
)
def test_a_row_may_have_all_of_them(tokens, parallel):
    params, config = tiny(parallel, layers=2)
    edit = Edit(*sites_of(config).values())
    wave, plain = (
        swept(params, tokens, LENGTHS, config, [edit], logits_of, engine=engine)[0]
        for engine in ("wave", "vmap")
    )
    np.testing.assert_allclose(wave, plain, atol=1e-5 * np.abs(plain).max())
    assert np.abs(plain[1:] - plain[:1]).max(axis=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("name", ["down", "a transcoder, without its error"])
def test_what_an_mlp_reads_is_there_where_nothing_else_is_edited(tokens, name):
    """A parallel block's clean MLP is known where a run starts; what it has read is not."""
    params, config = tiny()
    edit = Edit(sites_of(config)[name])
    wave, plain = (
        swept(params, tokens, LENGTHS, config, [edit], logits_of, engine=engine)[0]
        for engine in ("wave", "vmap")
    )
    np.testing.assert_allclose(wave, plain, atol=1e-5 * np.abs(plain).max())


def one_row(site, row):
    """A row of a batch, as ``forward`` takes it."""
    return site.map_arrays(lambda declared, a: a[row] if declared.per_row else a)


@pytest.mark.parametrize("scheme", [F32, F16, BF16, INT8_SIM], ids=lambda s: s.name)
def test_what_changes_nothing_keeps_every_bit(tokens, scheme):
    params, config = tiny(False, scheme, layers=2)
    run = jit(lambda edit: forward(params, tokens, config, scheme=scheme, edit=edit).logits)
    clean = run(None)
    acting = [one_row(site, 1) for site in sites_of(config).values()]
    off = [site.map_arrays(lambda d, a: np.zeros_like(a) if d.acts else a) for site in acting]
    assert np.array_equal(run(Edit(*off)), clean)
    # Dictionaries that are in place, with their errors, and no feature changed.
    whole = one_row(splices_of(config)["a dictionary of each step"], 0)
    idle = whole.replace(by=np.zeros(2, np.float32)), whole.replace(feature=None, by=None)
    assert np.array_equal(run(Edit(*idle)), clean)


def test_generation_has_the_weights_and_the_dictionary_in_every_step():
    params, config = tiny(parallel=False, layers=2)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 5)))
    room = 8
    weights = [weights_of(matrix, config) for matrix in ("key", "down")]
    splices = [site.replace(mask=site.mask[..., :room]) for site in splices_of(config).values()]
    edit = Edit(*(one_row(site, 1) for site in (*weights, *splices)))
    text, found = continued(params, tokens, config, room, edit)
    every = jit(lambda edit: forward(params, text, config, edit=edit).logits)(edit)
    np.testing.assert_allclose(found, every[:, -1], atol=1e-5 * np.abs(every).max())
    made = generate(params, tokens, jnp.array([5, 5]), config, steps=room - 5, edit=edit)
    assert np.array_equal(made.tokens, text[:, 5:])


def test_packed_weights_count_as_what_they_stand_for(tokens):
    """Removing weights of a packed matrix is unpacking it and setting them to zero."""
    params, config = tiny(False)
    packed = cast(params, "int4-g32")
    down = packed.blocks.mlp.down
    assert isinstance(down, QTensor)
    matrix = np.array(jax.vmap(dense)(down))
    by = np.zeros((config.num_layers, 1, 2), np.float32)
    by[1] = -1
    edit = Edit(WeightEdit("down", by, row=np.array([3, 4]), column=np.array([5, 6])))
    matrix[1, [5, 6], [3, 4]] = 0
    mlp = packed.blocks.mlp.replace(down=jnp.asarray(matrix))
    unpacked = packed.replace(blocks=packed.blocks.replace(mlp=mlp))
    run = jit(lambda p, e: forward(p, tokens, config, scheme="int4-g32", edit=e).logits)
    np.testing.assert_allclose(run(packed, edit), run(unpacked, None), atol=1e-4)
    assert np.abs(run(packed, edit) - run(packed, None)).max() > 1e-3


def test_a_value_to_set_a_feature_to_is_enough(tokens):
    params, config = tiny()
    site = splices_of(config)["features of heads set to a value"]
    whole, short = (Edit(one_row(site.replace(by=by), 1)) for by in (np.ones((2, 2)), None))
    run = jit(lambda edit: forward(params, tokens, config, edit=edit).logits)
    assert np.array_equal(run(short), run(whole))
    assert np.abs(run(short) - run(None)).max() > 1e-3


def test_batches_with_a_dictionary_each_keep_them_apart(tokens):
    params, config = tiny(False)
    site = splices_of(config)["a dictionary of each step"]
    other = site.replace(dictionary=jax.tree.map(lambda a: 2 * a, site.dictionary))
    both = swept(params, tokens, LENGTHS, config, [Edit(site), Edit(other)], logits_of)
    for each, found in zip((site, other), both, strict=True):
        [alone] = swept(
            params, tokens, LENGTHS, config, [Edit(each)], logits_of, engine="vmap"
        )  # fmt: skip
        np.testing.assert_allclose(found, alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("name", ["a dictionary of each step", "a transcoder, without its error"])
def test_features_are_read_off_what_a_run_captures(tokens, name):
    params, config = tiny(False)
    site = splices_of(config)[name]
    point = site.reads or site.point
    seen = forward(params, tokens, config, capture=(point,)).activations
    found = site.features(seen)
    assert found.shape == (config.num_layers, *tokens.shape, FEATURES)
    step = 2 if point == "resid" else 1
    arrays = {key: a[step] for key, a in site.dictionary.items()}
    np.testing.assert_allclose(found[1], encode(arrays, seen[point][1]), atol=1e-5)


def coordinates(row, column, matrix="down"):
    by = np.ones((3, 1, 1), np.float32)
    return WeightEdit(matrix, by, row=np.array([row]), column=np.array([column]))


def dictionary(point="resid", width=32, mask=(4, 1, 1), **how):
    return Splice(point, np.ones(mask, bool), dictionary_of(width), encode, decode, **how)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (lambda: coordinates(32, 0), "WeightEdit.row is 32, but down has rows 0 … 31"),
        (lambda: coordinates(0, -1), "WeightEdit.column is -1, but down has columns 0 … 63"),
        (lambda: coordinates(0, 0, "gate"), "which the model does not have: its MLP has no gate m"),
        (lambda: coordinates(0, 0, "W_down"), "WeightEdit.matrix is 'W_down', .* use query, key,"),
        (
            lambda: coordinates(0, 0).replace(row=np.array([0, 1])),
            r"WeightEdit.by has shape \(3, 1, 1\), expected \[3, 2|1, 2\]",
        ),
        (lambda: dictionary(width=31), "Splice at resid: encode does not take width 32 of the mo"),
        (
            lambda: dictionary("mlp_hidden", mask=(3, 1, 1), reads="mlp_in"),
            "Splice at mlp_hidden reads 'mlp_in'; beside .* reads only mlp_in at mlp_out",
        ),
        (
            lambda: dictionary().replace(decode=lambda arrays, f, x: f),
            "Splice at resid: decode makes width 24, but the model has 32 there",
        ),
        (lambda: dictionary("pattern", mask=(3, 1, 1)), "Splice at pattern: there positions have "),
        (
            lambda: dictionary(feature=np.array([24]), by=np.ones(1)),
            "Splice.feature is 24, but the dictionary has 0 … 23",
        ),
        (lambda: dictionary(feature=np.array([2])), "by feature and by, and by is not given"),
        (lambda: dictionary(to=np.ones(1)), "by feature and by, and feature is not given"),
        (lambda: coordinates(0.5, 0), r"WeightEdit.row is float64\[1\], expected integers \[E\]"),
        (lambda: coordinates(True, 0), r"WeightEdit.row is bool\[1\], expected integers"),
        (
            lambda: coordinates(0, 0).replace(column=np.int32(2)),
            r"WeightEdit.column is int32\[\], expected integers \[E\]",
        ),
        (
            lambda: coordinates(0, 0).replace(by=np.ones((3, 1, 1), complex)),
            "WeightEdit.by holds complex128, expected real numbers: bool, int or float",
        ),
        (
            lambda: dictionary(feature=np.array([2.0]), by=np.ones(1)),
            r"Splice.feature is float64\[1\], expected integers \[E\]",
        ),
        (lambda: Scale("mlp_out", np.full((3, 1, 1, 1), "a")), "Scale.by holds <U1, expected real"),
        (
            lambda: Replace("mlp_out", np.ones((3, 1, 1, 1), bool), np.full((3, 1, 1, 1), None)),
            "Replace.value holds object, expected real",
        ),
        (
            lambda: Replace("mlp_out", np.full((3, 1, 1, 1), 0.5), np.ones((3, 1, 1, 1))),
            "Replace.mask holds 0.5, expected 0 or 1: it chooses",
        ),
        (
            lambda: Replace("mlp_out", np.full((3, 1, 1, 1), np.nan), np.ones((3, 1, 1, 1))),
            "Replace.mask holds nan, expected 0 or 1",
        ),
        (
            lambda: Replace("mlp_out", *[np.ones((3, 1, 1, 1), bool)] * 2, own=np.ones((1, 1, 1))),
            "Replace takes value or own, and both are given",
        ),
        (
            lambda: dictionary().replace(dictionary=dictionary_of(32, 3), stacked=True),
            r"Splice.dictionary has shape \(3,\), expected \[4\]",
        ),
        (lambda: dictionary(mask=(4, 1, 6)), r"Splice.mask has shape \(4, 1, 6\), expected \[4, 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(site, said):
    params, config = tiny()
    with pytest.raises(ValueError, match=said) as refused:
        forward(params, jnp.ones((2, 5), jnp.int32), config, edit=Edit(site()))
    assert "\n" not in str(refused.value)


def test_a_head_is_not_replaced_where_its_weights_are_edited():
    """It would take away what the stored weights write."""
    params, config = tiny()
    head = HeadEdit(np.ones((3, 1, 1, 4), bool), np.zeros((3, 1, 1, 1, 1)))
    edit = Edit(coordinates(0, 0, "out"), head)
    with pytest.raises(ValueError, match="WeightEdit and HeadEdit of one edit act at attn_out"):
        forward(params, jnp.ones((2, 5), jnp.int32), config, edit=edit)

"""Dictionaries: what each kind computes, and the layouts that they are published in."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.checkpoints.dictionaries import (
    LAYOUTS,
    DictionaryFacts,
    TrainedDictionary,
    gemma_scope,
    open_dictionary,
    save_dictionary,
)
from jaxalign.checkpoints.dictionaries.facts import hook_of_place, place_of_hook
from jaxalign.dictionaries import (
    KINDS,
    Dictionary,
    check_dictionary,
    decode,
    dictionary,
    encode,
    encode_decode,
    reconstruct,
)
from jaxalign.dictionaries.dictionary import SCALINGS, top_k
from jaxalign.errors import InputError

D, F, N, K = 12, 40, 30, 5


def random_dictionary(kind="relu", seed=0, width=D, **more):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    own = {
        "topk": {"k": K},
        "jumprelu": {"threshold": np.abs(draw(F))},
        "gated": {"gate_bias": draw(F), "log_magnitude": 0.3 * draw(F)},
        "sigmoid": {"gate": draw(width, F) / 3, "gate_bias": draw(F)},
    }.get(kind, {})
    arrays = {
        "encoder": draw(width, F) / 3,
        "decoder": draw(F, width) / 4,
        "encoder_bias": 0.2 * draw(F),
        "decoder_bias": draw(width),
    }
    return Dictionary(**arrays, **{"kind": kind, **own, **more})


def activations(seed=1):
    x = 2 * np.random.default_rng(seed).standard_normal((N, D)) + 0.5
    return jnp.asarray(x, jnp.float32)


def by_hand(d, x):
    """Features and reconstruction in f64, by the definitions."""
    a = {name: np.asarray(getattr(d, name), np.float64) for name in
         ("encoder", "decoder", "encoder_bias", "decoder_bias")}  # fmt: skip
    x = np.asarray(x, np.float64)
    mean, size = np.zeros((len(x), 1)), np.ones((len(x), 1))
    c = x
    if d.scaling == "layer_norm":
        mean, size = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        c = (x - mean) / (size + 1e-5)
    if d.scaling == "unit_rms":
        size = np.sqrt((x**2).mean(1, keepdims=True))
        c = x / size
    c = c - a["decoder_bias"] if d.centered else c
    p = c @ a["encoder"] + a["encoder_bias"]
    if d.kind == "topk":
        f = np.zeros_like(p)
        for row, values in enumerate(p):
            best = sorted(range(F), key=lambda i, values=values: -values[i])[: d.k]
            f[row, best] = np.maximum(values[best], 0)
    elif d.kind == "jumprelu":
        f = p * (p > np.asarray(d.threshold))
    elif d.kind == "gated":
        gate = c @ a["encoder"] + np.asarray(d.gate_bias)
        size_path = c @ (a["encoder"] * np.exp(np.asarray(d.log_magnitude))) + a["encoder_bias"]
        f = (gate > 0) * np.maximum(size_path, 0)
    elif d.kind == "sigmoid":
        gate = c @ np.asarray(d.gate, np.float64) + np.asarray(d.gate_bias)
        f = np.maximum(p, 0) / (1 + np.exp(-gate))
    else:
        f = np.maximum(p, 0)
    return f, (f @ a["decoder"] + a["decoder_bias"]) * size + mean


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_computes_its_definition(kind, centered, scaling):
    d, x = random_dictionary(kind, centered=centered, scaling=scaling), activations()
    f, y = by_hand(d, x)
    np.testing.assert_allclose(jax.jit(encode)(d, x), f, atol=1e-5)
    np.testing.assert_allclose(jax.jit(reconstruct)(d, x), y, atol=1e-5 * np.abs(y).max())
    assert 0 < (f > 0).mean() < 0.8
    if kind == "topk":
        assert (f > 0).sum(axis=1).max() <= K


def test_a_threshold_is_strict_and_a_tie_among_the_largest_goes_to_the_first():
    eye = np.eye(3, dtype=np.float32)
    none = np.zeros(3, np.float32)
    jump = Dictionary(eye, eye, none, none, threshold=np.float32([1, 1, 0]), kind="jumprelu")
    found = encode(jump, jnp.float32([[1, 1.5, 0]]))
    assert found.tolist() == [[0, 1.5, 0]]
    top = Dictionary(eye, eye, none, none, kind="topk", k=1)
    assert encode(top, jnp.float32([[2, 2, 1]])).tolist() == [[2, 0, 0]]
    assert encode(top, jnp.float32([[-2, -3, -1]])).tolist() == [[0, 0, 0]]


def test_the_largest_of_each_row_have_the_bits_of_a_sort():
    rng = np.random.default_rng(0)
    tied = rng.integers(-3, 4, (40, 33)).astype(np.float32)
    rows = np.concatenate([tied, np.zeros((2, 33)), -np.zeros((2, 33)), np.full((2, 33), 1.5)])
    rows = np.concatenate([rows, np.where(rows == 1, -0.0, rows)]).astype(np.float32)
    for k in (1, 4, 32, 33):
        order = np.argsort(-rows, axis=1, kind="stable")[:, :k]  # the first of equal ones first
        expected = np.zeros_like(rows)
        np.put_along_axis(expected, order, np.take_along_axis(rows, order, 1).clip(0), 1)
        found = jax.jit(top_k, static_argnums=1)(rows, k)
        assert np.array_equal(found, expected)
        assert not np.signbit(found).any()
        slope = jax.grad(lambda p, k=k: (top_k(p, k) * 2).sum())(jnp.asarray(rows))
        assert np.array_equal(slope, 2 * (expected > 0))
        assert np.array_equal(jax.vmap(lambda p, k=k: top_k(p, k))(rows), expected)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_few_features_are_decoded_by_their_rows_as_by_all(scaling, monkeypatch):
    monkeypatch.setattr(dictionary, "FEW", F // K)
    d = random_dictionary("topk", scaling=scaling)
    x = activations().reshape(3, 10, D)
    f, y = jax.jit(encode_decode)(d, x)
    assert np.array_equal(f, jax.jit(encode)(d, x))
    _, by_hand_y = by_hand(d, x.reshape(-1, D))
    np.testing.assert_allclose(y.reshape(-1, D), by_hand_y, atol=1e-5 * np.abs(by_hand_y).max())
    assert np.array_equal(jax.jit(reconstruct)(d, x), y)

    def slopes(stand_for):
        return jax.grad(lambda d, x: (stand_for(d, x) ** 2).sum(), argnums=(0, 1))(d, x)

    def by_all(d, x):
        return decode(d, encode(d, x), x)

    assert "scan" in str(jax.make_jaxpr(reconstruct)(d, x))
    assert "scan" not in str(jax.make_jaxpr(by_all)(d, x))
    few, every = slopes(reconstruct), slopes(by_all)
    for one, other in zip(*map(jax.tree.leaves, (few, every)), strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_a_transcoder_with_a_skip_adds_a_linear_map_of_its_input():
    rng = np.random.default_rng(3)
    skip = rng.standard_normal((D, D)).astype(np.float32)
    d, x = random_dictionary(centered=False), activations()
    f = encode(d, x)
    plain, more = decode(d, f, x), decode(d.replace(skip=skip), f, x)
    np.testing.assert_allclose(more - plain, x @ skip, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "spline"}, "is of kind 'spline'. use relu, topk"),
        ({"scaling": "by eye"}, "scales by 'by eye'"),
        ({"threshold": np.ones(F)}, "is relu and has a threshold"),
        ({"kind": "jumprelu"}, "is jumprelu and has no threshold"),
        ({"kind": "jumprelu", "threshold": -np.ones(F)}, "has 40 thresholds below 0"),
        ({"kind": "jumprelu", "threshold": np.full(F, np.nan)}, "threshold has 40 values that are"),
        ({"decoder": np.ones((F, D + 1))}, r"decoder_bias is \[12\], expected \[13\]"),
        ({"encoder_bias": np.ones(D)}, r"encoder_bias is \[12\], expected \[40\]"),
        ({"kind": "topk"}, "is topk and k is None"),
        ({"kind": "topk", "k": F + 1}, "has k 41, expected 1 … 40"),
        ({"kind": "topk", "k": 0}, "has k 0, expected 1 … 40"),
        ({"k": 3}, "is relu and k is 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        check_dictionary(random_dictionary().replace(**change))


# Files.

FACTS = DictionaryFacts(
    layout="sae_lens", model="tiny", point="resid", step=4, prepend_bos=False, context_size=128
)


def leaves(d):
    return {
        name: np.asarray(value)
        for name in d.__dataclass_fields__
        if hasattr(value := getattr(d, name), "shape")
    }


def statics(d):
    return d.kind, d.k, d.centered, d.scaling


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_from_saelens_layout_to_the_bit(tmp_path, kind, scaling):
    d = random_dictionary(kind, scaling=scaling, centered=kind != "relu")
    training = {"steps": 10, "seed": 1}
    facts = replace(FACTS, weights_sha256="ab" * 32, training=training)
    save_dictionary(TrainedDictionary(dictionary=d, facts=facts), tmp_path / "sae")
    found = open_dictionary(tmp_path / "sae")
    assert statics(found.dictionary) == statics(d)
    assert leaves(found.dictionary).keys() == leaves(d).keys()
    for name, value in leaves(d).items():
        assert np.array_equal(leaves(found.dictionary)[name], value), name
    assert len(found.facts.sha256) == 64
    said = replace(found.facts, source="", sha256="", notes=())
    assert said == facts


def test_every_layout_comes_back(tmp_path):
    plain = {"centered": False}
    one = np.full(F, 0.25, np.float32)
    kinds = {
        "sparsify": (random_dictionary("topk"), "layers.3"),
        "gemma_scope": (random_dictionary("jumprelu", **plain), "layer_3/width/resid_post"),
        "llama_scope": (random_dictionary("jumprelu", **plain, threshold=one), "any"),
        "sae_lens": (random_dictionary("gated"), "any"),
    }
    assert kinds.keys() == LAYOUTS.keys()
    for layout, (d, name) in kinds.items():
        folder = tmp_path / layout / name
        save_dictionary(TrainedDictionary(dictionary=d, facts=FACTS), folder, layout)
        found = open_dictionary(folder)
        assert (found.facts.layout, found.facts.site) == (layout, "resid after L3")
        assert statics(found.dictionary) == statics(d)
        for key, value in leaves(d).items():
            np.testing.assert_allclose(leaves(found.dictionary)[key], value, rtol=1e-6)


def test_gemma_scope_2_has_small_letters_and_a_skip(tmp_path):
    skip = np.random.default_rng(5).standard_normal((D, D)).astype(np.float32)
    d = random_dictionary("jumprelu", centered=False, skip=skip)
    folder = tmp_path / "gemma-scope-2-270m-pt" / "transcoder" / "layer_7_width_16k_l0_small_affine"
    gemma_scope.write(TrainedDictionary(dictionary=d, facts=FACTS), folder, version=2)
    with pytest.raises(InputError, match="the settings say width 16384, and the encoder has 40"):
        open_dictionary(folder)
    folder = folder.rename(folder.parent / "layer_7_l0_small_affine")
    found = open_dictionary(folder)
    assert np.array_equal(found.dictionary.skip, skip)
    facts = found.facts
    assert (facts.model, facts.site, facts.reads) == (
        "google/gemma-3-270m-pt",
        "mlp_out L7",
        "mlp_in",
    )
    assert facts.behind_post_norm
    assert facts.prepend_bos


def test_places_have_the_names_that_others_give_them():
    for hook, place in {
        "blocks.3.hook_resid_post": ("resid", 4),
        "blocks.3.hook_resid_pre": ("resid", 3),
        "hook_embed": ("resid", 0),
        "blocks.0.attn.hook_z": ("z", 0),
        "blocks.5.hook_mlp_out": ("mlp_out", 5),
        "ln_final.hook_normalized": ("final_norm", None),
    }.items():
        assert place_of_hook(hook, "f") == place
        if "pre" not in hook:
            assert hook_of_place(*place) == hook
    with pytest.raises(InputError, match=r'names the hook "blocks.1.hook_magic"'):
        place_of_hook("blocks.1.hook_magic", "cfg.json")


def written(folder, kind="relu", **facts):
    d = random_dictionary(kind)
    save_dictionary(TrainedDictionary(dictionary=d, facts=replace(FACTS, **facts)), folder)
    return d


def edit(path, **settings):
    content = json.loads(path.read_text())
    for name, value in settings.items():
        if value is None:
            content.pop(name)
        else:
            content[name] = value
    path.write_text(json.dumps(content))


def test_an_older_folder_of_saelens_is_read(tmp_path):
    d = written(tmp_path, "topk")
    old = {
        "d_in": D, "d_sae": F, "dtype": "torch.float32", "hook_point": "blocks.2.hook_mlp_out",
        "model_name": "pythia-70m-deduped", "prepend_bos": True, "context_size": 64,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
        "normalize_activations": False, "some_training_setting": 3,
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    found = open_dictionary(tmp_path)
    assert statics(found.dictionary) == statics(d)
    facts = found.facts
    assert (facts.model, facts.site) == ("pythia-70m-deduped", "mlp_out L2")
    assert (facts.prepend_bos, facts.context_size) == (True, 64)


def test_features_counted_by_what_they_write_are_folded_into_the_weights(tmp_path):
    d = written(tmp_path, "topk")
    edit(tmp_path / "cfg.json", rescale_acts_by_decoder_norm=True)
    folded, x = open_dictionary(tmp_path).dictionary, activations()
    norms, x = np.linalg.norm(d.decoder, axis=1), np.asarray(x)
    pre = ((x - d.decoder_bias) @ d.encoder + d.encoder_bias) * norms
    kth = np.sort(pre, axis=1)[:, -K, None]
    f = np.where(pre >= kth, np.maximum(pre, 0), 0)
    x = jnp.asarray(x)
    np.testing.assert_allclose(encode(folded, x), f, atol=1e-5)
    np.testing.assert_allclose(
        reconstruct(folded, x), f / norms @ d.decoder + d.decoder_bias, atol=1e-4
    )


def test_llama_scope_scales_by_the_average_norm_and_compares_what_features_write(tmp_path):
    d = random_dictionary("jumprelu", centered=False, threshold=np.full(F, 0.5, np.float32))
    save_dictionary(TrainedDictionary(dictionary=d, facts=FACTS), tmp_path, "llama_scope")
    norms = {"in": 7.0, "out": 7.0}
    edit(tmp_path / "hyperparams.json", norm_activation="dataset-wise",
         dataset_average_activation_norm=norms, sparsity_include_decoder_norm=True)  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "final.safetensors").rename(tmp_path / "checkpoints" / "final.safetensors")
    given, scale = activations(), D**0.5 / 7.0
    x = np.asarray(given)
    pre = scale * x @ d.encoder + d.encoder_bias
    f = pre * (pre * np.linalg.norm(d.decoder, axis=1) > 0.5)
    y = (f @ d.decoder + d.decoder_bias) / scale
    for where in (tmp_path, tmp_path / "checkpoints" / "final.safetensors"):
        found = open_dictionary(where)
        np.testing.assert_allclose(encode(found.dictionary, given), f, atol=1e-5)
        np.testing.assert_allclose(reconstruct(found.dictionary, given), y, atol=1e-4)
        assert found.facts.site == "resid after L3"


def test_sparsify_takes_no_bias_from_a_transcoders_input(tmp_path):
    d = random_dictionary("topk", centered=False)
    facts = replace(FACTS, point="mlp_out", step=2, reads="mlp_in")
    save_dictionary(
        TrainedDictionary(dictionary=d, facts=facts), tmp_path / "layers.2.mlp", "sparsify"
    )
    tensors = load_file(tmp_path / "layers.2.mlp" / "sae.safetensors")
    x = np.asarray(activations())
    pre = x @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    kth = np.sort(pre, axis=1)[:, -K, None]
    y = np.where(pre >= kth, np.maximum(pre, 0), 0) @ tensors["W_dec"] + tensors["b_dec"]
    found = open_dictionary(tmp_path / "layers.2.mlp")
    np.testing.assert_allclose(reconstruct(found.dictionary, activations()), y, atol=1e-4)
    assert (found.facts.site, found.facts.reads) == ("mlp_out L2", "mlp_in")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"d_sae": 41}, "the settings say d_sae 41, and the encoder has 40"),
        ({"d_in": 40}, "the settings say d_in 40, and the encoder has 12"),
        ({"d_in": None}, "has no 'd_in'"),
        ({"d_in": "12"}, 'd_in is "12", expected a whole number'),
        ({"architecture": "temporal"}, 'architecture is "temporal", which is not known'),
        ({"architecture": None}, "has no 'architecture'"),
        ({"dtype": None}, "has no 'dtype'"),
        ({"normalize_activations": "by_eye"}, 'normalize_activations is "by_eye"'),
        ({"architecture": "topk"}, "has no 'k'"),
        ({"architecture": "jumprelu"}, "has no tensor 'threshold'"),
        ({"architecture": "gated"}, "has no tensor 'b_gate', 'b_mag', 'r_mag'"),
        ({"metadata": {"sae_lens_version": "six"}}, 'sae_lens_version is "six"'),
        ({"metadata": {"sae_lens_version": "6.1", "hook_name": "h.3"}}, 'names the hook "h.3"'),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1, expected true or false"),
        (
            {"metadata": {"sae_lens_version": "6.1", "jaxalign": {"training": "x"}}},
            'training is "x", expected an object',
        ),
        (
            {"metadata": {"sae_lens_version": "6.1", "jaxalign": {"weights_sha256": 3}}},
            "weights_sha256 is 3, expected a text",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, said):
    written(tmp_path)
    edit(tmp_path / "cfg.json", **settings)
    with pytest.raises(InputError, match=said):
        open_dictionary(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        open_dictionary(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is no dictionary in a layout .* it has nothing"):
        open_dictionary(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"")
    for where in (tmp_path, tmp_path / "ae.pt"):
        with pytest.raises(InputError, match=r"ae\.pt is a pickle, .* convert it on a machine"):
            open_dictionary(where)
    known = tmp_path / "pythia-70m-deduped" / "ae.pt"
    with pytest.raises(InputError, match="use its publication as safetensors, ctigges"):
        open_dictionary(known)
    written(tmp_path / "set" / "layers.1")
    with pytest.raises(InputError, match=r"holds 1 dictionaries and is none itself. name one of"):
        open_dictionary(tmp_path / "set")
    path = tmp_path / "set" / "layers.1" / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"W_extra": tensors["b_enc"]}, path)
    with pytest.raises(InputError, match="has a tensor 'W_extra', which a dictionary of this kind"):
        open_dictionary(path)
    save_file({name: value for name, value in tensors.items() if name != "b_dec"}, path)
    with pytest.raises(InputError, match="has no tensor 'b_dec'"):
        open_dictionary(path)
    save_file(tensors | {"b_dec": tensors["b_dec"] * np.nan}, path)
    with pytest.raises(InputError, match="NaN or infinite"):
        open_dictionary(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged or cut short"):
        open_dictionary(path)
    archive = tmp_path / "layer_1" / "params.npz"
    archive.parent.mkdir()
    archive.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"params\.npz is damaged or no npz archive"):
        open_dictionary(archive)
    np.savez(archive, W_enc=np.array([{}], object))
    with pytest.raises(InputError, match=r"params\.npz is damaged or no npz archive"):
        open_dictionary(archive)


def test_what_the_files_do_not_say_is_given_and_what_they_say_is_not_said_otherwise(tmp_path):
    written(tmp_path / "a", point=None, step=None, model=None, prepend_bos=None)
    found = open_dictionary(tmp_path / "a", point="mlp_out", step=2, model="m", prepend_bos=True)
    facts = found.facts
    assert (facts.site, facts.model, facts.prepend_bos) == ("mlp_out L2", "m", True)
    with pytest.raises(InputError, match='there is no point "pattern"'):
        open_dictionary(tmp_path / "a", point="pattern")
    written(tmp_path / "b")
    with pytest.raises(InputError, match=r"says point 'resid', and 'mlp_out' was given. leave it"):
        open_dictionary(tmp_path / "b", point="mlp_out")


def test_llama_scopes_layout_keeps_the_name_of_another_model(tmp_path):
    d = random_dictionary("jumprelu")
    d = replace(d, threshold=np.full_like(d.threshold, 0.25))
    save_dictionary(TrainedDictionary(dictionary=d, facts=FACTS), tmp_path, "llama_scope")
    assert open_dictionary(tmp_path).facts.model == "tiny"
    published = replace(FACTS, model="meta-llama/Llama-3.1-8B")
    save_dictionary(TrainedDictionary(dictionary=d, facts=published), tmp_path, "llama_scope")
    assert "jaxalign" not in (tmp_path / "hyperparams.json").read_text()


def test_what_a_layout_cannot_hold_is_refused(tmp_path):
    trained = TrainedDictionary(dictionary=random_dictionary("gated"), facts=FACTS)
    for layout in ("sparsify", "gemma_scope", "llama_scope"):
        with pytest.raises(InputError, match="write it as sae_lens"):
            save_dictionary(trained, tmp_path / "layers.3", layout)
    with pytest.raises(InputError, match=r"layout 'zip' is unknown. use llama_scope, gemma_scope"):
        save_dictionary(trained, tmp_path, "zip")
    topk = replace(trained, dictionary=random_dictionary("topk"))
    with pytest.raises(
        InputError, match=re.escape("'layers.2' does not say that the dictionary is")
    ):
        save_dictionary(topk, tmp_path / "layers.2", "sparsify")
    assert not list(tmp_path.iterdir())

"""Path patching, attention knock-out and steering, each by its definition written out by hand."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxalign.edits import Add, Edit, Replace, knock_out
from jaxalign.engine.knockouts import attention_knockout
from jaxalign.engine.paths import path_patching
from jaxalign.engine.steering import steer
from jaxalign.errors import InputError
from jaxalign.model import forward
from jaxalign.model.generate import generate
from jaxalign.model.layers import mlp, normalize
from jaxalign.numerics import jit
from testing.edits import prompt_pairs, tiny
from testing.edits import two_logits as metric

LENGTHS = jnp.array([6, 4])
GROUPED = {"num_kv_heads": 2, "gated": True, "norm": "rms", "mlp_bias": False}
GROUPED |= {"attention_bias": False}


@pytest.fixture(scope="module")
def pair():
    return prompt_pairs()


@functools.partial(jax.jit, static_argnames=("config", "names"))
def seen(params, tokens, edit, *, config, names):
    return forward(params, tokens, config, lengths=LENGTHS, edit=edit, capture=names)


def arriving(params, config, base, donor, sender, through_mlps):
    """The stream before each layer, and behind the last, where one head's change alone goes along
    it: every other head writes what it writes in the base run. Written out layer by layer."""
    layer, head = sender
    width = config.head_size
    change = donor["z"][layer, :, :, head] - base["z"][layer, :, :, head]
    rows = params.blocks.attention.out[layer][head * width : (head + 1) * width]
    x, streams = base["embed"], []
    for index in range(config.num_layers):
        streams.append(x)
        block = jax.tree.map(lambda leaf, i=index: leaf[i], params.blocks)
        attended = base["attn_out"][index] + (change @ rows if index == layer else 0)
        reads = x if config.parallel_residual else x + attended
        written = base["mlp_out"][index]
        if through_mlps:
            _, written = mlp(normalize(reads, block.mlp_norm, config), block.mlp, config)
        x = x + attended + written
    return [*streams, x]


def by_hand(params, config, pair, sender, receiver, letter, through_mlps):
    names = ("embed", "z", "attn_out", "mlp_out", "q", "k", "v")

    def run(tokens, edit=None):
        return seen(params, tokens, edit, config=config, names=names)

    donor, base = (run(tokens).activations for tokens in pair)
    streams = arriving(params, config, base, donor, sender, through_mlps)
    if receiver is None:
        # The whole rest of the model is the final norm: exchange the stream behind the last block.
        mask = np.zeros((config.num_layers + 1, 1, 1, 1), bool)
        mask[-1] = True
        edit = Edit(Replace("resid", mask, jnp.stack(streams)))
    else:
        layer, head = receiver
        attention = jax.tree.map(lambda leaf: leaf[layer], params.blocks.attention)
        norm = jax.tree.map(lambda leaf: leaf[layer], params.blocks.attention_norm)
        normed = normalize(streams[layer], norm, config)
        if letter == "q":
            matrix, bias = attention.query, attention.query_bias
        else:
            place = "kv".index(letter)
            matrix = attention.key_value[:, place]
            bias = None if attention.key_value_bias is None else attention.key_value_bias[place]
        read = normed @ matrix + (0 if bias is None else bias)
        heads = config.num_heads if letter == "q" else config.num_kv_heads
        read = read.reshape(*read.shape[:2], heads, config.head_size)
        own = head * heads // config.num_heads
        mask = np.zeros((config.num_layers, 1, 1, heads, 1), bool)
        mask[layer, :, :, own] = True
        value = jnp.broadcast_to(read[None], (config.num_layers, *read.shape))
        edit = Edit(Replace(letter, mask, value))
    logits = run(pair[1], edit).logits
    return metric(logits[np.arange(2), np.asarray(LENGTHS) - 1])


@pytest.mark.parametrize(
    ("parallel", "settings", "through_mlps"),
    [
        pytest.param(True, {}, False, marks=pytest.mark.slow),
        (False, GROUPED, True),
        pytest.param(True, {}, True, marks=pytest.mark.slow),
        pytest.param(False, GROUPED, False, marks=pytest.mark.slow),
    ],
    ids=["NeoX, direct", "grouped heads, MLPs", "NeoX, MLPs", "grouped heads, direct"],
)
def test_a_path_is_one_heads_change_along_the_stream_to_one_reader(
    pair, parallel, settings, through_mlps
):
    params, config = tiny(parallel, **settings)
    with jax.numpy_rank_promotion("allow"):
        for receiver, senders in (((2, 1), ((0, 2), (1, 0))), (None, ((0, 1), (2, 3)))):
            call = jit(
                lambda c, d, r=receiver: path_patching(
                    params, c, d, LENGTHS, config, metric, receiver=r, through_mlps=through_mlps
                )
            )
            found = call(*pair)
            for sender in senders:
                for place, letter in enumerate("qkv" if receiver else "-"):
                    wanted = by_hand(params, config, pair, sender, receiver, letter, through_mlps)
                    ours = found.patched[place][sender] if receiver else found.patched[sender]
                    np.testing.assert_allclose(ours, wanted, atol=2e-4, err_msg=f"{sender}{letter}")
            moved = np.abs(np.asarray(found.patched - found.corrupted[None])).max(axis=-1)
            assert moved.max() > 1e-2
            if receiver:
                above = np.asarray(found.patched)[:, 2:]
                np.testing.assert_array_less(np.abs(above - np.asarray(found.corrupted)), 1e-4)


def test_paths_that_are_not_there_are_refused(pair, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    params, config = tiny()
    for change, said in (
        ({"receiver": (7, 0)}, "the receiver is layer 7, head 0, and the model has 3 layers of 4"),
        ({"receiver": (1, 0), "inputs": "z"}, "inputs are 'z'. name some of q, k, v"),
        ({"receiver": (1, 0), "inputs": ""}, "inputs are ''"),
        ({"receiver": (1, 0), "inputs": 5}, r"inputs is 5 \(an int\), expected letters of 'qkv'"),
        ({"receiver": (1, 2, 0)}, r"the receiver is \(1, 2, 0\), expected a layer and a head"),
        ({"receiver": 3}, "the receiver is 3, expected a layer and a head, two integers"),
        ({"receiver": (2.5, 1)}, r"the receiver is \(2.5, 1\), expected a layer and a head"),
    ):
        with pytest.raises(InputError, match=said):
            path_patching(params, *pair, LENGTHS, config, metric, **change)


def test_a_knock_out_hides_one_source_from_the_last_position_in_a_window_of_layers(pair):
    params, config = tiny(parallel=False)
    tokens = pair[0]
    found = jit(lambda t: attention_knockout(params, t, LENGTHS, config, metric, window=2))(tokens)
    assert found.cut.shape == (2, 6, 2)
    assert np.isnan(found.cut[:, 4:, 1]).all(), "behind the last position there is nothing to cut"
    for window, source, prompt in ((0, 1, 0), (1, 4, 0), (1, 0, 1), (0, 3, 1)):
        edges = np.zeros((3, 1, 1, 6, 6), bool)
        edges[window : window + 2, ..., int(LENGTHS[prompt]) - 1, source] = True
        one = forward(
            params, tokens[prompt][None], config, lengths=LENGTHS[prompt][None],
            edit=knock_out(edges), last_only=True,
        )  # fmt: skip
        np.testing.assert_allclose(found.cut[window, source, prompt], metric(one.logits), atol=2e-4)
    assert np.nanmax(np.abs(found.cut - found.clean[None, None])) > 1e-2


def test_knock_outs_that_are_not_defined_are_refused(pair):
    params, config = tiny()
    with pytest.raises(InputError, match="every source knocked out"):
        attention_knockout(params, pair[0], jnp.array([6, 1]), config, metric)
    with pytest.raises(InputError, match="the window is 4 layers, and the model has 3"):
        attention_knockout(params, pair[0], LENGTHS, config, metric, window=4)


def test_steering_adds_a_direction_everywhere_and_goes_on_from_there(pair):
    params, config = tiny()
    direction = np.random.default_rng(3).normal(size=config.hidden_size).astype(np.float32)
    found = steer(
        params, pair[0], LENGTHS, config, metric, direction, [0.0, 1.5], step=2, steps=3, draws=4
    )
    assert found.random.shape == (2, 4, 2)
    np.testing.assert_allclose(found.metric[0], found.clean, atol=1e-5)
    np.testing.assert_allclose(found.random[0], np.tile(found.clean, (4, 1)), atol=1e-5)
    coefficient = np.zeros((4, 1, 1, 1), np.float32)
    coefficient[2] = 1.5
    edit = Edit(Add("resid", coefficient, direction))
    one = jit(lambda t: forward(params, t, config, lengths=LENGTHS, edit=edit, last_only=True))
    np.testing.assert_allclose(found.metric[1], metric(one(pair[0]).logits), atol=2e-4)
    said = generate(params, pair[0], LENGTHS, config, steps=3, edit=edit).tokens
    assert np.array_equal(found.tokens[1], said)
    plain = generate(params, pair[0], LENGTHS, config, steps=3).tokens
    assert np.array_equal(found.tokens[0], plain)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": np.ones(3)}, r"the direction is \[3\], expected \[32\]"),
        ({"step": 9}, "resid has no step 9. give 0 to 3"),
        ({"point": "z"}, "'z' is no stream to steer. use resid,"),
        ({"coefficients": []}, "the coefficients are no list of numbers"),
    ],
)
def test_steering_that_is_not_defined_is_refused(pair, change, said):
    params, config = tiny()
    asked = {"direction": np.ones(config.hidden_size), "coefficients": [1.0], "step": 1} | change
    with pytest.raises(InputError, match=said):
        steer(
            params, pair[0], LENGTHS, config, metric, asked.pop("direction"),
            asked.pop("coefficients"), **asked,
        )  # fmt: skip

"""Greedy generation equals transformers' token by token, in every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import ONE_EACH, prompts, read, torch_and_transformers, write
from pythia_shape import tiny_checkpoint

from jaxalign.errors import InputError
from jaxalign.model import cast, forward
from jaxalign.model.generate import generate, prefill, step
from jaxalign.numerics import INT8_SIM, jit, scheme_named
from testing.edits import tiny

pytest.importorskip("torch")
pytest.importorskip("transformers")

STEPS = 9
LENGTHS = np.array([11, 4, 7])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Ours and transformers' of a variant, made once."""
    kept = {}

    def get(variant):
        if variant not in kept:
            folder = tmp_path_factory.mktemp("checkpoint")
            if variant == "gpt_neox":
                torch, transformers = torch_and_transformers()
                tiny_checkpoint(folder)
                model = transformers.GPTNeoXForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation="eager"
                ).eval()
            else:
                model = write(folder, variant)
            kept[variant] = model, *read(folder)
        return kept[variant]

    return get


def theirs(model, ids, end):
    """transformers' new tokens after one prompt."""
    torch, _ = torch_and_transformers()
    given = torch.from_numpy(ids[None]).long()
    out = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=STEPS,
        eos_token_id=end or None,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("variant", ["gpt_neox", *ONE_EACH])
def test_tokens_equal_transformers(models, variant):
    model, params, config = models(variant)
    tokens = prompts()
    free = [theirs(model, ids[:n], []) for ids, n in zip(tokens, LENGTHS, strict=True)]
    assert len({token for row in free for token in row}) > 3
    end = [free[1][2]]  # the second prompt's third token ends a text
    run = params, jnp.asarray(tokens), jnp.asarray(LENGTHS), config
    ended = generate(*run, steps=STEPS, end=end, fill=1)
    for row, n, ids, given in zip(ended.tokens, ended.lengths, tokens, LENGTHS, strict=True):
        assert row[:n].tolist() == theirs(model, ids[:given], end)
        assert (row[n:] == 1).all()
    assert ended.lengths[1] <= 3
    if variant == "gpt_neox":
        endless = generate(*run, steps=STEPS)
        assert np.asarray(endless.tokens).tolist() == free
        assert np.asarray(endless.lengths).tolist() == [STEPS] * 3


def test_what_stands_in_the_padding_does_not_matter(models):
    _, params, config = models("gpt_neox")
    tokens = prompts()
    real = np.arange(11)[None] < LENGTHS[:, None]
    noise = np.where(real, tokens, (tokens + 41) % 97)
    a, b = (
        generate(params, jnp.asarray(t), jnp.asarray(LENGTHS), config, steps=STEPS).tokens
        for t in (tokens, noise)
    )
    assert np.array_equal(a, b)


@pytest.mark.parametrize("variant", ["qwen3, biases, windows", "gemma2"])
def test_logits_with_a_cache_equal_those_without(models, variant):
    _, params, config = models(variant)
    tokens = jnp.asarray(prompts())
    whole = forward(params, tokens, config).logits
    one_more = jit(lambda token, cache: step(params, token, cache, config))
    logits, cache = prefill(params, tokens[:, :6], jnp.full(3, 6), config, positions=11)
    for position in range(6, 11):
        np.testing.assert_allclose(logits, whole[:, position - 1], atol=1e-5)
        logits, cache = one_more(tokens[:, position], cache)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5)


@pytest.mark.slow
def test_packed_weights_generate_what_the_whole_model_would(models):
    _, params, config = models("llama, scaled like 3.1")
    scheme = scheme_named("int8")
    low = cast(params, scheme)
    tokens = jnp.asarray(prompts(1))
    new = generate(low, tokens, jnp.array([11]), config, steps=3, scheme=scheme).tokens
    text = tokens
    for _ in range(3):
        logits = forward(low, text, config, scheme=scheme, last_only=True).logits
        text = jnp.concatenate([text, logits.argmax(axis=-1)[:, None].astype(text.dtype)], axis=1)
    assert np.array_equal(text[:, 11:], new)


def test_what_a_cache_cannot_do_is_refused(models):
    _, params, config = models("gpt_neox")
    tokens, lengths = jnp.asarray(prompts()), jnp.asarray(LENGTHS)
    with pytest.raises(InputError, match=r"int8-sim.*all positions of an example"):
        generate(params, tokens, lengths, config, steps=2, scheme=INT8_SIM)
    with pytest.raises(InputError, match="steps is 0"):
        generate(params, tokens, lengths, config, steps=0)


def test_tokens_are_drawn_as_often_as_the_model_says():
    params, config = tiny(vocab_size=12)
    tokens, lengths = jnp.tile(jnp.array([[3, 7, 1]]), (3000, 1)), jnp.full(3000, 3)

    def drawn(seed, temperature):
        found = generate(
            params, tokens, lengths, config, steps=1, temperature=temperature, seed=seed
        )
        return np.asarray(found.tokens[:, 0])

    logits = forward(params, tokens[:1], config, last_only=True).logits[0]
    p = np.asarray(jax.nn.softmax(logits / 1.5))
    counts = np.bincount(drawn(0, 1.5), minlength=12)
    # Twelve binomials within four standard deviations: wrong by chance once in a thousand seeds.
    assert (np.abs(counts - 3000 * p) <= 4 * np.sqrt(3000 * p * (1 - p)) + 1).all()
    assert np.array_equal(drawn(0, 1.5), drawn(0, 1.5))
    assert not np.array_equal(drawn(0, 1.5), drawn(1, 1.5))
    assert set(drawn(2, 1e-4)) == {int(logits.argmax())}
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperature is"):
            drawn(0, temperature)

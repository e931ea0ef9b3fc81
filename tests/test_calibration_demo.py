"""Calibration pays on trained weights."""

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.calibration import calibrate, calibration_texts, shipped_texts
from jaxalign.model import forward
from jaxalign.numerics import jit, scheme_named


def test_the_shipped_texts_are_enough_and_hold_no_shipped_prompt():
    """4000 tokens for any vocabulary, since no tokenizer has fewer tokens than words here."""
    given, prompts = shipped_texts(), jaxalign.read_prompts()
    assert sum(len(text.split()) for text in given) > 4000
    _, lengths = jaxalign.load("demo").encode(list(given), special=True)
    assert lengths.sum() > 6000
    assert lengths.max() <= 128  # texts for short contexts, too
    asked = [p.prompt for task in prompts.tasks.values() for p in task]
    assert not [p for p in (*asked, *prompts.reference) if any(p in text for text in given)]
    assert len(set(given)) == len(given)


@pytest.mark.slow
def test_on_the_bundled_model_awq_and_gptq_lie_nearer_to_f32_than_rounding():
    bundled, prompts = jaxalign.load("demo"), jaxalign.read_prompts()
    given = calibration_texts(prompts, bundled)
    tokens, lengths = bundled.encode([p.prompt for task in prompts.tasks.values() for p in task])
    real = np.arange(tokens.shape[1])[None] < np.asarray(lengths)[:, None]
    run = jit(lambda p: forward(p, tokens, bundled.config, lengths=lengths).logits)

    def log_probabilities(params):
        return np.asarray(jax.nn.log_softmax(run(params)), np.float64)[real]

    exact = log_probabilities(bundled.params)
    found = {}
    for method in ("int4", "awq", "gptq"):
        scheme = scheme_named(f"{method}-g32")
        low = log_probabilities(calibrate(bundled.params, bundled.config, scheme, *given))
        found[method] = (np.exp(exact) * (exact - low)).sum(axis=-1).mean()
    assert found["awq"] < 0.97 * found["int4"], found
    assert found["gptq"] < 0.8 * found["int4"], found

"""Claims about the bundled model: its corpus, its prompts, its weights and its training."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.checkpoints.files import open_checkpoint
from jaxalign.checkpoints.parameters import load_params
from jaxalign.demo import corpus, ioi
from jaxalign.demo.batches import training_batch
from jaxalign.demo.entities import HELD_OUT_PAIRS, NAMES, OBJECTS, PLACES, is_held_out_pair
from jaxalign.demo.evaluate import correct_answers, unseen_loss
from jaxalign.demo.fact_documents import FACTS
from jaxalign.demo.provenance import PROMPTS, sha256_of, shipped_prompts
from jaxalign.demo.tokenizer import load_tokenizer
from jaxalign.demo.train import (
    MODEL_FOLDER,
    TrainingConfig,
    initial_state,
    round_to_f16,
    train,
)
from jaxalign.model import forward

SHIPPED = json.loads(PROMPTS.read_text())
NAME = re.compile(r"\b(?:" + "|".join(NAMES) + r")\b")
TINY = TrainingConfig(
    steps=6,
    rows=2,
    context=32,
    vocab_size=300,
    tokenizer_documents=200,
    layers=2,
    heads=2,
    width=16,
    hidden=32,
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL_FOLDER)


@pytest.fixture(scope="module")
def bundled():
    config = config_from_hf(json.loads((MODEL_FOLDER / "config.json").read_text()))
    return load_params(open_checkpoint(MODEL_FOLDER), config), config


@pytest.fixture(scope="module")
def record():
    return json.loads((MODEL_FOLDER / "provenance.json").read_text())


def names_in(text):
    return set(NAME.findall(text))


def sample(count, seed=0, stream="test"):
    return list(islice(corpus.documents(seed, stream), count))


@pytest.fixture(scope="module")
def training():
    """The beginning of a training run's text."""
    return sample(12_000)


# The corpus.


def test_corpus_is_the_same_for_the_same_seed_and_differs_for_another():
    assert sample(200) == sample(200)
    assert sample(200) != sample(200, seed=1)
    assert sample(200) != sample(200, stream="other")


def test_first_document_is_the_one_this_test_was_written_with():
    """Seeded draws do not change between Python versions."""
    digest = hashlib.sha256("\n".join(sample(50)).encode()).hexdigest()
    assert digest[:16] == "7776bcc46530a958"


def test_no_training_document_holds_a_held_out_pair_of_names(training):
    together = {
        frozenset(pair) for text in training for pair in combinations(sorted(names_in(text)), 2)
    }
    assert len(together) > 1200
    assert not [pair for pair in together if is_held_out_pair(*sorted(pair))]


def test_one_pair_in_five_is_held_out_and_every_name_occurs_in_such_a_pair():
    share = len(HELD_OUT_PAIRS) / (len(NAMES) * (len(NAMES) - 1) / 2)
    assert 0.15 < share < 0.25
    assert {name for pair in HELD_OUT_PAIRS for name in pair} == set(NAMES)
    assert is_held_out_pair(*HELD_OUT_PAIRS[0]) == is_held_out_pair(*HELD_OUT_PAIRS[0][::-1])


def test_every_name_place_and_object_occurs_often_in_training(training):
    text = " ".join(training)
    counts = Counter(re.findall(r"\w+", text))
    assert len(NAMES) >= 60
    assert len(PLACES) >= 20
    assert len(OBJECTS) >= 20
    assert min(counts[word] for word in (*NAMES, *PLACES, *OBJECTS)) > 50


def test_corpus_is_mostly_different_documents(training):
    texts = training[:5000]
    assert len(set(texts)) > 0.75 * len(texts)


def test_unseen_filler_is_never_a_training_document(training):
    unseen = corpus.unseen_filler(100)
    assert all(corpus.is_reserved(text) for text in unseen)
    assert not any(corpus.is_reserved(text) for text in training)


def test_no_fact_has_two_answers_for_one_prompt():
    answers = {}
    for fact in FACTS:
        for prompt, target in fact.clozes():
            answers.setdefault(prompt, set()).add(target)
    assert not {prompt: found for prompt, found in answers.items() if len(found) > 1}


# The shipped prompts.


def test_shipped_prompts_are_enough_and_fit_the_context(tokenizer, bundled):
    counts = {task: len(items) for task, items in SHIPPED.items()}
    assert counts["factual"] >= 40
    assert counts["ioi"] >= 40
    assert counts["reference"] >= 30
    for task, items in SHIPPED.items():
        for item in items:
            prompt = item if task == "reference" else item["prompt"]
            assert 0 < len(tokenizer.encode(prompt).ids) <= 24 <= bundled[1].max_positions


@pytest.mark.parametrize("task", ["factual", "ioi"])
def test_shipped_targets_are_single_tokens_with_a_leading_space(task, tokenizer):
    for item in SHIPPED[task]:
        for word in (item["target"], item["distractor"]):
            assert word.startswith(" ")
            assert len(tokenizer.encode(word).ids) == 1
        assert item["target"] != item["distractor"]


@pytest.mark.parametrize("task", ["factual", "ioi"])
def test_most_shipped_prompts_have_four_partners_of_their_length(task, tokenizer):
    lengths = [len(tokenizer.encode(item["prompt"]).ids) for item in SHIPPED[task]]
    assert np.mean([lengths.count(length) >= 5 for length in lengths]) > 0.9


def test_shipped_facts_are_in_the_fact_table():
    table = {cloze for fact in FACTS for cloze in fact.clozes()}
    assert set(shipped_prompts("factual")) <= table


def test_shipped_ioi_prompts_use_held_out_pairs_in_both_orders_and_many_templates():
    target_first = 0
    frames = set()
    for item in SHIPPED["ioi"]:
        target, distractor = item["target"].strip(), item["distractor"].strip()
        words = NAME.findall(item["prompt"])
        assert sorted(words) == sorted([target, distractor, distractor])
        assert is_held_out_pair(target, distractor)
        target_first += words[0] == target
        frames.add(" ".join(item["prompt"].split()[:1] + item["prompt"].split()[4:5]))
    assert target_first == len(SHIPPED["ioi"]) // 2
    assert len(frames) >= 8


def test_fresh_ioi_prompts_take_all_templates_and_both_orders():
    prompts = ioi.held_out_prompts(256)
    assert {item.template for item in prompts} == set(range(len(ioi.TEMPLATES)))
    assert {item.receiver_first for item in prompts} == {True, False}
    assert all(is_held_out_pair(item.target[1:], item.distractor[1:]) for item in prompts)


# The bundled weights.


def test_bundled_model_answers_the_shipped_factual_prompts(bundled, tokenizer):
    correct = correct_answers(*bundled, tokenizer, shipped_prompts("factual"))
    assert correct.mean() >= 0.98


def test_bundled_model_answers_ioi_prompts_of_pairs_it_never_saw(bundled, tokenizer):
    fresh = [(item.prompt, item.target) for item in ioi.held_out_prompts(384, seed=7)]
    assert correct_answers(*bundled, tokenizer, fresh).mean() >= 0.95
    assert correct_answers(*bundled, tokenizer, shipped_prompts("ioi")).mean() >= 0.95


def test_bundled_model_is_a_language_model_and_not_a_table(bundled, tokenizer, record):
    nats, _ = unseen_loss(*bundled, tokenizer, count=128)
    assert nats < 1.0
    stated = record["evaluation"]["loss on unseen filler (nats per token)"]
    np.testing.assert_allclose(nats, stated, rtol=0.05)


def test_bundled_folder_is_small_and_its_hashes_are_recorded(record):
    size = sum(path.stat().st_size for path in MODEL_FOLDER.iterdir())
    assert size <= 8_000_000
    for name, digest in record["sha256"].items():
        assert sha256_of(MODEL_FOLDER / name) == digest


def test_bundled_weights_lie_well_inside_the_range_of_f16(bundled):
    largest = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(bundled[0]))
    assert largest < 100.0


def test_transformers_loads_the_folder_and_gives_the_same_logits(bundled, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        MODEL_FOLDER, dtype=torch.float32, local_files_only=True
    )
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(
        MODEL_FOLDER, local_files_only=True
    )
    texts = [SHIPPED["factual"][0]["prompt"], SHIPPED["ioi"][0]["prompt"], SHIPPED["reference"][0]]
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert their_tokenizer(text)["input_ids"] == ids
        assert their_tokenizer.decode(ids) == text
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits.numpy()
        ours = forward(bundled[0], jnp.array([ids], jnp.int32), bundled[1]).logits
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# The training script.


@pytest.fixture
def standard_promotion():
    """Optax's schedules divide integer step counts by floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_batches_are_a_function_of_seed_and_step(tokenizer):
    batch = training_batch(tokenizer, seed=0, step=3, rows=8, length=65)
    assert batch.shape == (8, 65)
    np.testing.assert_array_equal(batch, training_batch(tokenizer, 0, 3, 8, 65))
    assert (batch != training_batch(tokenizer, 0, 4, 8, 65)).any()
    assert (batch != training_batch(tokenizer, 1, 3, 8, 65)).any()


def test_rows_begin_with_and_without_a_separator(tokenizer):
    starts = training_batch(tokenizer, seed=0, step=0, rows=64, length=17)[:, 0]
    assert 0.1 < np.mean(starts == 0) < 0.45


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.slow
def test_an_interrupted_training_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, _, losses = train(TINY, tmp_path / "whole", checkpoint_every=100)
    train(TINY, tmp_path / "parts", checkpoint_every=100, stop_after=3)
    resumed, _, resumed_losses = train(TINY, tmp_path / "parts", checkpoint_every=100)
    np.testing.assert_array_equal(losses, resumed_losses)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_the_seed_decides_where_training_starts():
    start, same = initial_state(TINY).params, initial_state(TINY).params
    jax.tree.map(np.testing.assert_array_equal, start, same)
    assert (initial_state(replace(TINY, seed=1)).params.embed != start.embed).any()


@pytest.mark.usefixtures("standard_promotion")
def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    train(TINY, tmp_path, checkpoint_every=100, stop_after=1)
    with pytest.raises(ValueError, match="other settings \\(steps\\)"):
        train(replace(TINY, steps=7), tmp_path, checkpoint_every=100)


def test_rounding_to_f16_changes_nothing_the_second_time(bundled):
    jax.tree.map(np.testing.assert_array_equal, bundled[0], round_to_f16(bundled[0]))

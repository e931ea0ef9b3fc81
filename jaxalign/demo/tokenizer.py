"""The byte-level BPE tokenizer of the bundled model: trained on its corpus, saved for reuse."""

import json
import random
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from jaxalign.demo import corpus
from jaxalign.demo.fact_documents import FACTS

FILE_NAME = "tokenizer.json"


def train_tokenizer(vocab_size: int, document_count: int, seed: int) -> Tokenizer:
    """Train a tokenizer on the first documents of the corpus's own tokenizer stream.

    Args:
      vocab_size: number of tokens; ``<|endoftext|>`` is token 0, then come the 256 bytes.
      document_count: how many documents to read.
      seed: of the corpus.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[corpus.END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = chain(
        _every_fact(seed, document_count // 200),
        islice(corpus.documents(seed, "tokenizer"), document_count),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _every_fact(seed: int, repeats: int) -> Iterator[str]:
    # An answer should be one token, however rare its fact is in the corpus.
    rng = random.Random(f"jaxalign demo tokenizer {seed}")
    for fact in FACTS * repeats:
        yield fact.statement(rng)


def separator_of(tokenizer: Tokenizer) -> int:
    """Return the number of ``<|endoftext|>``, which stands between documents.

    Raises:
      ValueError: the tokenizer does not have it.
    """
    number = tokenizer.token_to_id(corpus.END_OF_TEXT)
    if number is None:
        raise ValueError(f"the tokenizer has no token {corpus.END_OF_TEXT}; train it again")
    return number


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that transformers reads.

    Args:
      tokenizer: to write.
      folder: made if missing.
      context: longest sequence of the model, in tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE_NAME))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": corpus.END_OF_TEXT,
        "eos_token": corpus.END_OF_TEXT,
        "unk_token": corpus.END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder."""
    return Tokenizer.from_file(str(folder / FILE_NAME))

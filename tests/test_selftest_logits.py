"""The logits that selftest knows are transformers'."""

import json

import numpy as np
import pytest

from jaxalign.checkpoints.hub import BUNDLED
from jaxalign.commands.selftest import KEPT

torch = pytest.importorskip("torch")
import transformers  # noqa: E402 - after torch


def test_kept_logits_are_those_of_transformers():
    model = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    kept = json.loads(KEPT.read_text())
    for text, tokens, logits in zip(kept["texts"], kept["tokens"], kept["logits"], strict=True):
        with torch.no_grad():
            out = model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits[0, -1]
        np.testing.assert_allclose(out[tokens].numpy(), logits, atol=1e-3)
        assert int(out.argmax()) == tokens[0]

"""Claims about ``verify``: it finds what an independent implementation finds, or says what not."""

import json
import math
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from tiny_run import edit_weights, refusal, run, write_model

from jaxalign import load
from jaxalign.commands import verify as module
from jaxalign.commands.verify import published, verify

NAMES = ("f16 logits", "mean next-token loss", "LAMBADA accuracy", "LAMBADA perplexity")
SIZES = (16, 64)
TEXTS = [
    "The old man went to the river with his dog. At noon he sat down by the river",
    "Mary gave the book to John. Then she asked him to give it back to Mary",
    'She said: "It is raining, and I have no coat."\n\nThen she went home and took a coat',
    "One two three four five six seven eight nine ten and then, slowly, one",
    "A house stood on the hill, and all the people of the village knew the house",
]


def shift_logits(tensors):
    """Add 1072 to all logits: f16 knows only whole numbers there, where Pythia-70M's logits lie."""
    tensors["embed_out.weight"][:, 0] = 33.5
    tensors["gpt_neox.final_layer_norm.weight"][0] = 0
    tensors["gpt_neox.final_layer_norm.bias"][0] = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return edit_weights(write_model(tmp_path_factory.mktemp("model")), shift_logits)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    lambada, wikitext = folder / "lambada.jsonl", folder / "wiki.raw"
    lambada.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    wikitext.write_text(" \n = A River = \n \n" + " The river is long . \n".join(TEXTS))
    return "--lambada", lambada, "--wikitext", wikitext


def set_published(path, **changes):
    """A published file for a small vocabulary and context; ``changes`` go into its sections."""
    numbers = published()
    numbers["f16_logits"]["input_ids"] = [29, 93, 303, 64, 2047, 3000, 187]
    numbers["wikitext"]["perplexity"] = {str(size): 50.0 for size in SIZES}
    for section, values in changes.items():
        numbers[section] |= values
    path.write_text(json.dumps(numbers))
    return numbers


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """Published numbers of another model."""
    changed = set_published(tmp_path / "published.json")
    monkeypatch.setattr(module, "PUBLISHED", tmp_path / "published.json")
    return changed


@pytest.fixture(scope="module")
def theirs(model, texts):
    """The same numbers by transformers in PyTorch, one text at a time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = load(str(model)).tokenizer

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    @torch.no_grad()
    def scores(tokens):
        logits = net(torch.tensor([tokens])).logits[0, :-1].double()
        following = torch.tensor(tokens[1:])
        log_p = torch.log_softmax(logits, -1)[torch.arange(len(following)), following]
        return log_p.numpy(), (logits.argmax(-1) == following).numpy()

    def lambada():
        for text in TEXTS:
            words = text.split(" ")
            last = ids(" " + words[-1])
            log_p, right = scores(ids(" ".join(words[:-1])) + last)
            yield log_p[-len(last) :].sum(), right[-len(last) :].all()

    log_p, right = zip(*lambada(), strict=True)
    wiki = ids(texts[3].read_text())
    loss_text = [tokenizer.token_to_id("<|endoftext|>"), *ids(published()["loss"]["text"])]
    return SimpleNamespace(
        net=net,
        torch=torch,
        loss=-scores(loss_text)[0].mean(),
        accuracy=float(np.mean(right)),
        perplexity=math.exp(-np.mean(log_p)),
        wikitext={str(n): math.exp(-scores(wiki[:n])[0].mean()) for n in SIZES},
    )


def test_numbers_equal_those_of_transformers(model, texts, theirs, numbers):
    checks = verify(load(str(model)), texts[1], texts[3])
    found = {check.name: check.found for check in checks}
    assert found[numbers["loss"]["what"]] == pytest.approx(theirs.loss, rel=1e-4)
    assert found["LAMBADA accuracy, 5 examples"] == theirs.accuracy
    assert found["LAMBADA perplexity, 5 examples"] == pytest.approx(theirs.perplexity, rel=1e-4)
    for size, value in theirs.wikitext.items():
        name = f"WikiText-2 perplexity, {size} tokens"
        assert found[name] == pytest.approx(value, rel=1e-4)


def test_greedy_accuracy_counts_whole_words(model, texts, theirs, numbers, tmp_path):
    """Texts whose last word is what the model itself says next, and one where it is not."""
    tokenizer, torch = load(str(model)).tokenizer, theirs.torch
    lines = []
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.no_grad():
            following = int(theirs.net(torch.tensor([tokens])).logits[0, -1].argmax())
        word = tokenizer.decode([following])
        if re.fullmatch(r" \w+", word) and tokenizer.encode(word).ids == [following]:
            lines.append(text + word)
    count = len(lines)
    assert count
    path = tmp_path / "greedy.jsonl"
    every = [*lines, *TEXTS]
    path.write_text("\n".join(json.dumps({"text": text}) for text in every) + "\n\n")
    checks = verify(load(str(model)), lambada=path)
    accuracy = next(c for c in checks if c.name.startswith("LAMBADA accuracy"))
    assert accuracy.name == f"LAMBADA accuracy, {len(every)} examples"
    assert accuracy.found == pytest.approx((count + 5 * theirs.accuracy) / len(every))


def test_f16_logits_agree_with_transformers_in_f16(model, theirs, numbers, tmp_path):
    torch, ids = theirs.torch, numbers["f16_logits"]["input_ids"]
    with torch.no_grad():
        logits = theirs.net.half()(torch.tensor([ids])).logits[0, -1, :30]
    theirs.net.float()
    assert logits.min() > 1024
    set_published(tmp_path / "published.json", f16_logits={"logits": logits.tolist()})
    check = verify(load(str(model)))[0]
    assert check.passed
    assert check.found <= 1


@pytest.mark.parametrize(("steps", "passes"), [(0, True), (1, True), (2, False), (5, False)])
def test_f16_distance_is_counted_in_steps_of_f16(model, numbers, tmp_path, steps, passes):
    path = tmp_path / "published.json"
    base = ours_in_f16(load(str(model)), numbers["f16_logits"]["input_ids"])
    moved = base.astype(np.float64)
    moved[4] -= steps * np.spacing(base[4]).astype(np.float64)
    set_published(path, f16_logits={"logits": moved.tolist()})
    check = verify(load(str(model)))[0]
    assert (check.found, check.passed) == (steps, passes)


def ours_in_f16(model, ids):
    import jax.numpy as jnp

    from jaxalign import F16, forward, jit
    from jaxalign.model import cast

    run_it = jit(lambda p, t: forward(p, t, model.config, scheme=F16, last_only=True).logits)
    logits = np.asarray(run_it(cast(model.params, F16), jnp.array([ids])))
    return logits.reshape(-1)[:30].astype(np.float16)


def test_command_matches_where_the_numbers_are_those_of_this_model(
    model, texts, theirs, numbers, tmp_path
):
    base = ours_in_f16(load(str(model)), numbers["f16_logits"]["input_ids"])
    set_published(
        tmp_path / "published.json",
        f16_logits={"logits": base.tolist()},
        loss={"value": float(theirs.loss)},
        lambada={"accuracy": theirs.accuracy, "perplexity": theirs.perplexity},
        wikitext={"perplexity": theirs.wikitext},
    )
    ran = run("verify", "--model", model, *texts)
    assert ran.code == 0
    assert ran.out.count(" matches ") == 6
    assert "DIFFERS" not in ran.out


def test_command_says_where_another_model_differs(model, texts, numbers):
    ran = run("verify", "--model", model, *texts)
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert len(lines) == 6
    for line, name in zip(lines, (*NAMES, "WikiText-2", "WikiText-2"), strict=True):
        assert re.match(rf" *(DIFFERS|matches)  .*{name}", line), line
        assert "published" in line
        assert "found" in line
    assert ran.out.count("DIFFERS") >= 5


def test_texts_that_are_not_given_are_left_unchecked(model, numbers):
    ran = run("verify", "--model", model)
    assert ran.code == 1
    assert ran.out.count("not checked") == 4
    assert ran.out.count("give --lambada FILE") == 2
    assert ran.out.count("give --wikitext FILE") == 2


def test_text_that_is_too_short_is_left_unchecked(model, numbers, tmp_path):
    short = tmp_path / "short.raw"
    short.write_text("The river is long, and the house stood on the hill by the river, and so on.")
    checks = verify(load(str(model)), wikitext=short)
    small, large = [c for c in checks if c.name.startswith("WikiText-2")]
    assert small.found is not None
    assert (large.found, large.passed, large.remark) == (None, None, "text or context is too short")


def test_model_with_a_smaller_vocabulary_leaves_the_logits_unchecked(model):
    check = verify(load(str(model)))[0]
    assert (check.passed, check.remark) == (None, "the model's vocabulary is smaller")


def test_published_numbers_name_their_sources():
    numbers = published()
    assert numbers["model"] == "EleutherAI/pythia-70m"
    assert all(numbers[name]["source"] for name in numbers if name != "model")
    assert len(numbers["f16_logits"]["logits"]) == 30


@pytest.mark.parametrize("more", [(), ("--model", "EleutherAI/pythia-70m-deduped")])
def test_weights_that_cannot_be_had_are_said_so_with_an_exit_code_of_their_own(
    more, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    ran = run("verify", *more)
    name = more[1] if more else "EleutherAI/pythia-70m"
    assert ran.code == 3
    assert ran.err == ""
    why = f"the weights could not be had: {name} is not in the local cache and the hub cannot be"
    assert ran.out.splitlines()[-1].startswith(f"nothing was checked: {why}")
    assert ran.out.count("not checked") == 7
    assert "DIFFERS" not in ran.out


UNREADABLE = {
    "no JSON": ("--lambada", "The text\n", "is not a LAMBADA file: line 1 is 'The text'"),
    "no text": ("--lambada", '{"text": "a b"}\n\n{"txt": "a"}\n', "line 3 is"),
    "number": ("--lambada", '{"text": 5}\n', "line 1 is"),
    "list": ("--lambada", "[1]\n", "line 1 is"),
    "one word": ("--lambada", '{"text": "word"}\n', "line 1 is"),
    "no last word": ("--lambada", '{"text": "word "}\n', "line 1 is"),
    "nothing": ("--lambada", "\n", "is empty"),
    "binary lambada": ("--lambada", b"\xff\xfe", "is not UTF-8 text"),
    "binary wikitext": ("--wikitext", b"\xff\xfe", "is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_text_that_cannot_be_used_is_refused_in_one_line(kind, model, numbers, tmp_path):
    option, content, words = UNREADABLE[kind]
    path = tmp_path / "text"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refusal("verify", "--model", model, option, path)
    assert str(path) in line
    assert words in line


@pytest.mark.parametrize("option", ["--lambada", "--wikitext"])
def test_missing_text_is_refused_in_one_line(option, model, numbers, tmp_path):
    line = refusal("verify", "--model", model, option, tmp_path / "none")
    assert f"{tmp_path / 'none'} is missing" in line


def test_damaged_model_is_an_error_of_its_own(tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in refusal("verify", "--model", tmp_path)

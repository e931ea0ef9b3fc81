"""``extract``: rows are the model's, runs that are cut off go on, and nothing is mixed."""

import contextlib
import errno
import json
import re

import jax
import numpy as np
import pytest
from packed_files import write_gptq
from tiny_run import refusal, run, write_model

import jaxalign
from jaxalign.checkpoints import load, locate
from jaxalign.checkpoints.activations import open_activations, shards
from jaxalign.commands.extract_options import ExtractOptions
from jaxalign.prompts.documents import read_documents
from jaxalign.prompts.named_texts import DEMO_TEXTS
from jaxalign.runtime.lock import alone_in

WINDOW, TOKENS, ROWS = 16, 400, 100
SMALL = ("--texts", "demo", "--window", WINDOW, "--tokens", TOKENS, "--shard-tokens", ROWS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("extracted") / "model")


def extract(model, output, *more):
    return run("extract", "--model", model, "--device", "cpu", *SMALL, "--output", output, *more)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A folder that is only read."""
    output = tmp_path_factory.mktemp("whole") / "f32"
    ran = extract(model, output)
    assert ran.code == 0, ran.err
    return output


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(model, layer, capture="resid"):
    """Rows of the same texts, read document by document and window by window."""
    opened = load(locate(str(model)))
    rows, where = [], []
    left = TOKENS
    for number, text in enumerate(read_documents(DEMO_TEXTS)):
        ids = opened.tokenizer.encode(text, add_special_tokens=False).ids
        for start in range(0, len(ids), WINDOW):
            part = ids[start : start + WINDOW]
            left -= len(part)
            if left < 0:
                return np.concatenate(rows), where
            out = opened.run(
                (np.array([part]), np.array([len(part)])), capture=capture
            ).activations[capture]
            rows.append(np.asarray(out[layer, 0]).reshape(len(part), -1)[1:])
            where += [(number, start + i) for i in range(1, len(part))]
    raise AssertionError("the texts are too short")


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_are_those_of_each_window_alone_without_its_first_position(whole, model, layer):
    found = open_activations(whole, check=True)
    rows, where = expected(model, layer)
    np.testing.assert_allclose(found.matrix(layer), rows, atol=1e-5 * np.abs(rows).max())
    assert [*zip(found.documents, found.positions, strict=True)] == where
    assert [shard.rows for shard in found.shards[:-1]] == [ROWS] * (len(found.shards) - 1)
    assert (found.facts.site, found.facts.layers, found.facts.scheme) == ("resid", (0, 1), "f32")
    assert len(found.facts.weights_sha256) == 64


def test_every_site_has_its_own_rows(model, tmp_path):
    for site, capture in (("z", "z"), ("mlp_hidden", "mlp_hidden"), ("embed", "embed")):
        more = () if site == "embed" else ("--layers", "1")
        assert extract(model, tmp_path / site, "--site", site, *more).code == 0
        found = open_activations(tmp_path / site)
        if site == "embed":
            opened = load(locate(str(model)))
            text = read_documents(DEMO_TEXTS)[0]
            ids = opened.tokenizer.encode(text, add_special_tokens=False).ids[:WINDOW]
            rows = np.asarray(opened.params.embed)[ids][1:]
            assert np.array_equal(found.matrix(0, len(rows)), rows)
        else:
            rows, _ = expected(model, 1, capture)
            np.testing.assert_allclose(found.matrix(1), rows, atol=1e-5 * np.abs(rows).max())


def test_last_positions_are_the_last_of_each_window(whole, model, tmp_path):
    assert extract(model, tmp_path, "--positions", "last").code == 0
    every, last = open_activations(whole), open_activations(tmp_path)
    place = {key: i for i, key in enumerate(zip(every.documents, every.positions, strict=True))}
    where = [place[key] for key in zip(last.documents, last.positions, strict=True)]
    np.testing.assert_allclose(last.matrix(1), every.matrix(1)[where], rtol=1e-5, atol=1e-6)
    ends = {i for i in range(every.tokens) if i + 1 == every.tokens
            or every.documents[i + 1] != every.documents[i]
            or every.positions[i + 1] != every.positions[i] + 1}  # fmt: skip
    assert set(where) == ends


def test_rows_of_two_precisions_are_of_the_same_tokens(whole, model, tmp_path):
    ran = extract(model, tmp_path, "--scheme", "int3-g16@bf16")
    assert ran.code == 0, ran.err
    high, low = open_activations(whole), open_activations(tmp_path)
    assert low.facts.dtype == "bfloat16"
    assert np.array_equal(high.documents, low.documents)
    assert np.array_equal(high.positions, low.positions)
    a, b = high.matrix(1), low.matrix(1)
    rows = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
    assert 1e-3 < np.median(rows) < 0.5
    other = np.linalg.norm(a - np.roll(b, 1, axis=0), axis=1) / np.linalg.norm(a, axis=1)
    assert np.median(rows) < 0.5 * np.median(other)


def test_a_checkpoint_that_a_tool_quantized_is_a_precision(tmp_path):
    model = write_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    quantized = tmp_path / "gptq"
    write_gptq(quantized, model)
    high, low, calibrated = (tmp_path / name for name in ("f32", "gptq-rows", "calibrated"))
    (tmp_path / "texts.txt").write_text("The capital of France is Paris.\n" * 3)
    for output, more in (
        (high, ()),
        (low, ("--quantized", quantized)),
        (calibrated, ("--scheme", "gptq-g32", "--calibration", tmp_path / "texts.txt")),
    ):
        ran = extract(model, output, *more)
        assert ran.code == 0, ran.err
    high, low, calibrated = map(open_activations, (high, low, calibrated))
    assert low.facts.scheme == "quantized"
    assert len(low.facts.quantized_sha256) == len(calibrated.facts.calibration_sha256) == 64
    x = high.matrix(1)
    for found in (low, calibrated):
        assert np.array_equal(found.positions, high.positions)
        moved = np.linalg.norm(found.matrix(1) - x, axis=1) / np.linalg.norm(x, axis=1)
        assert 1e-3 < np.median(moved) < 1
    assert not [*calibrated.folder.glob(".calibration")]
    given = ("extract", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path / "o")
    line = refusal(*given, "--quantized", quantized, "--site", "z")
    assert "moves scales between matrices, so that z has" in line


class Stop(Exception):
    """What cuts a run off."""


@pytest.fixture
def after(monkeypatch):
    """Cuts a run off before it writes another than the first so many shards."""
    real = shards.replace_file

    def stop(count, error):
        written = []

        def replace_file(path, content):
            if len(written) == count:
                raise error
            written.append(path.name)
            real(path, content)

        monkeypatch.setattr(shards, "replace_file", replace_file)
        return written

    return stop


def test_an_interrupted_extraction_goes_on_at_the_next_shard(whole, model, tmp_path, after):
    after(2, KeyboardInterrupt())
    ran = extract(model, tmp_path)
    assert ran.code == 2
    assert "interrupted" in ran.err
    said = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert sum(one is not None for one in said) == 2
    written = after(99, Stop())
    assert extract(model, tmp_path).code == 0
    assert written == [path.name for path in sorted(whole.glob("shard*"))[2:]]
    assert contents(tmp_path) == contents(whole), "the bits of a run that was not cut off"


def test_a_shard_that_fails_its_checksum_is_made_again(whole, model, tmp_path, after):
    assert extract(model, tmp_path).code == 0
    for name in ("shard-00000.safetensors", "shard-00002.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-9])
    written = after(99, Stop())
    ran = extract(model, tmp_path)
    assert ran.code == 0
    assert written == ["shard-00000.safetensors", "shard-00002.safetensors"]
    assert ran.err.count("note") == 1
    assert "shard-00000.safetensors, shard-00002.safetensors in" in ran.err
    assert contents(tmp_path) == contents(whole)


def test_what_is_finished_is_not_made_again(model, tmp_path, after):
    assert extract(model, tmp_path).code == 0
    written = after(0, Stop())
    assert extract(model, tmp_path).code == 0
    assert written == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--scheme", "bf16"), "their scheme is f32, and bf16 is asked for"),
        (("--layers", "1"), "their layers is 0,1, and 1 is asked for"),
        (("--site", "mlp_out"), "their site is resid, and mlp_out is asked for"),
        (("--stride", "8"), "their windows is"),
        (("--positions", "last"), "is asked for. give another --output, or remove that folder"),
        (("--texts", "shipped"), "their texts is demo, and shipped is asked for"),
    ],
)
def test_a_folder_of_other_activations_is_refused_and_kept(whole, model, more, said):
    before = contents(whole)
    words = [str(word) for word in SMALL]
    if more[0] in words:
        del words[words.index(more[0]) : words.index(more[0]) + 2]
    given = ("extract", "--model", model, "--device", "cpu", *words, "--output", whole)
    assert said in refusal(*given, *more)
    assert contents(whole) == before


def test_another_model_is_refused_by_its_weights(whole, tmp_path):
    other = write_model(tmp_path / "model", seed=7)
    assert "has other activations: their model is" in refusal(
        "extract", "--model", other, "--device", "cpu", *SMALL, "--output", whole
    )


def test_two_runs_into_one_folder_are_refused(model, tmp_path):
    with alone_in(tmp_path):
        line = refusal("extract", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path)
    assert "is being written to by another run. wait until" in line
    assert extract(model, tmp_path).code == 0


def test_a_full_disk_loses_nothing(model, tmp_path, after, monkeypatch):
    full = jaxalign.errors.InputError("shard-00001 cannot be written (No space left)", "make room")
    after(1, full)
    ran = extract(model, tmp_path)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "No space left" in ran.err
    said = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert said[0] is not None
    assert said[1] is None
    assert not [*tmp_path.glob(".shard*")]


def test_too_little_room_is_said_before_anything_is_computed(model, tmp_path, monkeypatch):
    from jaxalign.commands import extract as command

    class Little:
        free = 1000

    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: Little)
    monkeypatch.setattr(command, "extract", None)
    output = tmp_path / "new"
    line = refusal("extract", "--model", model, "--device", "cpu", *SMALL, "--output", output)
    assert "GB more, and 1e-06 GB are free there" in line
    assert not output.exists()


def test_an_estimate_writes_nothing_and_says_the_bytes(whole, model, tmp_path):
    ran = extract(model, tmp_path / "new", "--estimate")
    assert ran.code == 0
    assert not (tmp_path / "new").exists()
    found = open_activations(whole)
    size = sum((whole / shard.file).stat().st_size for shard in found.shards)
    assert found.facts.size == pytest.approx(size, rel=0.05)
    assert f"{found.facts.size / 1e9:.3g} GB of float32 in {len(found.shards)} shards" in ran.out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--layers", "7"), "the model has no resid after L7. give 0 … 2"),
        (("--layers", "0,0"), "--layers: expected numbers, each once"),
        (("--layers", "x"), "'x' is no whole number"),
        (("--site", "pattern"), "--site 'pattern' is unknown"),
        (("--site", "embed", "--layers", "0"), "--layers has no use beside --site embed"),
        (("--scheme", "int4"), "scheme"),
        (("--scheme", "awq-g16", "--site", "z"), "moves scales between matrices, so that z has"),
        (("--scheme", "bf16", "--calibration", "f"), "no scheme of bf16 is chosen by texts"),
        (("--scheme", "bf16", "--quantized", "f"), "--scheme and --quantized are both given"),
        (("--quantized", "missing"), "there is no such folder or .gguf file"),
        (("--stride", "99"), "stride is 99, expected from 1 to 16"),
    ],
)
def test_what_cannot_be_extracted_is_refused(model, tmp_path, more, said):
    given = ("extract", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path / "o")
    assert said in refusal(*given, *more)
    assert not (tmp_path / "o").exists()


def test_too_little_memory_for_a_window_is_refused(model, tmp_path):
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(load(locate(str(model))).params))
    given = ("extract", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path / "o")
    said = refusal(*given, "--memory-gb", f"{(weights + 1000) / 1e9:.9f}")
    assert re.search(r"one window of 16 tokens takes .* are left of --memory-gb", said)


def test_windows_longer_than_the_context_are_refused(model, tmp_path):
    given = ("extract", "--model", model, "--device", "cpu", "--output", tmp_path / "o")
    assert "window is 999999" in refusal(*given, "--texts", "demo", "--window", "999999")


def test_texts_without_enough_tokens_are_refused_and_short_ones_are_read(model, tmp_path):
    given = ("extract", "--model", model, "--device", "cpu", "--output", tmp_path / "o")
    for name, text, said in (
        ("none.txt", "", "none.txt has no text"),
        ("blank.txt", " \n\n ", "blank.txt has no text"),
        ("one.txt", "a", "has 2 tokens, expected a document"),
    ):
        (tmp_path / name).write_text(text)
        assert said in refusal(*given, "--texts", tmp_path / name)
    assert "is no file" in refusal(*given, "--texts", tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("The capital of France is Paris.")
    ran = run(*given, "--texts", tmp_path / "short.txt", "--window", 64)
    assert ran.code == 0, ran.err
    found = open_activations(tmp_path / "o")
    assert 2 < found.tokens < 64
    assert (found.positions == np.arange(1, found.tokens + 1)).all()


def test_an_output_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    given = ("extract", "--model", model, "--device", "cpu", *SMALL)
    assert "file" in refusal(*given, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_manifest_that_cannot_be_read_is_not_written_over(whole, model, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    given = ("extract", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path)
    assert "manifest.json is not JSON" in refusal(*given)
    assert (tmp_path / "manifest.json").read_text() == "{"


def test_activations_that_leave_a_precisions_range_are_told(tmp_path):
    from tiny_run import write_loud_model

    loud = write_loud_model(tmp_path / "loud")
    ran = extract(loud, tmp_path / "o", "--scheme", "f16")
    assert ran.code == 2
    assert "left the precision's range" in ran.err
    found = open_activations(tmp_path / "o")
    assert not all(shard.finite for shard in found.shards)


def test_layers_by_default_are_every_fourth_and_the_last_two():
    assert ExtractOptions().layers_of(48) == (0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 46, 47)
    assert ExtractOptions().layers_of(6) == (0, 4, 5)
    assert ExtractOptions().layers_of(1) == (0,)
    assert ExtractOptions(layers=(5, 2)).layers_of(6) == (2, 5)


def test_a_lock_ends_with_its_holder(tmp_path):
    with contextlib.suppress(Stop), alone_in(tmp_path):
        raise Stop
    with alone_in(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(jaxalign.errors.InputError, match="cannot be written to"),
        alone_in(tmp_path / "file"),
    ):
        raise AssertionError(errno.ENOTDIR)

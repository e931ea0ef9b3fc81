"""Activations on disk: what was written is read, and what does not belong together is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.checkpoints.activations import (
    ActivationFacts,
    open_activations,
    write_manifest,
    write_shard,
)
from jaxalign.errors import InputError

LAYERS, D, N = (0, 3), 5, 23
OUTSIDE = {"file": "../x", "rows": 10, "sha256": "", "finite": True}


def facts(**more):
    own = {
        "model": "m", "revision": None, "weights_sha256": "w", "scheme": "bf16",
        "quantized_sha256": None, "calibration_sha256": None, "site": "resid", "layers": LAYERS,
        "width": D, "dtype": "bfloat16", "texts": "demo", "texts_sha256": "t", "documents": 3,
        "windows": 6, "tokens": N, "window": 4, "stride": 4, "bos": None, "positions": "all",
        "shard_tokens": 10, "batch": 2, "device": "cpu", "versions": ("1", "2"),
    }  # fmt: skip
    return ActivationFacts(**{**own, **more})


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    values = {n: np.asarray(jnp.asarray(rng.normal(size=(N, D)), jnp.bfloat16)) for n in LAYERS}
    return values, np.arange(N) // 8, np.arange(N) % 8


@pytest.fixture
def folder(arrays, tmp_path):
    values, documents, positions = arrays
    said, shards = facts(), []
    for number in range(said.shard_count):
        part = slice(*said.rows_of(number))
        rows = {layer: value[part] for layer, value in values.items()}
        shards.append(write_shard(tmp_path, number, rows, documents[part], positions[part]))
    write_manifest(tmp_path, said, shards)
    return tmp_path


def change(folder, **more):
    """Write the manifest with other facts, or with another top level where a key is there."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in more.items():
        if name in content:
            content[name] = value
        else:
            content["facts"][name] = value
    path.write_text(json.dumps(content))


def test_rows_are_those_that_were_written_in_any_order_and_number(folder, arrays):
    values, documents, positions = arrays
    found = open_activations(folder, check=True)
    assert (found.facts, found.layers, found.tokens) == (facts(), LAYERS, N)
    chosen = np.random.default_rng(1).integers(0, N, 60)
    assert np.array_equal(found.rows(3, chosen), values[3][chosen].astype(np.float32))
    assert found.rows(3, []).shape == (0, D)
    assert np.array_equal(found.matrix(0, 13), values[0][:13].astype(np.float32))
    assert found.matrix(0, limit=99).dtype == np.float32
    assert np.array_equal(found.documents, documents)
    assert np.array_equal(found.positions, positions)
    for wrong in (-1, N):
        with pytest.raises(IndexError):
            found.rows(0, [wrong])
    with pytest.raises(InputError, match=r"has no layer 1. give one of 0, 3"):
        found.matrix(1)


def test_a_layer_stands_where_an_array_stands(folder, arrays):
    """``dictionaries.fit`` reads arrays and files by the same two things."""
    values = arrays[0][3].astype(np.float32)
    kept = np.array([22, 1, 5, 17])
    for own, expected in ((None, values), (kept, values[kept])):
        source = open_activations(folder).source(3, own)
        assert source.shape == expected.shape
        assert np.array_equal(source[1:3], expected[1:3])
        assert np.array_equal(source[np.array([3, 0, 3])], expected[[3, 0, 3]])


def test_rows_are_read_where_they_are(folder):
    """What is kept of an open folder is maps of its files."""
    found = open_activations(folder)
    arrays = [one for kept in found._maps.values() for one in kept.values()]
    assert len(arrays) == 3 * 4
    assert not any(one.flags.owndata for one in arrays)
    base = arrays[0]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


def test_a_changed_shard_is_found_by_its_checksum(folder):
    path = folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = open_activations(folder)  # its shapes are right
    with pytest.raises(InputError, match=r"shard-00001.safetensors has another checksum"):
        found.check()
    with pytest.raises(InputError, match=r"shard-00001.safetensors has another checksum"):
        open_activations(folder, check=True)


def test_a_truncated_or_missing_shard_is_named_at_opening(folder):
    path = folder / "shard-00001.safetensors"
    whole = path.read_bytes()
    for part in (whole[:-1], whole[:40], b""):
        path.write_bytes(part)
        with pytest.raises(InputError, match=r"shard-00001.safetensors is damaged"):
            open_activations(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00001.safetensors is missing. run jaxalign ex"):
        open_activations(folder)


def test_a_shard_of_other_layers_or_rows_is_named(folder, arrays):
    values, documents, positions = arrays
    write_shard(folder, 2, {0: values[0][:3]}, documents[:3], positions[:3])
    with pytest.raises(InputError, match=r"00002.*\"layer.3\" is not there, and manifest.json"):
        open_activations(folder)
    rows = {layer: value[:4] for layer, value in values.items()}
    write_shard(folder, 2, rows, documents[:4], positions[:4])
    with pytest.raises(InputError, match=r"\"layer.0\" is BF16 \[4, 5\], and .* BF16 \[3, 5\]"):
        open_activations(folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": "jaxalign.activations/2"}, "is of version '2', and this program reads 1"),
        ({"format": "jaxalign.features/1"}, "is of another format than jaxalign.activations"),
        ({"tokens": 33}, "shard 2 is shard-00002.safetensors of 3 rows, expected .* of 10"),
        ({"tokens": 24}, "shard 2 is shard-00002.safetensors of 3 rows, expected .* of 4"),
        ({"tokens": 20}, "expected a list of 2"),
        ({"tokens": "23"}, 'tokens is "23", expected a whole number above 0'),
        ({"tokens": True}, "tokens is true, expected a whole number"),
        ({"width": 6}, r'"layer.0" is BF16 \[10, 5\], and manifest.json says BF16 \[10, 6\]'),
        ({"layers": [0, 2]}, '"layer.2" is not there'),
        ({"layers": [3, 0]}, "expected whole numbers, each once, rising"),
        ({"dtype": "float32"}, r'"layer.0" is BF16 \[10, 5\], and manifest.json says F32'),
        ({"dtype": "int8"}, 'dtype is "int8", expected float32 or bfloat16 or float16'),
        ({"colour": 1}, '"colour" is not known'),
        ({"shards": None}, "shards is null, expected a list"),
        ({"shards": [OUTSIDE]}, "shard 0 is ../x of 10 rows, expected shard-00000"),
        ({"shards": [{"file": "x"}]}, '"rows" is missing'),
        ({"shards": [7]}, "has 7, expected an object"),
        ({"facts": []}, r"has \[\], expected an object"),
    ],
)  # fmt: skip
def test_a_manifest_that_lies_is_refused(folder, more, said):
    change(folder, **more)
    with pytest.raises(InputError, match=said):
        open_activations(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "a", "format": "b"}', "\x00"])
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest.json is (not JSON|of another format)"):
        open_activations(folder)


def test_a_folder_without_a_manifest_is_none_of_activations(tmp_path):
    with pytest.raises(InputError, match=r"manifest.json is missing. give a folder that jaxalign"):
        open_activations(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"manifest.json cannot be read"):
        open_activations(tmp_path / "file")


def test_an_unfinished_folder_says_how_far_it_is(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][1] = None
    change(folder, shards=content["shards"])
    with pytest.raises(InputError, match=r"has 2 of 3 shards: .* run jaxalign extract again"):
        open_activations(folder)


def test_facts_survive_their_file(folder):
    said = facts(bos=0, revision="main", notes=("a note",))
    shards = open_activations(folder).shards
    write_manifest(folder, said, shards)
    again = open_activations(folder)
    assert (again.facts, again.shards) == (said, shards)
    assert dataclasses.replace(said, scheme="nf4") != again.facts

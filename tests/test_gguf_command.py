"""Claim: the command takes GGUF files alone and beside their originals, and refuses in one line."""

import json

import gguf
import numpy as np
import pytest
from gguf_files import WIDE, model_of, original_of, write_case
from llama_gguf import TOKENIZER
from tiny_run import run, without_progress

PROMPTS = {"cats": [{"prompt": "the in", "target": "re"}], "reference": ["in"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts; a file of Qwen 2 in a mixture of K-quants, and its original."""
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    kinds = {"": "Q4_K", "blk.1.ffn_down.weight": "Q6_K"}
    write_case(folder / "m.gguf", "qwen2", kinds, **WIDE)
    original_of(folder / "original", model_of("qwen2", **WIDE), folder / "m.gguf")
    return folder


def schemes(folder, *arguments):
    where = ("--prompts", folder / "prompts.json", "--output", folder / "out.json")
    return run("schemes", *where, "--schemes", "f16", *arguments)


def test_a_file_alone_is_dequantized_and_the_first_line_says_so(folder):
    ran = schemes(folder, "--model", folder / "m.gguf")
    assert ran.code == 0, ran.err
    said = "weights dequantized to f32 from GGUF blocks: matrices 13 in Q4_K, 1 in F32, 1 in Q6_K"
    assert said in ran.out.splitlines()[0]


def beside(folder, file):
    """The heads study of a file beside the original."""
    names = ("--model", folder / "original", "--quantized", file, "--repair", "none")
    where = ("--prompts", folder / "prompts.json", "--output", folder / "heads.json")
    return run(*names, *where, "--use-all-prompts", "--device", "cpu")


def test_beside_its_original_its_bits_are_counted_as_the_file_has_them(folder):
    ran = beside(folder, folder / "m.gguf")
    assert ran.code == 0, ran.err
    result = json.loads((folder / "heads.json").read_text())
    numbers, down = 2 * (3 * 256 * 512 + 2 * 256 * 256 + 2 * 128 * 256), 256 * 512
    bits = (4.5 * (numbers - down) + 6.5625 * down) / numbers
    assert result["bits"]["quantized"] == pytest.approx(bits)
    assert any("GGUF, mostly Q4_K" in note for note in result["provenance"]["notes"])


def without_tokenizer(path):
    write_case(path, "qwen2", tokenizer={})


def cut_short(path):
    write_case(path, "gemma2")
    path.write_bytes(path.read_bytes()[:-100])


def missing(path):
    write_case(path, "phi3", leave_out=("blk.0.attn_qkv.weight",))


def shapes(path):
    write_case(path, "qwen3", changes={"qwen3.attention.head_count_kv": 4})


def split(path):
    write_case(path, "qwen2", tokenizer=TOKENIZER | {"pre": "of-tomorrow"})


def unknown(path):
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()


def doubled(path):
    write_case(path, "qwen2")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight", 1))


BAD = {
    without_tokenizer: "tokenizer.ggml.model is 'none', expected 'gpt2' (byte-level BPE) or",
    cut_short: "is damaged or no GGUF file",
    missing: "tensor 'model.layers.0.self_attn.qkv_proj.weight' is missing",
    shapes: "k_proj.weight' has shape (32, 32), expected (64, 32)",
    split: "tokenizer.ggml.pre is 'of-tomorrow', expected one of default, gpt-2,",
    unknown: "is of the architecture 'mamba', expected one of gptneox, llama, qwen2,",
    doubled: "two tensors are called 'blk.0.ffn_up.weight'",
}


@pytest.mark.parametrize("write", BAD)
def test_a_bad_file_is_refused_in_one_line(folder, tmp_path, write):
    write(tmp_path / "bad.gguf")
    ran = schemes(folder, "--model", tmp_path / "bad.gguf")
    assert ran.code == 2
    line = without_progress(ran.err).strip().replace('"', "'")
    assert BAD[write] in line
    assert "\n" not in line


@pytest.mark.parametrize("write", [cut_short, missing, unknown, doubled])
def test_so_is_one_beside_an_original(folder, tmp_path, write):
    write(tmp_path / "bad.gguf")
    ran = beside(folder, tmp_path / "bad.gguf")
    assert ran.code == 2
    line = without_progress(ran.err).strip()
    assert line.startswith("jaxalign: error")
    assert "\n" not in line

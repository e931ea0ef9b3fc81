"""Claims about ``--quantized``: an existing quantized checkpoint beside its original."""

import numpy as np
import pytest
from packed_files import write_gptq
from tiny_run import refusal, study, write_model, write_prompts

from jaxalign.studies.heads import HEADS

FEW = ("--ablations", "zero", "--noise-draws", 0, "--use-all-prompts", "--no-figures")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    model = write_model(folder / "model", hidden_size=64, intermediate_size=128)
    write_gptq(folder / "gptq", model)
    return model, folder / "gptq", write_prompts(folder / "prompts.json")


@pytest.mark.slow
def test_an_audit_runs_the_study_on_the_files_weights_beside_other_schemes(inputs, tmp_path):
    model, quantized, prompts = inputs
    output = tmp_path / "experiment.json"
    more = ("--quantized", quantized, "--schemes", "f16", "--repair", "quantized", *FEW)
    ran = study(model, prompts, output, *more)
    assert ran.code == 0, ran.err
    result = HEADS.read(output)
    assert result.precisions == ("quantized", "f16")
    drift, f16 = (
        np.mean([p.precisions[name].drift for p in result.prompts]) for name in result.precisions
    )
    assert 0.01 < drift < 1  # four bits
    assert f16 < drift / 10
    notes = result.provenance.notes
    assert any("GPTQ" in note and str(quantized) in note for note in notes)
    assert any("largest relative error of a matrix" in note for note in notes)
    assert {repair.precision for repair in result.repairs} == {"quantized"}


@pytest.mark.slow
def test_an_audit_honours_a_repair_that_leaves_it_out(inputs, tmp_path):
    model, quantized, prompts = inputs
    output = tmp_path / "experiment.json"
    more = ("--quantized", quantized, "--repair", "none", *FEW)
    assert study(model, prompts, output, *more).code == 0
    result = HEADS.read(output)
    assert not result.repairs
    assert 0.01 < np.mean([p.precisions["quantized"].drift for p in result.prompts]) < 1
    assert any("GPTQ" in note and str(quantized) in note for note in result.provenance.notes)


def test_an_audit_without_its_original_is_refused(inputs, tmp_path):
    _, quantized, prompts = inputs
    line = refusal(
        "--device", "cpu", "--prompts", prompts, "--quantized", quantized,
        "--output", tmp_path / "e.json",
    )  # fmt: skip
    assert "--quantized needs the original" in line


def test_an_audit_beside_another_model_is_refused(inputs, tmp_path, tmp_path_factory):
    _, quantized, prompts = inputs
    other = write_model(tmp_path_factory.mktemp("other") / "model", hidden_size=32)
    line = refusal(
        "--device", "cpu", "--model", other, "--prompts", prompts, "--quantized", quantized,
        "--output", tmp_path / "e.json",
    )  # fmt: skip
    assert "hidden_size" in line

"""Claims about the study of several checkpoints of one training, and of any list of schemes."""

import numpy as np
import pytest
from tiny_run import edit_weights, refusal, study, write_model, write_prompts

from jaxalign.studies.heads import HEADS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_model(folder / "run" / "step10")
    later = write_model(folder / "run" / "step100")

    def grow(tensors):
        for name in tensors:
            if name.endswith("dense.weight"):
                tensors[name] = (tensors[name] * np.float16(3)).astype(np.float16)

    edit_weights(later, grow)
    return folder / "run", write_prompts(folder / "prompts.json")


@pytest.mark.slow
def test_every_revision_has_a_result_and_a_figure_shows_them_all(inputs, tmp_path):
    run, prompts = inputs
    output = tmp_path / "experiment.json"
    ran = study(
        run, prompts, output, "--revisions", "step10,step100", "--schemes", "int4-g8@bf16",
        "--use-all-prompts", "--ablations", "zero", "--noise-draws", 0,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    first, second = (
        HEADS.read(tmp_path / f"experiment.{name}.json") for name in ("step10", "step100")
    )
    assert first.precisions == second.precisions == ("int4-g8@bf16",)
    importance = [np.abs(r.prompts[0].zero_importance).max() for r in (first, second)]
    assert importance[1] > 1.5 * importance[0]  # its heads write three times as much
    assert (tmp_path / "figures" / "training.png").stat().st_size > 10_000
    drift = first.prompts[0].precisions["int4-g8@bf16"].drift
    assert np.isfinite(drift).all()
    assert drift.min() > 1e-4
    assert {repair.precision for repair in second.repairs} == {"int4-g8@bf16"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--revisions", "step10"), "two or more"),
        (("--revisions", "step10,step10"), "each once"),
        (("--revisions", "step10,step20"), "no folder 'step20'"),
        (("--revisions", "step10,step100", "--revision", "main"), "exclude each other"),
        (("--schemes", "f16,f16"), "more than once"),
        (("--schemes", "f32"), "compared with"),
        (("--schemes", "nf4", "--repair", "f16"), "not among the schemes"),
        (("--schemes", "nf4", "--repair", ","), "names no scheme"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(inputs, tmp_path, more, said):
    run, prompts = inputs
    model = run if "--revisions" in more else run / "step10"
    assert said in refusal(
        "--device", "cpu", "--model", model, "--prompts", prompts,
        "--output", tmp_path / "e.json", *more,
    )  # fmt: skip

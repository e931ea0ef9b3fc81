"""The library's page says what is so: its examples run, print what it shows, and equal loops."""

import contextlib
import inspect
import io
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign
from jaxalign import model as model_room

FOLDER = Path(__file__).parent.parent / "docs"
PAGE = (FOLDER / "api.md").read_text()
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
# The printed digits may end on the other side of a rounding on another machine.
LAST_DIGITS = 1.5


def examples():
    """Code and what it prints, by the heading that it stands under."""
    found = {}
    parts = re.split(r"^##+ (.*)$", PAGE, flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        blocks = re.findall(r"^```(?:python)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for number, (code, printed) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
            found[f"{heading}, {number + 1}"] = code, printed
    return found


EXAMPLES = examples()
ABLATION = "All heads in five lines, 1"
METRIC = "A metric of your own, 1"
GATES = "Its gradient, 1"
PATCHING = "Patching from a corrupted prompt, 1"
STATE_DICT, TRANSFORMED = (
    f"On your own parameters, in your own transformations, {number}" for number in (1, 2)
)
RAN = {}


def ran(name):
    """The names that an example leaves behind, after it printed what the page shows."""
    if name not in RAN:
        if name == STATE_DICT:
            pytest.importorskip("transformers")
            pytest.importorskip("torch")
        code, shown = EXAMPLES[name]
        names, out = {}, io.StringIO()
        # Users' code: it runs under users' settings, not under the tests' strict ones.
        with (
            jax.numpy_rank_promotion("allow"),
            jax.numpy_dtype_promotion("standard"),
            contextlib.redirect_stdout(out),
        ):
            exec(compile(code, f"docs/api.md, {name}", "exec"), names)
        check_printed(out.getvalue(), shown)
        RAN[name] = names
    return RAN[name]


def check_printed(printed, shown):
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), printed
    for found, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        _, _, decimals = expected.partition(".")
        assert abs(float(found) - float(expected)) <= LAST_DIGITS * 10 ** -len(decimals), printed


def margins_of_single_runs(run, edit, readout):
    """A loop of ``forward``, one row of ``edit`` at a time."""
    [site] = edit.sites

    @jax.jit
    def single(mask):
        one = jaxalign.Edit(replace(site, mask=mask))
        params, tokens, lengths, config = run
        out = jaxalign.forward(params, tokens, config, lengths=lengths, edit=one, last_only=True)
        return readout(out.logits)

    return np.stack([single(mask) for mask in site.mask])


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_and_prints_what_the_page_shows(name):
    ran(name)


def test_all_heads_take_five_lines():
    code, _ = EXAMPLES[ABLATION]
    start = code.index("model = load")
    lines = code[start : code.index("\n\n", start)].splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 100


def test_all_heads_at_once_equal_a_loop_over_heads():
    names = ran(ABLATION)
    model = names["model"]
    run = (model.params, *names["prompts"], model.config)

    def readout(logits):
        return jaxalign.logit_difference(logits, names["answers"])

    expected = margins_of_single_runs(run, names["zero"], readout)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(names["m"][1:], expected, atol=1e-5 * scale)
    logits = jaxalign.forward(run[0], run[1], run[3], lengths=run[2], last_only=True).logits
    np.testing.assert_allclose(names["m"][0], readout(logits), atol=1e-5 * scale)


def test_metric_of_your_own_equals_its_definition_on_single_runs():
    names = ran(METRIC)
    run = (names["params"], names["tokens"], names["lengths"], names["config"])
    zero = jaxalign.zero_ablation(6, 8)
    logits = margins_of_single_runs(run, zero, lambda logits: logits)
    clean = jaxalign.forward(run[0], run[1], run[3], lengths=run[2], last_only=True).logits
    p, q = (np.asarray(jax.nn.softmax(jnp.asarray(x)), np.float64) for x in (logits, clean))
    kl = (q * np.log(q / p)).sum(axis=-1)
    found = names["found"]
    np.testing.assert_allclose(found["kl"][1:], kl, atol=1e-5)
    np.testing.assert_allclose(found["city"][1:], p[..., names["cities"]].sum(axis=-1), atol=1e-5)
    assert np.abs(found["kl"][0]).max() < 1e-5, "row 0 is the clean run"


def test_gradient_by_gates_is_the_slope_of_the_margin():
    names = ran(GATES)
    gates, step, margin = jnp.ones((6, 8)), 1e-2, names["margin"]
    for layer, head in ((4, 0), (3, 1), (0, 5)):
        up, down = (margin(gates.at[layer, head].add(sign * step)) for sign in (1, -1))
        slope = float(up - down) / (2 * step)
        assert abs(slope - float(names["gradient"][layer, head])) <= 1e-2 * max(1, abs(slope))


def test_open_gates_are_the_clean_run():
    names = ran(GATES)
    clean = jaxalign.forward(
        names["params"], names["tokens"], names["config"], lengths=names["lengths"], last_only=True
    ).logits
    expected = jaxalign.logit_difference(clean, names["answers"]).mean()
    assert abs(float(names["margin"](jnp.ones((6, 8))) - expected)) <= 1e-4


def patching_run():
    names = ran(PATCHING)
    run = names["params"], names["corrupted"], names["lengths"], names["config"]
    captured = jaxalign.forward(
        run[0], names["clean"], run[3], lengths=run[2], capture=("embed", "resid")
    ).activations
    return names, run, jnp.stack([captured["embed"], *captured["resid"]])


def test_patching_map_equals_a_loop_over_steps_and_positions():
    names, run, stream = patching_run()
    masks = jaxalign.residual_patch_masks(names["L"], names["S"])
    edit = jaxalign.Edit(jaxalign.Replace("resid", masks, stream))
    expected = margins_of_single_runs(run, edit, names["margin"])
    np.testing.assert_allclose(names["m"][1:], expected[:, 0], atol=1e-5 * np.abs(expected).max())


def test_patching_every_position_at_the_embedding_is_the_clean_run():
    names, (*run, config), stream = patching_run()
    mask = np.zeros((1, names["L"] + 1, 1, 1, 1), bool)
    mask[:, 0] = True
    edit = jaxalign.Edit(jaxalign.Replace("resid", mask, stream))
    [m] = jaxalign.jit(lambda *run: jaxalign.sweep(*run, config, [edit], names["margin"]))(*run)
    np.testing.assert_allclose(m[1, 0], names["m_clean"], atol=1e-4)
    np.testing.assert_allclose(m[0, 0], names["m"][0], atol=1e-4)


def test_patching_map_has_the_ends_that_the_page_says_it_must_have():
    names = ran(PATCHING)
    restored = np.asarray(names["restored"])
    [differs] = np.flatnonzero(np.asarray(names["clean"] != names["corrupted"])[0])
    assert differs == 9
    np.testing.assert_allclose(restored[0, differs], 1, atol=1e-4)
    np.testing.assert_allclose(restored[-1, -1], 1, atol=1e-4)
    np.testing.assert_allclose(restored[:, :differs], 0, atol=1e-4)
    np.testing.assert_allclose(restored[-1, :-1], 0, atol=1e-4)
    assert restored[1, -1] > 0.9, "after the first block it has moved to the last position"


def test_stacked_parameters_equal_one_call_each():
    names = ran(TRANSFORMED)
    for i, found in enumerate(names["every_seed"]):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], names["stacked"])
        np.testing.assert_allclose(found, names["importance"](own), atol=1e-5)


def test_masks_may_be_arguments_and_vmap_may_run_over_them():
    names = ran(TRANSFORMED)
    params, config = names["params"], names["config"]
    masks = names["zero"].sites[0].mask

    def importance(masks):
        edit = jaxalign.Edit(jaxalign.HeadEdit(masks, names["zero"].sites[0].value))
        run = params, names["tokens"], names["lengths"], config
        [m] = jaxalign.sweep(*run, [edit], lambda x: jaxalign.logit_difference(x, names["targets"]))
        return m[:1] - m[1:]

    halves = jax.jit(jax.vmap(importance))(jnp.asarray(masks.reshape(2, 4, *masks.shape[1:])))
    expected = names["importance"](params)
    np.testing.assert_allclose(halves.reshape(8, 5), expected, atol=1e-5)


def test_sweep_itself_can_be_jitted_with_the_static_arguments_that_are_named():
    names = ran(TRANSFORMED)
    run = names["params"], names["tokens"], names["lengths"], names["config"], [names["zero"]]
    static = ("config", "readout", "engine", "scheme")
    [m] = jaxalign.jit(jaxalign.sweep, static_argnames=static)(*run, margin_of_first)
    logits = jaxalign.forward(*run[:2], run[3], lengths=run[2], last_only=True).logits
    np.testing.assert_allclose(m[0], margin_of_first(logits), atol=1e-5)


def margin_of_first(logits):
    return logits[:, 0] - logits[:, 1]


def test_signatures_are_those_of_the_page():
    for name in ("sweep", "forward"):
        [shown] = re.findall(rf"`{name}\((params, .*?)\)`", PAGE, re.DOTALL)
        wanted = re.sub(r"=[^,]+", "", " ".join(shown.split())).replace("*, ", "").split(", ")
        assert list(inspect.signature(getattr(jaxalign, name)).parameters) == wanted


def test_names_of_the_page_are_those_that_the_package_exports():
    table = PAGE[PAGE.index("### The names") : PAGE.index("### What stays")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == sorted(jaxalign.__all__)
    assert all(hasattr(jaxalign, name) for name in names)
    assert all(hasattr(model_room, name) for name in model_room.__all__)


def test_leaves_of_the_page_are_those_of_the_parameters():
    config = jaxalign.ModelConfig(97, 2, 4, 32, 64, rotary_dims=2)
    sizes = {"V": 97, "L": 2, "D": 32, "F": 64, "2": 2}
    paths, _ = jax.tree_util.tree_flatten_with_path(model_room.param_shapes(config))
    leaves = {".".join(key.name for key in path): leaf.shape for path, leaf in paths}
    shown = {}
    for names, shape in re.findall(r"\| (`[a-z][^|]*`) \| `\[([^\]|]+)\]`", PAGE):
        first, *more = re.findall(r"`([\w.]+)`", names)
        for name in (first, *(first.rsplit(".", 1)[0] + more_name for more_name in more)):
            if name in leaves:
                shown[name] = tuple(sizes[letter] for letter in shape.split(", "))
    assert shown == leaves


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", PAGE))
def test_every_link_leads_somewhere(link):
    assert (FOLDER / link).exists()

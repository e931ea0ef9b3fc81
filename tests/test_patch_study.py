"""The study of patching: its maps by single runs, its controls, what it refuses, its command."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run, write_model

import jaxalign
from jaxalign.devices.mesh import make_mesh
from jaxalign.edits import Edit, Replace, knock_out
from jaxalign.engine.patching import value_at
from jaxalign.errors import InputError
from jaxalign.measures.metrics import answer_weights, answers_difference
from jaxalign.measures.screen import Agreement
from jaxalign.model import forward
from jaxalign.prompts import PairSet, PairText
from jaxalign.studies.patch import PATCH, PatchOptions
from jaxalign.studies.patch.figures import FIGURES, _roles
from jaxalign.studies.patch.findings import chosen, mapped, screened, too_few
from jaxalign.studies.patch.groups import group
from jaxalign.studies.patch.programs import _random
from jaxalign.studies.patch.result import ROLES, PatchResult, Screen
from jaxalign.studies.patch.study import _none_kept
from jaxalign.study import codec

TEXTS = (
    PairText("The capital of France is", "The capital of Japan is", (" Paris",), (" Tokyo",)),
    PairText(
        "The capital of Italy is", "The capital of Spain is", (" Rome", " Milan"), (" Madrid",)
    ),
    PairText(
        "When James and Peter met at the park,",
        "When James and Sarah met at the lake,",
        (" and",),
        (" or", " the"),
    ),
)
PAIRS = PairSet({"capital": TEXTS[:2], "other": TEXTS[2:]})
LONGER = "The capital of the whole of Japan is"
MADE = json.loads((Path(__file__).parents[1] / "results/demo/patch.json").read_text())
EVERYTHING = {"use_all_prompts": True, "least_gap": 1e-6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("patch"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def model(folder):
    return jaxalign.load(folder)


@pytest.fixture(scope="module")
def texts(model):
    """The pairs, so that this random model prefers the answers after the clean prompt."""

    def turned(text):
        one = Alone(model, text)
        if one.metric("clean") > one.metric("corrupted"):
            return text
        return replace(text, answers=text.wrong_answers, wrong_answers=text.answers)

    return tuple(map(turned, TEXTS))


@pytest.fixture(scope="module")
def pairs(texts):
    return PairSet({"capital": texts[:2], "other": texts[2:]})


@pytest.fixture(scope="module")
def result(model, pairs):
    options = PatchOptions(
        sweep=("resid", "heads", "knockout"), direction=("denoising", "noising"), window=1,
        **EVERYTHING,
    )  # fmt: skip
    return PATCH(model, pairs, options, progress=False)


METRIC = jax.jit(
    lambda params, tokens, edit, config: (
        forward(params, tokens, config, edit=edit, last_only=True).logits
    ),
    static_argnums=3,
)


class Alone:
    """One pair by itself, run without padding and without a batch."""

    def __init__(self, model, text):
        self.model, self.text = model, text
        names = ("clean", "corrupted")
        self.tokens = {n: model.encode([getattr(text, n)], special=True)[0] for n in names}
        first = lambda answers: [int(model.encode([a])[0][0, 0]) for a in answers]  # noqa: E731
        self.answers = [
            jnp.asarray(part)
            for part in answer_weights([first(text.answers)], [first(text.wrong_answers)])
        ]

    def metric(self, side, edit=None):
        found = METRIC(self.model.params, self.tokens[side], edit, self.model.config)
        return float(answers_difference(found, *self.answers)[0])

    def value(self, side, point):
        out = forward(
            self.model.params, self.tokens[side], self.model.config, capture=("embed", point)
        )
        return value_at(out, point)

    def effect(self, changed, edit):
        clean, corrupted = self.metric("clean"), self.metric("corrupted")
        moved = self.metric(changed, edit)
        away = clean if changed == "clean" else corrupted
        return (moved - away) / (corrupted - clean if changed == "clean" else clean - corrupted)


def test_an_effect_is_the_share_of_the_gap_that_one_exchange_makes_up(model, texts, result):
    alone = [Alone(model, text) for text in texts]
    last = ROLES.index("last") - 1
    for direction, changed, other in (
        ("denoising", "corrupted", "clean"),
        ("noising", "clean", "corrupted"),
    ):
        stream = result.find("resid", direction)
        mask = [np.zeros((3, 1, len(one.tokens["clean"][0]), 1), bool) for one in alone]
        wanted = []
        for one, where in zip(alone, mask, strict=True):
            where[1, :, -1] = True
            wanted.append(
                one.effect(changed, Edit(Replace("resid", where, one.value(other, "resid"))))
            )
        assert stream.columns[-1] == ROLES[last + 1]
        np.testing.assert_allclose(stream.effect[1, -1], np.mean(wanted), rtol=2e-3, atol=2e-4)
        heads = result.find("heads", direction)
        mask = np.zeros((2, 1, 1, 2, 1), bool)
        mask[1, ..., 0, :] = True
        wanted = [o.effect(changed, Edit(Replace("z", mask, o.value(other, "z")))) for o in alone]
        np.testing.assert_allclose(heads.effect[1, 0], np.mean(wanted), rtol=2e-3, atol=2e-4)


def test_both_ends_of_the_stream_hold_by_construction(result):
    for direction in ("denoising", "noising"):
        stream = result.find("resid", direction)
        one_change = result.find("resid", direction, "capital")
        np.testing.assert_allclose(stream.effect[-1, -1], 1, atol=1e-3)
        np.testing.assert_allclose(one_change.effect[0, 3], 1, atol=1e-3)
        np.testing.assert_allclose(one_change.effect[:, :3], 0, atol=1e-3)


def test_a_knock_out_loses_what_the_last_position_read_there(model, texts, result):
    cut = result.find("knockout", task="capital")
    assert cut.columns == ("0 The", "1 capital", "2 of", "3 [France]*", "4 is")
    edges = np.zeros((2, 1, 1, 5, 5), bool)
    edges[1, ..., 4, 3] = True
    wanted = [Alone(model, text).effect("clean", knock_out(edges)) for text in texts[:2]]
    np.testing.assert_allclose(cut.effect[1, 3], np.mean(wanted), rtol=2e-3, atol=2e-4)
    others = np.delete(cut.effect[1], 3).mean()
    np.testing.assert_allclose(cut.control[1, 3], others, rtol=1e-4, atol=1e-5)


def test_the_control_is_as_far_away_and_does_nothing_where_nothing_differs(result):
    rng = np.random.default_rng(0)
    own, other = (jnp.asarray(rng.normal(size=(2, 3, 4, 2, 5)), jnp.float32) for _ in range(2))
    other = other.at[:, :, 0].set(own[:, :, 0])
    keys = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
    found = _random(keys, own, other, "z")
    norms = [np.linalg.norm(x - own, axis=-1) for x in (found, other)]
    np.testing.assert_allclose(*norms, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found[:, :, 0], own[:, :, 0])
    again = _random(keys[1:2], own[:, 1:2, :3], other[:, 1:2, :3], "z")
    np.testing.assert_allclose(again, found[:, 1:2, :3], atol=1e-6)
    pattern = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 3, 2, 4, 4)), jnp.float32), axis=-1)
    pattern = jnp.tril(pattern) / jnp.tril(pattern).sum(-1, keepdims=True)
    turned = _random(keys, pattern, pattern[:, ::-1], "pattern")
    np.testing.assert_allclose(turned.sum(-1), 1, atol=1e-5)
    assert np.array_equal(jnp.triu(turned, 1), jnp.zeros_like(turned)), "the future stays hidden"


@pytest.mark.slow
def test_chunks_of_rows_give_the_same_effects(model, pairs, result, monkeypatch):
    from jaxalign.studies.patch import calls

    monkeypatch.setattr(calls, "plan_chunks", lambda *given, **named: (2, 7))
    options = PatchOptions(sweep=("heads",), **EVERYTHING)
    again = PATCH(model, pairs, options, progress=False)
    assert [call.rows for call in again.provenance.calls if call.phase == "heads denoising"] != []
    whole = result.find("heads", "denoising")
    for name in ("effect", "control"):
        found, wanted = (getattr(m, name) for m in (again.find("heads"), whole))
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_rows_of_the_last_positions_give_the_same_effects(model, pairs, result, monkeypatch):
    from jaxalign.engine import suffix

    monkeypatch.setattr(suffix, "COMPILATION", {"cpu": 1.0, "gpu": 1.0})
    options = PatchOptions(sweep=("resid",), **EVERYTHING)
    again = PATCH(model, pairs, options, progress=False)
    calls = [call for call in again.provenance.calls if call.phase == "resid denoising"]
    assert sum(call.times for call in calls) == 2, "all positions, and the last ones"
    whole = [m for m in result.maps if (m.sweep, m.direction) == ("resid", "denoising")]
    assert len(whole) == len(again.maps)
    for found, wanted in zip(again.maps, whole, strict=True):
        for name in ("effect", "control"):
            np.testing.assert_allclose(
                getattr(found, name), getattr(wanted, name), rtol=2e-3, atol=2e-4
            )


def test_a_screen_is_exact_at_some_places_and_says_how_well_it_agrees(model, pairs, result):
    options = PatchOptions(sweep=("resid",), screen=3, **EVERYTHING)
    found = PATCH(model, pairs, options, progress=False)
    for sweep in ("resid",):
        screen, whole = found.find(sweep), result.find(sweep, "denoising")
        assert int(screen.screen.first.sum()) == int(screen.screen.drawn.sum()) == 3
        exact = np.isfinite(screen.effect)
        assert np.array_equal(exact, (screen.screen.first + screen.screen.drawn) > 0)
        np.testing.assert_allclose(screen.effect[exact], whole.effect[exact], rtol=2e-3, atol=2e-4)
    stream = found.find("resid").screen
    estimates, first = np.abs(stream.estimate), stream.first > 0
    assert estimates[first].min() >= estimates[~first].max()
    assert np.isfinite(stream.estimate).all()
    assert "too few to say how well they agree" in PATCH.table(found)


def test_agreement_is_over_the_places_drawn_at_random():
    rng = np.random.default_rng(0)
    estimates = rng.normal(size=(6, 1)) * 0.1 + np.linspace(-1, 1, 12)[None]
    effects = 2 * estimates
    places = chosen(estimates, 5, 0, "x")
    labels = (("L0", "L1"), tuple(f"H{i}" for i in range(6)))
    exact = mapped(("heads", "denoising", "all"), labels, effects, 0 * effects, 0)
    found = screened(exact, estimates, places, 0).screen
    assert found.agreement.items == 5
    assert found.agreement.spearman.value == pytest.approx(1)
    assert found.agreement.slope.value == pytest.approx(2)
    assert found.agreement.slope.low == pytest.approx(2)
    assert found.missed_effect <= 2.4
    assert found.agreement.spearman.p is not None


def test_maps_know_effects_from_controls():
    rng = np.random.default_rng(1)
    effect = rng.normal(size=(30, 4)) * 0.1
    effect[:, 1] += 1
    effect[:20, 3] = np.nan
    found = mapped(("heads", "denoising", "all"), (("L0",), tuple("abcd")), effect, 0 * effect, 0)
    assert found.told.tolist() == [[False, True, False, False]]
    assert (found.low <= found.effect).all()
    assert (found.effect <= found.high).all()
    np.testing.assert_allclose(found.effect[0, 3], np.nanmean(effect[:, 3]))


@pytest.mark.parametrize(
    ("clean", "corrupted", "said"),
    [
        ([-3, -2, 4], [2, 1, 3], "after 2 clean.* after 3 corrupted.* 2 of them the .*exchange an"),
        (
            [3, 2, 0.2],
            [2, 1, 0.1],
            "after 0 clean.* after 3 corr.* 1 differ .*answers, or --use-al",
        ),
        ([0.2, 0.1, 0.3], [0, 0, 0], "3 differ by less than 1 logits.* or a lower --least-gap"),
    ],
)
def test_pairs_none_of_which_counts_are_refused_by_what_they_fail(clean, corrupted, said):
    error = _none_kept(np.array([clean, corrupted], float), PatchOptions())
    assert re.search(said, str(error)), error


@pytest.mark.parametrize("count", [2, 5, 6, 8, 9])
def test_as_few_pairs_as_can_tell_nothing_are_noted(count):
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(count, 12)) * 0.1
    effect[:, :3] += 1  # as plain as can be
    found = mapped(("heads", "denoising", "all"), (("L0",), tuple("abcdefghijkl")),
                   effect, 0 * effect, 0)  # fmt: skip
    assert found.too_few == (count < 9) == bool(too_few([found]))
    assert found.p.min() >= 0.9 * found.least_p
    if count < 6:
        assert "nothing in their maps can be told" in too_few([found])[0]
    assert found.told.any() == (found.least_p * 12 / 3 < 0.05)


def test_a_place_is_told_where_it_carries_more_than_its_control():
    effect = np.random.default_rng(0).normal(size=(12, 4)) * 0.01 + [0.8, -0.8, 0.05, 0.0]
    found = mapped(("heads", "denoising", "all"), (("L0",), tuple("abcd")), effect,
                   np.broadcast_to([0.1, 0.1, 0.3, 0.0], effect.shape), 0)  # fmt: skip
    assert (found.p[0, :3] < 0.05).all()
    assert found.told.tolist() == [[True, False, False, False]]


def test_places_are_rows_for_a_table():
    made = drawn_result()
    rows, heads = made.records("places"), made.find("heads")
    assert len(rows) == sum(m.effect.size for m in made.maps)
    [one] = [
        row for row in rows
        if (row["sweep"], row["direction"], row["task"], row["row"], row["column"])
        == ("heads", heads.direction, "all", "L0", "H6")
    ]  # fmt: skip
    assert one["effect"] == pytest.approx(heads.effect[0, 6])
    assert one["told"] == bool(heads.told[0, 6])


def drawn_result():
    return codec.decode(PatchResult, {k: v for k, v in MADE.items() if k != "format"}, "made")


def test_the_screen_says_what_a_place_is_in_each_task_and_what_told_counts():
    made = drawn_result()
    assert "L0H6 brings back 34 % [21, 48] (capital " in PATCH.table(made)
    heads = made.find("heads")
    few = replace(made, maps=(replace(heads, pairs=6),))
    assert "With 6 pairs hardly any effect can be told" in PATCH.table(few)
    marks = np.ones((6, 8))
    agreement = Agreement(items=marks.size)
    ahead = Screen(estimate=heads.effect, first=marks, drawn=marks, agreement=agreement)
    said = PATCH.table(replace(made, maps=(replace(heads, screen=ahead),)))
    assert "18 of 48 exact are told" in said
    assert "heads, denoising: 48 of 48 exact" in said


def test_figures_are_of_what_was_swept_and_share_a_scale():
    made = drawn_result()
    every = {name: figure(made) for name, figure in FIGURES.items()}
    assert [name for name, page in every.items() if page is None] == ["patch_screen"]
    for name, panels in (("patch_heads", 5), ("patch_paths", 9)):
        *maps, bar = every[name].figure.axes
        assert len(maps) == panels, "and one colour bar"
        ends = [float(bar.get_xticks()[i]) for i in (0, -1)]
        assert ends == pytest.approx([*bar.get_xlim()])
    assert "At most 3.7 % of the answer" in every["patch_paths"].figure.texts[0].get_text()
    lines = every["patch_knockout"].figure.axes[0].get_legend().get_texts()
    assert "all but before" in [line.get_text() for line in lines]
    few = next(m for m in made.maps if (m.sweep, m.task) == ("heads", "opposite"))
    page = FIGURES["patch_heads"](replace(made, maps=(few,)))
    assert any("Too few: of pairs" in " ".join(t.get_text().split()) for t in page.figure.texts)
    assert "6 pairs (too few)" in page.figure.axes[0].get_title()


def test_the_words_of_a_template_have_the_colours_of_their_roles():
    assert _roles(("before", "last")) == ["before", "last"]
    assert _roles(("0 a", "1 [b]*", "2 c", "3 d*", "4 e")) == [
        "before", "first change", "between", "other changes", "last",
    ]  # fmt: skip


def test_roles_are_where_pairs_change_and_where_they_end(model):
    pairs, _, _ = PATCH.prompts.tokenize(PAIRS, model.tokenizer, model.config)
    found = group(pairs, model.tokenizer)
    assert [ROLES[i] for i in found.of[0][0]] == ["before"] * 3 + ["first change", "last"]
    of_third = [ROLES[i] for i in found.of[2][0]]
    assert "other changes" in of_third
    assert [template.task for template in found.templates] == ["capital", "other"]
    assert found.templates[0].words[3] == "3 [France]*"


def test_unequal_pairs_are_refused_where_positions_are_exchanged_and_cut_elsewhere(model, texts):
    longer = replace(texts[0], corrupted=LONGER)
    one = Alone(model, longer)
    if one.metric("clean") < one.metric("corrupted"):
        longer = replace(longer, answers=longer.wrong_answers, wrong_answers=longer.answers)
    unequal = PairSet({"capital": (texts[0], longer)})
    with pytest.raises(InputError) as refused:
        PATCH(model, unequal, PatchOptions(sweep=("resid",), **EVERYTHING), progress=False)
    said = str(refused.value)
    assert "1 of 2 pairs have prompts of unequal length, and resid exchanges positions" in said
    assert "'The capital of France is' has 5 tokens" in said
    assert "'The capital of the whole of Japan is' has 8" in said
    options = PatchOptions(sweep=("knockout",), window=2, **EVERYTHING)
    found = PATCH(model, unequal, options, progress=False)
    assert found.find("knockout").pairs == 2


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        (
            PAIRS,
            {"sweep": ("knockout",), "window": 9},
            "the window is 9 layers, and the model has 2",
        ),
        (
            PairSet({"x": (replace(TEXTS[0], clean=" The"),)}),
            {"sweep": ("knockout",), "window": 1},
            "' The' is one token, so that a knock-out takes every source",
        ),
        (
            PAIRS,
            {"least_gap": 1e6, "window": 1},
            "none of 3 pairs counts: .* 3 differ by less than 1e.06 logits the right way",
        ),
    ],
)
def test_what_cannot_be_patched_is_refused_before_the_work(model, prompts, options, said):
    with pytest.raises(InputError, match=said):
        PATCH(model, prompts, PatchOptions(**EVERYTHING | options), progress=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sweep": ("heads", "L0H9")}, "--sweep 'L0H9' is unknown. use resid, attn_out"),
        ({"sweep": ()}, "--sweep is '', expected names, each once"),
        ({"sweep": ("heads", "heads")}, "--sweep is 'heads,heads', expected names, each once"),
        ({"direction": ("up",)}, "--direction 'up' is unknown. use denoising, noising"),
        ({"screen": 5, "sweep": ("knockout",)}, "--screen 5 estimates patching, and --sweep names"),
        ({"least_gap": 0.0}, "--least-gap is 0.0. give a positive number"),
        ({"window": 0}, "--window is 0. give at least 1"),
        (
            {"window": 3, "sweep": ("heads", "paths")},
            "--window 3 is of a knock-out, and --sweep heads,paths has none. name knockout in",
        ),
        (
            {"receivers": 0, "sweep": ("heads",)},
            "--receivers 0 is of path patching, and --sweep heads has none. name paths in --sweep",
        ),
        (
            {"direction": ("noising",), "sweep": ("knockout",)},
            "--direction noising is of an exchange, and --sweep knockout has none. name some of",
        ),
        ({"screen": -1}, "--screen is -1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        PatchOptions(**options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda maps: maps[0].update(effect=[[0.1, 0.2]]),
         "maps/0: effect is 1 × 2 numbers, expected 7 × 3 .rows × columns."),
        (lambda maps: maps[3].update(rows=["L0"]),
         "maps/3: effect is 7 × 14 numbers, expected 1 × 14"),
        (lambda maps: maps[1].update(columns=[]), "maps/1: a map without rows or columns"),
        (lambda maps: maps[2].update(p=[]), "maps/2: p is 0 numbers, expected 7 × 5"),
        (lambda maps: maps.clear(), "there are no maps, so nothing was measured"),
    ],
)  # fmt: skip
def test_a_file_whose_maps_are_not_of_their_places_is_refused(tmp_path, change, said):
    content = copy.deepcopy(MADE)
    change(content["maps"])
    path = tmp_path / "patch.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        jaxalign.read(path)


def test_the_command_reads_pairs_writes_a_result_and_draws_it(folder, texts, tmp_path):
    entries = [
        {"clean": t.clean, "corrupt": t.corrupted, "answers": [*t.answers],
         "wrong_answers": [*t.wrong_answers]}
        for t in texts
    ]  # fmt: skip
    pairs, output = tmp_path / "pairs.json", tmp_path / "out" / "patch.json"
    pairs.write_text(json.dumps({"prompts": entries}))
    words = ("--model", str(folder), "--prompts", str(pairs), "--output", str(output))
    more = ("--sweep", "heads", "--use-all-prompts", "--least-gap", "1e-6")
    ran = run("patch", *words, *more)
    assert ran.code == 0, ran.err
    found = jaxalign.read(output)
    assert "Most by one head: " in ran.out
    assert found.summary() in ran.out
    assert len(found.summary().splitlines()) <= 35
    assert max(map(len, found.summary().splitlines())) <= 100
    drawn = {path.name for path in (output.parent / "figures").glob("*.png")}
    assert drawn == {"patch_heads.png"}, "no figure of what was not swept"
    assert found.find("heads").pairs == 3
    assert PATCH.details(found)
    ran = run("patch", *words, *more, "--estimate")
    assert ran.code == 0, ran.err
    assert "GFLOP" in ran.out
    ran = run("patch", "--model", str(folder), "--scheme", "nf4")
    assert ran.code == 2
    assert "has no --scheme, which is an option of plan" in ran.err


@pytest.mark.slow
def test_paths_lead_from_heads_to_the_logits_and_to_the_heads_with_the_largest_effect(model, pairs):
    options = PatchOptions(sweep=("paths",), receivers=1, **EVERYTHING)
    found = PATCH(model, pairs, options, progress=False)
    direct = found.find("paths to logits")
    size = np.abs(direct.effect[1])
    for letter in "qkv":
        between = found.find(f"paths to L1H{int(size.argmax())} {letter}")
        assert between.rows == ("L0",)
        assert np.isfinite(between.effect).all()
    # Behind the last layer there are no heads and no MLP but its own: patching there is direct.
    options = PatchOptions(sweep=("heads",), **EVERYTHING)
    whole = PATCH(model, pairs, options, progress=False).find("heads")
    np.testing.assert_allclose(direct.effect[1], whole.effect[1], rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_two_devices_share_the_pairs_and_give_what_one_gives(model, pairs, result):
    mesh = make_mesh(jax.devices()[:2])
    options = PatchOptions(sweep=("heads",), **EVERYTHING)
    found = PATCH(model, pairs, options, progress=False, mesh=mesh).find("heads")
    whole = result.find("heads", "denoising")
    np.testing.assert_allclose(found.effect, whole.effect, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(found.control, whole.control, rtol=2e-3, atol=2e-4)

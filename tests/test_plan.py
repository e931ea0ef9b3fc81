"""Plans: within the budget, chosen on one half of the prompts, judged on the other."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from tiny_run import write_model

import jaxalign
from jaxalign.checkpoints.linear_layers import LinearLayer, linear_layers, output_modules
from jaxalign.commands.main import main
from jaxalign.errors import InputError
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import INT8_SIM, scheme_named
from jaxalign.numerics.storage import packed_bits
from jaxalign.plots import draw
from jaxalign.prompts import Prompt, PromptSet, PromptText
from jaxalign.studies.plan import PLAN, PlanOptions, cost
from jaxalign.studies.plan.calls import Effect
from jaxalign.studies.plan.cost import bits_per_weight, budget_bytes, units_of
from jaxalign.studies.plan.figures import FIGURES
from jaxalign.studies.plan.planner import (
    best,
    fill,
    greedy,
    random_choices,
    refine,
    score,
    whole_layers,
)
from jaxalign.studies.plan.recipes import write_recipes
from jaxalign.studies.plan.study import damage_of, split
from jaxalign.studies.plan.table import table
from jaxalign.studies.plan.uniform import (
    Uniform,
    describe_uniform,
    formats_within,
    judge,
    size_of_format,
)
from jaxalign.studies.plan.validate import Candidates, size_of, validate
from jaxalign.study.session import Session
from jaxalign.study.tables import header

SCHEME = scheme_named("int4-g16")
LAYERS = 4
DEMO = jaxalign.load("demo").config
PROMPTS = PromptSet(
    {
        "one": tuple(PromptText(f"The capital of {c} is", " Paris") for c in "ABCDEFGH"),
        "two": tuple(PromptText(f"{c} and {c} went to the", " store") for c in "ABCDEFGH"),
    },
    ("The day was long",),
)
FRAGILE = (1, 3)  # layers whose up-projection does not survive rounding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("plan"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def model(folder):
    return jaxalign.load(str(folder))


def with_outliers(model):
    """Two matrices whose groups each hold one huge weight, on an input that is always 0.

    The model computes what it did, but the scale of each group rounds all its other weights away.
    """
    blocks = model.params.blocks
    at = np.array(FRAGILE)[:, None], np.arange(0, 32, 16)[None]
    up = blocks.mlp.up.at[at].set(50.0)
    norm = dataclasses.replace(
        blocks.mlp_norm,
        scale=blocks.mlp_norm.scale.at[at].set(0.0),
        bias=blocks.mlp_norm.bias.at[at].set(0.0),
    )
    blocks = dataclasses.replace(blocks, mlp=dataclasses.replace(blocks.mlp, up=up), mlp_norm=norm)
    return dataclasses.replace(model, params=dataclasses.replace(model.params, blocks=blocks))


def options(units, keep, **others):
    budget = sum(unit.low for unit in units) + sum(units[i].extra for i in keep)
    return PlanOptions(scheme=SCHEME, budget=f"{budget}B", noise_draws=1, **others)


@pytest.fixture(scope="module")
def fragile(model):
    units = units_of(model.config, SCHEME.weights)
    keep = [i for i, u in enumerate(units) if u.layer in FRAGILE and u.matrices == ("up",)]
    return PLAN(with_outliers(model), PROMPTS, options(units, keep))


def test_a_plan_finds_fragile_matrices_and_beats_random(fragile):
    plan = fragile.plan
    assert [(unit.layer, unit.matrices) for unit in plan.kept] == [(1, ("up",)), (3, ("up",))]
    assert plan.verdict == "beats random"
    assert plan.random.p_kl <= 0.05
    assert plan.choice("plan").kl.value < 0.5 * plan.choice("all low").kl.value
    assert plan.choice("plan").kl.value < plan.choice("layers").kl.value
    assert plan.against_random.high < 0
    assert plan.choice("all high").kl.value == 0
    by_matrix = {(c.layer, c.name): c.kl.value for c in fragile.damage.of("matrix")}
    worst = sorted(by_matrix, key=by_matrix.get)[-2:]
    assert {layer for layer, _ in worst} == set(FRAGILE)
    assert {name for _, name in worst} == {"up"}


def test_a_plan_that_is_worse_than_keeping_nothing_says_so(fragile):
    assert "make nothing better" not in table(fragile)
    choices = tuple(
        dataclasses.replace(each, kl=fragile.plan.choice("plan").kl)
        if each.name == "all low"
        else each
        for each in fragile.plan.choices
    )
    no_gain = dataclasses.replace(fragile, plan=dataclasses.replace(fragile.plan, choices=choices))
    assert "make nothing better" in table(no_gain)


def test_every_uniform_format_is_at_most_as_large_and_the_choosing_prompts_picked_the_first(
    fragile,
):
    own, formats = fragile.plan.choice("plan"), fragile.plan.uniform
    assert all(each.bytes <= own.bytes for each in formats)
    assert len({each.scheme for each in formats}) == len(formats) > 3
    assert [each.chosen_kl for each in formats] == sorted(each.chosen_kl for each in formats)
    low = next(each for each in formats if each.scheme == fragile.scheme)
    assert low.kl.value == pytest.approx(fragile.plan.choice("all low").kl.value, rel=1e-3)
    best = formats[0].plan_less_it
    assert best.value == pytest.approx(own.kl.value - formats[0].kl.value)
    assert [each.plan_less_it.p is None for each in formats] == [False] + [True] * (
        len(formats) - 1
    )
    # Every uniform format rounds the fragile matrices; the plan keeps them.
    assert fragile.plan.uniform_verdict == "beats the best uniform format"
    assert "beats plain" in table(fragile)


def test_formats_are_the_most_bits_that_fit_in_groups_that_divide(model):
    low = scheme_named("int4-g16")
    units = units_of(model.config, low.weights)
    weights = sum(unit.weights for unit in units)
    for bits in (4.5, 5.25, 6.5):
        found = formats_within(model.config, int(bits * weights / 8), low)
        sizes = {s.name: size_of_format(model.config, s.weights) for s in found}
        assert found[0] == low
        assert all(size <= bits * weights / 8 for name, size in sizes.items() if name != low.name)
        for name in sizes.keys() - {low.name, "nf4", "nf4-dq", "fp4", "fp4-dq"}:
            width = int(name[3])
            larger = scheme_named(f"int{width + 1}{name[4:]}") if width < 8 else None
            assert (
                larger is None or size_of_format(model.config, larger.weights) > bits * weights / 8
            )
    assert size_of_format(model.config, scheme_named("int4-g48").weights) is None


@pytest.mark.parametrize(
    ("plan", "verdict"),
    [
        (0.5, "beats the best uniform format"),
        (1.0, "no better than the best uniform format"),
        (2.0, "worse than the best uniform format"),
    ],
)
def test_a_plan_is_judged_against_the_format_that_the_choosing_prompts_picked(plan, verdict):
    rng = np.random.default_rng(0)
    units = equal_units()
    kl = rng.uniform(0.5, 1.5, 50)
    measured = [
        Uniform("looks-better", 1200, np.full(9, 0.9), kl),
        Uniform("is-better", 1200, np.full(9, 1.0), kl / 100),
    ]
    formats = describe_uniform(measured, plan * kl + 0.1 * rng.standard_normal(50), units, 0)
    assert [each.scheme for each in formats] == ["looks-better", "is-better"]
    assert judge(formats) == verdict
    assert judge(()) is None


def lines_of(result):
    lines = table(result).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 35
    return lines


def test_the_answer_is_one_screen_that_begins_with_what_the_plan_is_worth(fragile):
    kept = PLAN.read(Path(__file__).parent.parent / "results" / "demo" / "plan.json")
    for result in (kept, fragile):
        lines = lines_of(result)
        assert lines[0] == header("plan", result.provenance)
        assert lines[2].startswith("The plan (")
        assert PLAN.details(result)
    worse = dataclasses.replace(
        fragile.plan, uniform_verdict="worse than the best uniform format", verdict="beats random"
    )
    lines = lines_of(dataclasses.replace(fragile, plan=worse))
    assert " loses to plain " in lines[2]


def test_a_plan_spends_its_budget_and_not_a_byte_more(fragile):
    plan = fragile.plan
    assert plan.choice("plan").bytes == plan.budget_bytes
    assert plan.choice("layers").bytes <= plan.budget_bytes


def test_the_halves_do_not_meet_and_hold_every_task():
    prompts = [
        Prompt(PromptText("", ""), task, (1,), 1)
        for task, n in (("a", 7), ("b", 5))
        for _ in range(n)
    ]
    choosing, validating = split(prompts, 0)
    assert sorted([*choosing, *validating]) == list(range(12))
    assert len(choosing) == len(validating) == 6
    for half in (choosing, validating):
        assert abs(sum(prompts[i].task == "a" for i in half) - 3.5) == 0.5
    assert split(prompts, 0)[0].tolist() == choosing.tolist()
    assert split(prompts, 1)[0].tolist() != choosing.tolist()
    with pytest.raises(InputError, match="3 prompts cannot be split"):
        split(prompts[:3], 0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_plan(model):
    units = units_of(model.config, SCHEME.weights)
    ran = [PLAN(model, PROMPTS, options(units, [0, 5], random_choices=20)) for _ in range(2)]
    found = [(result.damage, result.plan, result.curve) for result in ran]
    assert found[0] == found[1]


def additive(damage, prompts=30, spread=1.0, seed=0):
    """A stand-in for the model: every unit in the low scheme adds its damage, prompt by prompt."""
    noise = np.random.default_rng(seed).exponential(spread, (len(damage), prompts))
    each = np.asarray(damage)[:, None] * noise

    def measure(kept):
        kl = (~kept).astype(float) @ each
        return Effect(-kl, kl, np.ones(prompts))

    return measure


def planned(units, damage, keep, seed=0, draws=99):
    """The planner on a stand-in, with other draws of its prompts for the validation."""
    choose, held = additive(damage, seed=seed), additive(damage, seed=seed + 1000)
    allowance = sum(units[i].extra for i in keep)
    scores = score(choose, units)
    name, kept, kl = best(choose, greedy(units, scores, allowance))
    kept, kl, _ = refine(choose, units, scores, kept, kl, allowance)
    rng = np.random.default_rng(seed)
    candidates = Candidates(
        plan=kept,
        greedy=kept,
        layers=best(choose, whole_layers(units, scores, allowance))[1],
        random=random_choices(units, allowance, draws, rng),
        curve_budgets=[],
        curve_greedy=[],
        curve_layers=[],
        curve_random=[],
        found_by=name,
        predicted_kl=0.0,
        chosen_kl=kl,
    )
    return validate(held, units, candidates, "", 0, seed)[0]


def equal_units(count=24):
    return [cost.Unit(i // 4, ("up",), (f"{i}",), 100, 50, 200) for i in range(count)]


def test_where_all_components_are_equal_a_plan_is_no_better_than_random():
    units = equal_units()
    plans = [planned(units, np.ones(24), range(6), seed) for seed in range(5)]
    verdicts = [plan.verdict for plan in plans]
    assert verdicts.count("no better than random") >= 4
    assert planned(units, np.zeros(24), range(6)).verdict == "no better than random"
    # The same units, some of them fragile.
    damage = np.ones(24)
    damage[[2, 9, 11]] = 10
    assert planned(units, damage, range(6)).verdict == "beats random"


def test_answers_kept_are_counted_with_the_choice_and_not_without():
    """A prompt is answered while the margin, 1 without quantization, is above 0 with it."""
    damage = np.full(24, 1 / 24)
    plan = planned(equal_units(), damage, range(6))
    lost = additive(damage, seed=1000)(np.zeros(24, bool)).kl >= 1
    assert 0.1 < lost.mean() < 0.9
    assert plan.choice("all low").answered == pytest.approx(1 - lost.mean())
    assert plan.choice("all high").answered == 1


def test_ties_are_broken_by_order():
    units = equal_units()
    kept = [unit.modules[0] for unit in planned(units, np.zeros(24), range(6)).kept]
    assert kept == ["0", "1", "2", "3", "4", "5"]


def test_exchanges_find_what_filling_by_density_misses():
    """A small unit of the highest density stands in the way of a large one worth more."""
    units = [cost.Unit(i, ("up",), (f"{i}",), 1, 0, size) for i, size in enumerate((1, 10, 10))]
    measure = additive([2.0, 10.0, 1.0], spread=1.0)
    scores = score(measure, units)
    _, first, kl = best(measure, greedy(units, scores, 10))
    assert first.tolist() == [True, False, False]
    kept, better, exchanges = refine(measure, units, scores, first, kl, 10)
    assert kept.tolist() == [False, True, False]
    assert better < kl
    assert exchanges == 1


@pytest.mark.parametrize("allowance", [0, 1, 149, 150, 151, 449, 450, 3600])
def test_filling_never_exceeds_the_allowance(allowance):
    units = equal_units()
    for choice in random_choices(units, allowance, 20, np.random.default_rng(0)):
        assert size_of(choice, units) - 24 * 50 == min(allowance // 150, 24) * 150


def test_filling_takes_what_still_fits():
    assert fill([0, 1, 2], [5, 4, 1], 6).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4-g32", 4 + 16 / 32 + 4 / 32),
        ("int4-sym-g32", 4 + 16 / 32),
        ("nf4", 4 + 32 / 64),
        ("nf4-dq", 4 + 8 / 64 + 32 / (64 * 256)),
        ("int4-channel", 4 + 20 / 256),
    ],
)
def test_bytes_are_those_of_codes_scales_and_zero_points(name, bits):
    form = scheme_named(name).weights
    assert packed_bits(256, 512, form) == bits * 256 * 512
    if not form.double:
        packed = quantize(jax.random.normal(jax.random.key(0), (256, 512)), form)
        scales = packed.scale.size * (32 if name == "nf4" else 16)
        zeros = 0 if packed.zero is None else 4 * packed.zero.size
        assert packed_bits(256, 512, form) == 8 * packed.codes.nbytes + scales + zeros


def test_units_are_published_layers(model):
    units = units_of(model.config, SCHEME.weights)
    assert len(units) == 4 * LAYERS
    assert units[0].matrices == ("query", "key_value")
    assert units[0].modules == ("gpt_neox.layers.0.attention.query_key_value",)
    blocks = model.params.blocks
    matrices = (*vars(blocks.attention).items(), *vars(blocks.mlp).items())
    sizes = [a.size for name, a in matrices if a is not None and "bias" not in name]
    assert sum(unit.weights for unit in units) == sum(sizes)


def test_layers_that_share_a_matrix_are_planned_together(model, monkeypatch):
    def linears(config):
        for layer in range(config.num_layers):
            yield LinearLayer(layer, f"{layer}.q_proj", ("query",))
            yield LinearLayer(layer, f"{layer}.k_proj", ("key_value",))
            yield LinearLayer(layer, f"{layer}.v_proj", ("key_value",))
            yield LinearLayer(layer, f"{layer}.o_proj", ("out",))

    monkeypatch.setattr(cost, "linear_layers", linears)
    units = units_of(model.config, SCHEME.weights)
    assert [unit.matrices for unit in units[:3]] == [("query",), ("key_value",), ("out",)]
    assert units[1].modules == ("0.k_proj", "0.v_proj")


def test_budgets_are_read_in_bits_and_bytes():
    units = [cost.Unit(0, ("up",), ("up",), 1000, 500, 2000)]
    assert budget_bytes("5.0bits", units) == budget_bytes(" 5 bit ", units) == 625
    assert budget_bytes("0.625kB", units) == budget_bytes("625B", units) == 625
    assert budget_bytes("16bits", units) == 2000
    assert budget_bytes("4bits", units) == 500
    assert bits_per_weight(625, units) == 5


@pytest.mark.parametrize(
    "text", ["", "5", "five bits", "5.0.1bits", "-5bits", "5 bytes a day", "nan bits"]
)
def test_budgets_that_cannot_be_read_are_refused(text):
    units = [cost.Unit(0, ("up",), ("up",), 1000, 500, 2000)]
    with pytest.raises(InputError, match=r"not a budget.*5\.0bits"):
        budget_bytes(text, units)


@pytest.mark.parametrize(
    ("text", "which"), [("3.99bits", "less than the 500"), ("2001B", "more than the 2000")]
)
def test_budgets_that_cannot_be_met_are_refused(text, which):
    units = [cost.Unit(0, ("up",), ("up",), 1000, 500, 2000)]
    with pytest.raises(InputError, match=rf"{which}.*give 4\.000 to 16\.000 bits"):
        budget_bytes(text, units)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("f16", "packs no weights"),
        ("int8-sim", "packs no weights"),
        ("int8", "also changes activations"),
        ("nf4@f16", "also changes activations"),
        ("awq-g16", "chooses its codes"),
        ("int4-g48", "groups of 48 do not divide"),
    ],
)
def test_schemes_that_cannot_be_planned_are_refused(model, name, problem):
    with pytest.raises(InputError, match=problem):
        PLAN(model, PROMPTS, PlanOptions(scheme=scheme_named(name), budget="7bits"))


def test_too_few_prompts_and_draws_are_refused(model):
    one = PromptSet({"one": PROMPTS.tasks["one"][:3]}, PROMPTS.reference)
    with pytest.raises(InputError, match="cannot be split"):
        PLAN(model, one, PlanOptions(scheme=SCHEME, budget="6bits"))
    with pytest.raises(InputError, match="give at least 20"):
        PlanOptions(random_choices=19)


def test_a_scheme_of_activations_has_a_map(model):
    asked = PlanOptions(scheme=INT8_SIM, noise_draws=1)
    with Session.open(PLAN.format, model, PROMPTS, asked) as session:
        found = damage_of(session, asked)
    assert len(found.of("site")) == 3 * LAYERS + 2
    assert not found.of("matrix")
    assert all(c.kl.value > 0 and not c.noise_kl for c in found.components)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    modules = [linear.module for linear in linear_layers(DEMO) if linear.layer in (1, 4)]
    output = tmp_path_factory.mktemp("recipes") / "plan.json"
    return modules, write_recipes(modules, DEMO, scheme_named("nf4"), output)


def test_recipes_name_tensors_of_the_checkpoint(recipes):
    modules, (bitsandbytes, awq, _) = recipes
    with safe_open(jaxalign.locate("demo").folder / "model.safetensors", "np") as file:
        names = set(file.keys())
    skipped = json.loads(bitsandbytes.read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert len(modules) == 8
    assert skipped == [*modules, *output_modules(DEMO)]
    assert {f"{module}.weight" for module in modules} <= names
    assert "embed_out.weight" in names
    listed = json.loads(awq.read_text())["quantization_config"]["modules_to_not_convert"]
    assert listed == skipped


# bitsandbytes imports parts of torch that torch calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_transformers_keeps_the_planned_modules_and_no_others(recipes):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.quantizers.quantizers_utils import should_convert_module

    modules, (bitsandbytes, *_) = recipes
    settings = json.loads(bitsandbytes.read_text())["quantization_config"]
    config = transformers.AutoConfig.from_pretrained(jaxalign.locate("demo").folder)
    with torch.device("meta"):
        theirs = transformers.GPTNeoXForCausalLM(config)
    linears = [n for n, m in theirs.named_modules() if isinstance(m, torch.nn.Linear)]
    pytest.importorskip("bitsandbytes")
    read = transformers.BitsAndBytesConfig.from_dict(settings)
    assert read.load_in_4bit
    assert read.bnb_4bit_quant_type == "nf4"
    kept = [n for n in linears if not should_convert_module(n, read.llm_int8_skip_modules)]
    heads = [n for n in linears if n in output_modules(DEMO)]
    assert len(heads) == 1  # a list of one's own replaces the one that spares it
    assert sorted(kept) == sorted([*modules, *heads])


def test_compressed_tensors_ignores_the_planned_modules(tmp_path, recipes):
    yaml = pytest.importorskip("yaml")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    modules, _ = recipes
    path = write_recipes(modules, DEMO, scheme_named("int4-sym-g32"), tmp_path / "p.json")[2]
    recipe = yaml.safe_load(path.read_text())
    [modifier] = recipe["quant_stage"]["quant_modifiers"].values()
    assert modifier["ignore"] == [*modules, *output_modules(DEMO)]
    read = quantization.QuantizationConfig(**modifier)
    weights = read.config_groups["group_0"].weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (4, 32, True)


def test_the_command_writes_result_recipes_and_figures(folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.json"
    tasks = {
        name: [{"prompt": p.prompt, "target": p.target} for p in items]
        for name, items in PROMPTS.tasks.items()
    }
    prompts.write_text(json.dumps({**tasks, "reference": list(PROMPTS.reference)}))
    output = tmp_path / "out" / "plan.json"
    words = (
        f"plan --model {folder} --prompts {prompts} --scheme int4-g16 --budget 7bits --noise-draws "
        f"1 --random-choices 20 --output {output} --no-compilation-cache"
    )
    code = main(words.split())
    printed = capsys.readouterr()
    assert code == 0, printed.err
    written = sorted(path.name for path in output.parent.iterdir())
    assert written == [
        "figures",
        "plan.awq.json",
        "plan.bitsandbytes.json",
        "plan.json",
        "plan.llmcompressor.yaml",
    ]
    figures = sorted(path.name for path in (output.parent / "figures").iterdir())
    assert figures == [
        f"plan_{name}.{kind}" for name in ("curve", "damage_map") for kind in ("png", "svg")
    ]
    result = json.loads(output.read_text())
    assert result["format"] == "jaxalign.plan/3"
    assert result["plan"]["choices"][0]["bytes"] <= result["plan"]["budget_bytes"]
    verdicts = {"beats": "beats the", "loses to": "worse than the", "is not to be": "no better"}
    [said] = [word for word in verdicts if f" {word}" in printed.out.split("plain")[0]]
    assert result["plan"]["uniform_verdict"].startswith(verdicts[said])
    assert "sum of matrices and sites, KL" in PLAN.details(PLAN.read(output))
    assert not {*result["choosing"]} & {*result["validating"]}


def test_the_command_says_in_one_line_what_it_cannot_do(folder, tmp_path, capsys):
    output = ["--output", str(tmp_path / "plan.json")]
    for words, problem in (
        (["--budget", "1bits"], "give 5.250 to 16.000 bits"),
        (["--budget", "lots"], "is not a budget"),
        (["--scheme", "f16"], "packs no weights"),
        (["--scheme", "nf5"], "unknown precision scheme"),
    ):
        scheme = [] if "--scheme" in words else ["--scheme", "int4-g16"]
        code = main(["plan", "--model", str(folder), *scheme, *words, *output])
        error = capsys.readouterr().err
        assert code == 2
        assert error.count("\n") == 1
        assert problem in error
    assert not (tmp_path / "plan.json").exists()


def test_figures_of_a_scheme_of_ties_are_drawn(fragile, tmp_path):
    """Nothing kept and no damage at all: every figure is still written."""
    still = dataclasses.replace(fragile.plan, kept=())
    none = [
        dataclasses.replace(
            c,
            kl=dataclasses.replace(c.kl, value=0.0),
            ratio=dataclasses.replace(c.ratio, value=None),
        )
        for c in fragile.damage.components
    ]
    curve = [
        dataclasses.replace(p, greedy=0.0, layers=0.0, random=(0.0,) * len(p.random))
        for p in fragile.curve
    ]
    empty = dataclasses.replace(
        fragile,
        damage=dataclasses.replace(fragile.damage, components=tuple(none)),
        plan=still,
        curve=tuple(curve),
    )
    assert len(draw(FIGURES, empty, tmp_path)) == 4

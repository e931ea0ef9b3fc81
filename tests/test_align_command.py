"""Claims about `align`: what is compared, beside what, in which words, and what is refused."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from scipy import stats as scipy_stats
from tiny_run import refusal, run

import jaxalign
from jaxalign.checkpoints.activations import ActivationFacts, write_manifest, write_shard
from jaxalign.checkpoints.dictionaries import DictionaryFacts, TrainedDictionary, save_dictionary
from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.measures import alignment, stats
from jaxalign.studies.align import ALIGN, AlignOptions
from jaxalign.studies.align import compare as comparing
from jaxalign.studies.align.compare import compare, environment_of
from jaxalign.studies.align.sides import open_sides
from jaxalign.studies.align.table import beside_chance, beside_seeds

WIDTH, FEATURES = 8, 40
CLOSE = 1e-5


def write_dictionary(folder, encoder, decoder=None, **facts):
    """A dictionary of ``[features, width]`` directions."""
    features, width = encoder.shape
    dictionary = Dictionary(
        encoder=np.float32(encoder.T),
        decoder=np.float32(encoder if decoder is None else decoder),
        encoder_bias=np.zeros(features, np.float32),
        decoder_bias=np.zeros(width, np.float32),
    )
    known = {"model": "demo", "point": "resid", "step": 4, "prepend_bos": False}
    facts = DictionaryFacts(layout="sae_lens", context_size=64, **known | facts)
    save_dictionary(TrainedDictionary(dictionary=dictionary, facts=facts), folder)
    return str(folder)


def write_activations(folder, layers, **changed):
    """Activations of layers, ``[tokens, width]`` each, ten tokens a document."""
    folder.mkdir()
    [tokens, width] = next(iter(layers.values())).shape
    known = {
        "model": "demo", "revision": None, "weights_sha256": "w", "scheme": "f32",
        "quantized_sha256": None, "calibration_sha256": None, "site": "resid",
        "layers": tuple(layers), "width": width, "dtype": "float32", "texts": "demo",
        "texts_sha256": "t", "documents": 4, "tokens": tokens, "windows": 4, "window": 64,
        "stride": 64, "bos": None, "positions": "all", "shard_tokens": 30, "batch": 8,
        "device": "cpu", "versions": ("1",),
    }  # fmt: skip
    first_document = changed.pop("first_document", 0)
    facts = ActivationFacts(**known | changed)
    numbers = np.arange(tokens)
    shards = []
    for start in range(0, tokens, facts.shard_tokens):
        part = slice(start, start + facts.shard_tokens)
        shard = write_shard(
            folder,
            len(shards),
            {layer: np.float32(values[part]) for layer, values in layers.items()},
            numbers[part] // 10 + first_document,
            numbers[part] % 10,
        )
        shards.append(shard)
    write_manifest(folder, facts, shards)
    return str(folder)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def made(tmp_path, rng):
    """Dictionaries that share what they are near to, and one that is farther from it."""
    base = rng.standard_normal((FEATURES, WIDTH))

    def near(noise):
        return base + noise * rng.standard_normal(base.shape)

    arrays = {"a": near(0.3), "b": near(0.3), "far": near(1.5)}
    arrays |= {f"seed{i}": near(0.3) for i in range(4)}
    arrays["few"] = near(0.3)[:30]
    arrays["thin"] = near(0.3)[:, :6]
    return {
        name: write_dictionary(tmp_path / name, value) for name, value in arrays.items()
    }, arrays


def aligned(tmp_path, first, second, *more, figures=False):
    """What the command prints, and the result that it writes."""
    output = tmp_path / "out" / "alignment.json"
    more = (*more, *(() if figures else ("--no-figures",)))
    ran = run("align", "--first", first, "--second", second, "--output", output, *more)
    assert ran.code == 0, ran.err
    return ran.out, jaxalign.read(output)


def in_one_line(text):
    """The text without its line breaks."""
    return " ".join(text.split())


def raw(first, second):
    """Mean best cosine, by plain NumPy."""
    a, b = (x / np.linalg.norm(x, axis=1)[:, None] for x in (first, second))
    return (a @ b.T).max(axis=1).mean()


def cka(x, y):
    """Linear CKA by features (Kornblith et al. 2019), by plain NumPy."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    top = np.linalg.norm(x.T @ y) ** 2
    return top / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_values_null_and_floor_are_those_of_plain_numpy(made, tmp_path):
    folders, arrays = made
    seeds = ["seed0", "seed1", "seed2"]
    floor = ",".join(folders[name] for name in seeds)
    _, result = aligned(
        tmp_path, folders["a"], folders["b"], "--draws", 9, "--seed", 7, "--floor", floor
    )
    own = result.measures["raw"]
    assert own.value == pytest.approx(raw(arrays["a"], arrays["b"]), abs=CLOSE)
    drawn = [
        stats.generator(7, "alignment", "null", str(i)).standard_normal(
            (FEATURES, WIDTH), np.float32
        )
        for i in range(9)
    ]
    null = [raw(arrays["a"], one) for one in drawn]
    assert own.null == pytest.approx(null, abs=CLOSE)
    pairs = [raw(arrays[x], arrays[y]) for x, y in (seeds[:2], seeds[::2], seeds[1:])]
    assert own.floor == pytest.approx(pairs, abs=CLOSE)
    # Three pairs of three seeds: a seed's variance among them, 10/3 of it to a pair of new ones.
    t = abs(own.value - np.mean(pairs)) / (np.std(pairs, ddof=1) * np.sqrt(10 / 3))
    assert own.floor_p == pytest.approx(2 * scipy_stats.t.sf(t, 2), rel=1e-2)


def test_both_p_values_are_corrected_for_the_measures(made, tmp_path):
    folders, _ = made
    floor = ",".join(folders[f"seed{i}"] for i in range(4))
    _, result = aligned(tmp_path, folders["a"], folders["far"], "--draws", 19, "--floor", floor)
    for raw_name in ("p", "floor_p"):
        raw_p = [getattr(own, raw_name) for own in result.measures.values()]
        corrected = [getattr(own, f"{raw_name}_adjusted") for own in result.measures.values()]
        assert corrected == pytest.approx(scipy_stats.false_discovery_control(raw_p), rel=1e-5)
        assert corrected != pytest.approx(raw_p)


def test_the_encoders_are_compared_unless_decoders_are_asked_for(tmp_path, rng):
    one, two, three = rng.standard_normal((3, FEATURES, WIDTH))
    first = write_dictionary(tmp_path / "first", one, three)
    second = write_dictionary(tmp_path / "second", two, three)
    out, result = aligned(tmp_path, first, second, "--draws", 0)
    assert result.measures["raw"].value == pytest.approx(raw(one, two), abs=CLOSE)
    assert "relu, encoder" in out
    out, result = aligned(tmp_path, first, second, "--draws", 0, "--of", "decoder")
    assert result.measures["raw"].value == pytest.approx(1)
    assert "have the same directions" in out
    assert "relu, decoder" in out


def test_two_equal_dictionaries_have_the_same_directions(made, tmp_path, rng):
    folders, arrays = made
    norms = 10 ** rng.uniform(-3, 3, (FEATURES, 1))
    shuffled = write_dictionary(tmp_path / "shuffled", rng.permutation(arrays["a"] * norms))
    for other in (folders["a"], shuffled):
        out, result = aligned(tmp_path, folders["a"], other, "--draws", 5)
        assert "The two dictionaries have the same directions, whatever their norms." in out
        assert result.measures["raw"].p == pytest.approx(1 / 6)
    assert "same directions" not in aligned(tmp_path, folders["a"], folders["b"], "--draws", 5)[0]


def test_independent_dictionaries_are_told_to_be_chance(tmp_path, rng):
    one, two = rng.standard_normal((2, FEATURES, WIDTH))
    first, second = write_dictionary(tmp_path / "1", one), write_dictionary(tmp_path / "2", two)
    out, result = aligned(tmp_path, first, second)
    assert "The two dictionaries are no more alike than chance." in out
    assert "How alike two seeds of one precision are is not known" in out
    assert {beside_chance(own) for own in result.measures.values()} == {"as"}
    assert all(len(own.null) == 100 for own in result.measures.values())


def test_dictionaries_that_began_at_one_seed_are_said_to(tmp_path, rng):
    one, two = rng.standard_normal((2, FEATURES, WIDTH))
    began = [{"training": {"options": {"seed": seed}}} for seed in (3, 3, 4)]
    first, same, other = (
        write_dictionary(tmp_path / str(i), values, **how)
        for i, (values, how) in enumerate(zip((one, two, two + 1), began, strict=True))
    )
    out, result = aligned(tmp_path, first, same, "--draws", 3)
    assert "both trainings began at seed 3" in out
    assert result.provenance.first.seed == 3
    assert "began at seed" not in aligned(tmp_path, first, other, "--draws", 3)[0]


def test_two_more_seeds_are_as_alike_as_seeds_and_a_farther_one_is_less(made, tmp_path):
    folders, _ = made
    floor = ("--floor", ",".join(folders[f"seed{i}"] for i in range(4)))
    out, result = aligned(tmp_path, folders["a"], folders["b"], *floor)
    said = (
        "The two dictionaries are more alike than chance; as alike as two seeds of one precision."
    )
    assert said in in_one_line(out)
    assert {beside_seeds(own) for own in result.measures.values()} == {"as"}
    out, result = aligned(tmp_path, folders["a"], folders["far"], *floor)
    assert "more alike than chance; less alike than two seeds of one precision" in in_one_line(out)
    assert beside_seeds(result.measures["raw"]) == "less"
    _, result = aligned(tmp_path, folders["a"], folders["a"], *floor, "--draws", 0)
    assert beside_seeds(result.measures["raw"]) == "more"


@pytest.mark.parametrize("seeds", [3, 4, 6])
@pytest.mark.parametrize("own", [0.0, 1.0])
def test_one_more_pair_of_seeds_is_rarely_told_apart(seeds, own, rng):
    """Seeds add to a pair, or pairs vary by themselves, too: at most 5 % are told apart."""
    p = []
    for _ in range(2000):
        parts = rng.standard_normal(seeds + 2)
        pairs = parts[:, None] + parts + own * rng.standard_normal((seeds + 2, seeds + 2))
        known = pairs[:seeds, :seeds][np.triu_indices(seeds, 1)]
        p.append(stats.beyond_pairs(pairs[seeds, seeds + 1], known))
    told = np.mean(np.array(p) < 0.05)
    assert told < 0.065
    assert own or told > 0.03
    naive = stats.beyond_draws(pairs[seeds, seeds + 1], known)
    assert naive < p[-1]


def test_two_seeds_make_one_pair_and_no_verdict(made, tmp_path):
    folders, _ = made
    floor = f"{folders['seed0']},{folders['seed1']}"
    out, result = aligned(tmp_path, folders["a"], folders["b"], "--floor", floor, "--draws", 3)
    assert "2 seeds are too few, or too alike, for a verdict: name three or more." in out
    assert result.measures["raw"].floor_mean is not None
    assert result.measures["raw"].floor_sd is None


def test_too_few_draws_are_no_verdict_of_chance(made, tmp_path):
    folders, _ = made
    out, result = aligned(tmp_path, folders["a"], folders["b"], "--draws", 4)
    said = "more alike than every draw of chance, but these are too few for a verdict"
    assert said in in_one_line(out)
    assert "no more alike than chance" not in out
    assert {beside_chance(own) for own in result.measures.values()} == {"few"}
    out, _ = aligned(tmp_path, folders["a"], folders["b"], "--draws", 0)
    assert "Nothing to hold the values against: --draws 0." in out


def test_activations_are_compared_on_the_first_tokens_of_the_chosen_layer(tmp_path, rng):
    x, y, z = rng.standard_normal((3, 40, 6))
    y += 0.5 * x
    first = write_activations(tmp_path / "f32", {0: z, 3: x})
    second = write_activations(tmp_path / "low", {0: z, 3: y}, scheme="int4-g32")
    out, result = aligned(
        tmp_path, first, second, "--layer", 3, "--tokens", 35, "--draws", 30, "--seed", 3
    )
    own = result.measures["cka"]
    assert own.value == pytest.approx(cka(x[:35], y[:35]), abs=CLOSE)
    order = stats.generator(3, "alignment", "null", "29").permutation(35)
    assert own.null[29] == pytest.approx(cka(x[:35], y[:35][order]), abs=CLOSE)
    assert len(own.null) == 30
    assert "read the debiased CKA" in out
    assert "30 random orders of the second's tokens" in out
    assert "(int4-g32, 35 tokens × 6, resid after L3, demo)" in out
    assert result.provenance.texts["texts_sha256"] == "t"
    _, result = aligned(tmp_path, first, second, "--layer", 0, "--draws", 0)
    assert result.measures["cka"].value == pytest.approx(1)
    assert result.provenance.first.rows == 40


def test_rotated_activations_are_the_same_and_a_floor_may_be_given(tmp_path, rng):
    x = rng.standard_normal((40, 6))
    turned = 2 * x @ np.linalg.qr(rng.standard_normal((6, 6)))[0] + 1
    names = [
        write_activations(tmp_path / "x", {3: x}),
        write_activations(tmp_path / "y", {3: turned}),
    ]
    out, _ = aligned(tmp_path, *names, "--draws", 0)
    assert "The two sets of activations are the same, up to shift, scale and rotation." in out
    seeds = [
        write_activations(tmp_path / f"s{i}", {3: x + rng.standard_normal(x.shape)})
        for i in range(3)
    ]
    _, result = aligned(tmp_path, *names, "--draws", 0, "--floor", ",".join(seeds))
    assert len(result.measures["debiased_cka"].floor) == 3


def test_a_result_is_read_as_it_was_written_and_drawn_again(made, tmp_path):
    folders, _ = made
    floor = ",".join(folders[f"seed{i}"] for i in range(3))
    out, result = aligned(
        tmp_path, folders["a"], folders["b"], "--draws", 3, "--floor", floor, figures=True
    )
    path = tmp_path / "out" / "alignment.json"
    assert json.loads(path.read_text())["format"] == "jaxalign.align/1"
    assert ALIGN.read(path) == result
    assert ALIGN.write(result, tmp_path / "again.json") == result
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert result.summary() in out
    assert repr(result).startswith(f"<AlignResult of {folders['a']} and {folders['b']}: ")
    records = result.records()
    assert [one["measure"] for one in records] == list(result.measures)
    assert records[0]["null_mean"] == result.measures["raw"].null_mean
    drawn = tmp_path / "out" / "figures" / "align1_nulls.png"
    before = drawn.read_bytes()
    assert run("plot", "--input", path, "--figures", tmp_path / "figures").code == 0
    assert (tmp_path / "figures" / "align1_nulls.png").read_bytes() == before
    where = result.provenance
    assert [where.first.name, where.second.name] == [folders["a"], folders["b"]]
    assert len({side.sha256 for side in (where.first, where.second, *where.floor)}) == 5
    assert where.environment.versions["jaxalign"]
    assert where.options["draws"] == 3


def test_a_file_with_other_measures_is_refused(made, tmp_path):
    folders, _ = made
    aligned(tmp_path, folders["a"], folders["b"], "--draws", 0)
    path = tmp_path / "out" / "alignment.json"
    content = json.loads(path.read_text())
    del content["measures"]["raw"]
    path.write_text(json.dumps(content))
    assert "measures of dictionaries are raw, mutual" in refusal("plot", "--input", path)


def test_missing_measures_are_explained_and_drawn(made, tmp_path):
    folders, _ = made
    out, result = aligned(tmp_path, folders["a"], folders["few"], "--draws", 3, figures=True)
    assert (
        "procrustes has no value: feature i is fitted to feature i, and there are 40 and 30" in out
    )
    assert result.measures["procrustes"].value is None
    svg = (tmp_path / "out" / "figures" / "align1_nulls.svg").read_text()
    assert "there are 40 and 30" in svg
    assert "held out" in svg


def test_the_screen_fits_its_columns_whatever_names_are_long(made, tmp_path, rng):
    folders, arrays = made
    long = write_dictionary(tmp_path / ("n" * 150), arrays["b"], model="m" * 200)
    floor = ",".join(folders[f"seed{i}"] for i in range(3))
    out, result = aligned(tmp_path, folders["a"], long, "--draws", 2, "--floor", floor, "--verbose")
    text = f"{result.summary()}\n{result.details()}"
    assert max(map(len, text.splitlines())) <= 100
    assert len(result.summary().splitlines()) <= 35
    assert result.details() in out
    assert any("is of model" in note for note in result.provenance.notes)


def test_json_is_one_object_alone(made, tmp_path):
    folders, _ = made
    out, _ = aligned(tmp_path, folders["a"], folders["b"], "--draws", 2, "--json")
    content = json.loads(out)
    assert content["first"] == folders["a"]
    assert content["measures"]["raw"]["value"] > 0.5
    assert "model" not in content


def test_an_interrupted_comparison_goes_on_at_the_next_draw(made, tmp_path, monkeypatch):
    folders, _ = made
    _, whole = aligned(tmp_path, folders["a"], folders["b"], "--draws", 6)
    draw, drawn = alignment._null, []

    def interrupted(*given):
        drawn.append(given[-1][0])
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*given)

    output = tmp_path / "cut" / "alignment.json"
    words = ("align", "--first", folders["a"], "--second", folders["b"], "--draws", 6)
    words += ("--output", output)
    monkeypatch.setattr(alignment, "_null", interrupted)
    ran = run(*words)
    assert ran.code == 2
    assert "interrupted; earlier results are unchanged. Run it again: with the same" in ran.err
    assert not output.exists()
    assert run(*words).code == 0
    assert drawn == [0, 1, 2, 3, 3, 4, 5]
    again = jaxalign.read(output)
    assert again.measures == whole.measures
    assert not list(output.parent.glob("*.journal"))


def test_other_options_do_not_take_what_an_interrupted_comparison_kept(made):
    folders, _ = made

    def facts(**more):
        options = AlignOptions(first=folders["a"], second=folders["b"], **more)
        environment = environment_of(jax.devices()[0])
        return comparing.facts_of(open_sides(options), options, environment)

    assert facts() == facts()
    for more in ({"draws": 7}, {"seed": 1}, {"of": "decoder"},
                 {"floor": (folders["seed0"], folders["seed1"])}):  # fmt: skip
        assert facts(**more) != facts()


def test_long_work_says_how_long_it_takes(made, monkeypatch):
    folders, _ = made
    monkeypatch.setattr(comparing, "SHORT", 0.0)
    options = AlignOptions(first=folders["a"], second=folders["b"], draws=3)
    said = []
    compare(open_sides(options), options, environment_of(jax.devices()[0]), say=said.append)
    [line] = said
    assert re.fullmatch(r"what chance gives takes about \d+ s; fewer --draws take less", line)


# Bad input.


def refused(*words):
    """The one line in which a comparison is refused."""
    return refusal("align", *words)


def test_what_is_no_pair_is_refused(made, tmp_path, rng):
    folders, _ = made
    a = ("--first", folders["a"])
    assert "--second is missing" in refused(*a)
    assert "--first is missing" in refused("--second", folders["b"])
    (tmp_path / "empty").mkdir()
    line = refused(*a, "--second", tmp_path / "empty")
    assert "is no dictionary in a layout that is known here: it has nothing" in line
    assert "and no manifest.json of activations" in line
    assert "jaxalign extract wrote" in line
    assert "there is no such folder" in refused(*a, "--second", tmp_path / "nowhere")
    line = refused(*a, "--second", folders["thin"])
    assert "the first has width 8 and the second 6" in line
    activations = write_activations(tmp_path / "x", {3: rng.standard_normal((40, 8))})
    line = refused(*a, "--second", activations)
    assert f"--first {folders['a']} has dictionaries and --second {activations} activations" in line
    line = refused(*a, "--second", folders["b"], "--floor", f"{activations},{folders['b']}")
    assert "--floor" in line
    assert "compare two dictionaries or two sets of activations" in line


def test_a_floor_that_is_none_is_refused(made, tmp_path):
    folders, arrays = made
    pair = ("--first", folders["a"], "--second", folders["b"])
    elsewhere = write_dictionary(tmp_path / "elsewhere", arrays["seed0"], step=2)
    for floor, said in (
        (["seed0"], "alone, and one seed has no pair"),
        (["seed0", "few"], r"few is \[30, 8\] and --first \[40, 8\]"),
        (["seed0", "thin"], r"thin is \[40, 6\] and --first \[40, 8\]"),
        (["seed0", "seed1", "seed0"], "seed0 is there twice"),
    ):
        line = refused(*pair, "--floor", ",".join(folders[name] for name in floor))
        assert re.search(said, line), line
    line = refused(*pair, "--floor", f"{folders['seed0']},{elsewhere}")
    assert "is at resid after L1 and --first at resid after L3" in line


def test_options_without_use_are_refused(made, tmp_path, rng):
    folders, _ = made
    pair = ("--first", folders["a"], "--second", folders["b"])
    assert "--layer is of activations, and these are dictionaries" in refused(*pair, "--layer", 3)
    assert "--tokens is of activations" in refused(*pair, "--tokens", 30)
    assert "--of 'both' is unknown" in refused(*pair, "--of", "both")
    x = write_activations(tmp_path / "x", {0: np.eye(40)[:, :5], 3: rng.standard_normal((40, 5))})
    assert "--of is of dictionaries" in refused("--first", x, "--second", x, "--of", "encoder")
    assert "has layers 0, 3. choose one with --layer" in refused("--first", x, "--second", x)
    assert "has no layer 2" in refused("--first", x, "--second", x, "--layer", 2)


def test_activations_of_other_tokens_are_refused(tmp_path, rng):
    x = rng.standard_normal((40, 5))
    first = write_activations(tmp_path / "first", {3: x})
    for number, changed in enumerate(
        [{"texts_sha256": "u"}, {"window": 32}, {"stride": 8}, {"bos": 0}, {"positions": "last"}]
    ):
        other = write_activations(tmp_path / f"other{number}", {3: x}, **changed)
        line = refused("--first", first, "--second", other)
        [name] = changed
        assert f"has {name} " in line
        assert "so their rows are not the same tokens" in line
    other = write_activations(tmp_path / "cut", {3: x}, first_document=1)
    assert "have other documents in the same rows" in refused("--first", first, "--second", other)


def test_a_damaged_shard_is_named_where_its_rows_are_compared(tmp_path, rng):
    x = rng.standard_normal((40, 5))
    first = write_activations(tmp_path / "first", {3: x})
    second = write_activations(tmp_path / "second", {3: x})
    shard = tmp_path / "second" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    line = refused("--first", first, "--second", second)
    assert "shard-00001.safetensors has another checksum" in line
    aligned(tmp_path, first, second, "--tokens", 30, "--draws", 0)


def test_a_result_does_not_replace_what_it_is_of(made):
    folders, _ = made
    pair = ("--first", folders["a"], "--second", folders["b"])
    line = refused(*pair, "--output", f"{folders['b']}/cfg.json")
    assert "is a file that --second reads" in line


def test_every_side_of_the_result_is_a_field_of_the_file():
    names = {field.name for field in dataclasses.fields(ALIGN.result)}
    assert names == {"kind", "measures", "provenance"}

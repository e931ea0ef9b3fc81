"""Every family against transformers: logits, parameters there and back, settings."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import (
    ONE_EACH,
    VARIANTS,
    prompts,
    read,
    spelled,
    torch_and_transformers,
    write,
)

from jaxalign.checkpoints import params_from_state_dict, save_checkpoint
from jaxalign.checkpoints.families import FAMILIES, config_from_hf, config_to_hf, read_settings
from jaxalign.checkpoints.parameters import leaf_shapes, rules_of
from jaxalign.checkpoints.quantized import load_quantized
from jaxalign.errors import InputError
from jaxalign.model import cast, count, forward, param_shapes
from jaxalign.model.generate import generate
from jaxalign.numerics import BF16, jit

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder and transformers' model of a variant, written once."""
    kept = {}

    def get(variant):
        if variant not in kept:
            folder = tmp_path_factory.mktemp("checkpoint")
            kept[variant] = folder, write(folder, variant)
        return kept[variant]

    return get


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def expected_logits(model, tokens):
    torch, _ = torch_and_transformers()
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(checkpoints, variant):
    folder, model = checkpoints(variant)
    params, config = read(folder)
    expected = expected_logits(model, prompts())
    ours = jit(lambda p, t: forward(p, t, config).logits)(params, prompts())
    far = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"{variant}: {far:.1e} of the largest logit, {np.abs(expected).max():.2f}")
    assert far <= 1e-5
    assert expected.std() > 0.1


@pytest.mark.parametrize("variant", ["llama, biases", "qwen3, biases, windows", "gemma2"])
def test_bf16_differs_from_transformers_by_rounding_only(checkpoints, variant):
    torch, transformers = torch_and_transformers()
    folder, model = checkpoints(variant)
    params, config = read(folder)
    exact = expected_logits(model, prompts())
    low = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    expected = expected_logits(low, prompts())
    run = jit(lambda p, t: forward(p, t, config, scheme=BF16).logits)
    ours = run(cast(params, BF16), prompts())
    drift = np.linalg.norm(expected - exact)
    assert np.linalg.norm(ours - expected) < 2 * drift
    assert np.linalg.norm(ours - exact) < 1.5 * drift


@pytest.mark.parametrize("variant", ONE_EACH)
def test_checkpoint_there_and_back_is_the_same_parameters(checkpoints, variant, tmp_path):
    folder, model = checkpoints(variant)
    params, config = read(folder)
    save_checkpoint(params, config, tmp_path, "float32")
    again, config_again = read(tmp_path)
    assert config_again == config
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    in_memory = params_from_state_dict(model.state_dict(), config)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, in_memory))


@pytest.mark.parametrize("variant", VARIANTS)
def test_table_fills_every_leaf_exactly_once(checkpoints, variant):
    folder, _ = checkpoints(variant)
    config = config_from_hf(settings_of(folder))
    shapes = leaf_shapes(config)
    filled = {name: np.zeros(shape, int) for name, shape in shapes.items()}
    for rule in rules_of(config, shapes):
        for target in rule.targets:
            target.of(filled[target.leaf])[...] += 1
    for name, times in filled.items():
        assert (times == 1).all(), name


def test_every_family_has_a_tested_checkpoint():
    assert set(FAMILIES) == {family for family, _ in VARIANTS.values()} | {"gpt_neox"}


@pytest.mark.parametrize("variant", ONE_EACH)
def test_settings_we_write_are_read_by_transformers_as_the_same_model(checkpoints, variant):
    torch, transformers = torch_and_transformers()
    folder, model = checkpoints(variant)
    written = config_to_hf(config_from_hf(settings_of(folder)))
    config = transformers.AutoConfig.for_model(**written)
    config._attn_implementation = "eager"
    again = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    again.load_state_dict(model.state_dict())
    assert np.array_equal(expected_logits(again, prompts()), expected_logits(model, prompts()))


def test_gemma3_in_the_old_spelling_is_the_new_one(checkpoints):
    new = settings_of(checkpoints("gemma3")[0])
    rope, types = new.pop("rope_parameters"), new.pop("layer_types")
    old = new | {
        "rope_theta": 500.0,
        "rope_local_base_freq": 20.0,
        "rope_scaling": {"factor": 2.5, "rope_type": "linear"},
        "sliding_window_pattern": 2,
    }
    assert config_from_hf(old) == config_from_hf(new | {"rope_parameters": rope}
                                                 | {"layer_types": types})  # fmt: skip
    assert config_of("gemma3_text").rotary_base == 1e6
    assert config_of("gemma3_text").local_rotary_base == 1e4
    assert config_of("gemma3_text", num_hidden_layers=7).windows == (*(4096,) * 5, None, 4096)


def test_the_text_model_alone_is_read_of_one_that_sees_pictures(checkpoints):
    folder, _ = checkpoints("gemma3, with pictures")
    config, notes = read_settings(settings_of(folder))
    assert config == config_from_hf(settings_of(checkpoints("gemma3")[0]))
    assert notes == ("config.json is of a model that sees pictures, too: its text model alone is "
                     "read",)  # fmt: skip
    other = settings_of(folder) | {"tie_word_embeddings": False}
    with pytest.raises(InputError, match="tie_word_embeddings is false, expected text_config's"):
        read_settings(other)
    other = settings_of(folder) | {"mystery": 1}
    with pytest.raises(InputError, match="not known: mystery"):
        read_settings(other)
    assert read_settings(other, ignored=("mystery",))[0] == config


@pytest.mark.parametrize("variant", ["llama, scaled like 3.1", "llama, scaled linearly", "qwen3"])
def test_old_spelling_of_rotation_is_the_new_one(checkpoints, variant):
    folder, _ = checkpoints(variant)
    new = settings_of(folder)
    rope = new.pop("rope_parameters")
    old = new | {"rope_theta": rope.pop("rope_theta")}
    if rope["rope_type"] != "default":
        old["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    assert config_from_hf(old) == config_from_hf(settings_of(folder))
    both = {"rope_parameters": {"rope_theta": 1.0}, "rope_scaling": {"type": "linear", "factor": 2}}
    with pytest.raises(InputError, match="both rope_parameters and rope_scaling"):
        config_from_hf(new | both)


# Phi-3's scaling as its first files spell it.
SU = {"type": "su", "short_factor": [1.0, 1.5, 2, 3], "long_factor": [2.0, 4.0, 8, 16]}
BARE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 64,
}


def config_of(family, **settings):
    bare = BARE if family != "gpt_neox" else {n: v for n, v in BARE.items() if "key_value" not in n}
    return config_from_hf({"model_type": family} | spelled(family, bare | settings))


def test_null_and_missing_settings_mean_what_they_mean_to_transformers():
    assert config_of("mistral").windows == (4096, 4096)
    assert config_of("mistral", sliding_window=None).windows == ()
    gemma = config_of("gemma2")
    assert (gemma.attention_cap, gemma.logit_cap, gemma.head_size) == (50.0, 30.0, 256)
    assert gemma.windows == (4096, None)
    assert gemma.tied_embeddings
    bare = config_of("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (bare.attention_cap, bare.logit_cap) == (None, None)
    assert config_of("qwen3").head_size == 128
    assert config_of("qwen2").windows == ()
    assert config_of("qwen2", use_sliding_window=True, max_window_layers=1).windows == (None, 4096)
    assert config_of("llama", num_key_value_heads=None).num_kv_heads == 8


# What transformers 4.57 adds to every config.json that `config.to_dict()` writes.
WRITTEN_BY_4_57 = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "finetuning_task": None,
    "forced_eos_token_id": None,
    "length_penalty": 1.0,
    "max_length": 20,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "prefix": None,
    "pruned_heads": {},
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "task_specific_params": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "torchscript": False,
    "use_bfloat16": False,
}
ADDED_BY_OTHER_TOOLS = {
    "_attn_implementation_autoset": True,
    "auto_map": {},
    "max_sequence_length": 2048,
    "temperature": 0.9,
    "tokenizer_class": "LlamaTokenizer",
    "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
    "unsloth_fixed": True,
    "unsloth_version": "2025.1",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_cannot_change_the_computation_are_taken(family):
    _, transformers = torch_and_transformers()
    plain = config_of(family)
    assert config_of(family, **WRITTEN_BY_4_57) == plain
    assert config_of(family, **ADDED_BY_OTHER_TOOLS) == plain
    theirs = transformers.AutoConfig.for_model(family)
    ours = config_from_hf(theirs.to_dict())
    assert ours.max_positions == theirs.get_text_config().max_position_embeddings
    assert ours == config_from_hf(theirs.to_dict() | transformers.GenerationConfig().to_dict())
    for name, value in (("add_cross_attention", True), ("pruned_heads", {"0": [1]})):
        with pytest.raises(InputError, match=name):
            config_of(family, **{name: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_context_is_the_one_that_transformers_assumes_and_is_noted(family):
    _, transformers = torch_and_transformers()
    theirs = transformers.AutoConfig.for_model(family)
    assumed = theirs.get_text_config().max_position_embeddings
    settings = {n: v for n, v in BARE.items() if n.startswith(("vocab", "hidden", "interm"))}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 32, "hidden_size": 256}
    given = {"model_type": family} | spelled(family, settings)
    config, [*_, note] = read_settings(given, "a/config.json")
    name = {"gpt2": "n_positions"}.get(family, "max_position_embeddings")
    assert config.max_positions == assumed
    assert note == f"a/config.json has no {name}: {assumed}, as transformers assumes"


def published(family, **settings):
    """Settings as the hub has them, in the spelling of their time."""
    heads, kv, hidden, inner, layers, vocab, positions = settings.pop("sizes")
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
    }
    return {"model_type": family} | spelled(family, sizes | settings)


LLAMA_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        (
            published(
                "llama",
                sizes=(32, 32, 4096, 11008, 32, 32000, 4096),
                rms_norm_eps=1e-5,
                pretraining_tp=1,
                rope_scaling=None,
                tie_word_embeddings=False,
            ),
            6_738_415_616,
        ),
        (
            published(
                "llama",
                sizes=(32, 8, 4096, 14336, 32, 128256, 131072),
                mlp_bias=False,
                rope_scaling=LLAMA_31,
                rope_theta=500000.0,
            ),
            8_030_261_248,
        ),
        (
            published(
                "qwen2",
                sizes=(14, 2, 896, 4864, 24, 151936, 32768),
                max_window_layers=24,
                sliding_window=32768,
                use_mrope=False,
                use_sliding_window=False,
                rope_theta=1000000.0,
                tie_word_embeddings=True,
            ),
            494_032_768,
        ),
        (
            published(
                "qwen3",
                sizes=(16, 8, 1024, 3072, 28, 151936, 40960),
                head_dim=128,
                max_window_layers=28,
                rope_theta=1000000,
                sliding_window=None,
                tie_word_embeddings=True,
            ),
            596_049_920,
        ),
        (
            published("mistral", sizes=(32, 8, 4096, 14336, 32, 32000, 32768), sliding_window=4096),
            7_241_732_096,
        ),
        (
            published(
                "gemma2",
                sizes=(8, 4, 2304, 9216, 26, 256000, 8192),
                head_dim=256,
                hidden_act="gelu_pytorch_tanh",
                cache_implementation="hybrid",
                query_pre_attn_scalar=256,
            ),
            2_614_341_888,
        ),
        (
            published(
                "phi3",
                sizes=(32, 32, 3072, 8192, 32, 32064, 4096),
                attention_bias=False,
                embd_pdrop=0.0,
                original_max_position_embeddings=4096,
                resid_pdrop=0.0,
                rms_norm_eps=1e-5,
                rope_scaling=None,
                sliding_window=2047,
            ),
            3_821_079_552,
        ),
        (
            published(
                "phi3",
                sizes=(24, 8, 3072, 8192, 32, 200064, 131072),
                attention_bias=False,
                original_max_position_embeddings=4096,
                partial_rotary_factor=0.75,
                rms_norm_eps=1e-5,
                rope_scaling={"type": "longrope"}
                | {name: [1.5] * 48 for name in ("long_factor", "short_factor")},
                rope_theta=10000.0,
                sliding_window=262144,
                tie_word_embeddings=True,
            ),
            3_836_021_760,
        ),
        (
            published(
                "gemma3_text",
                sizes=(4, 1, 1152, 6912, 26, 262144, 32768),
                attn_logit_softcapping=None,
                cache_implementation="hybrid",
                final_logit_softcapping=None,
                head_dim=256,
                query_pre_attn_scalar=256,
                rope_local_base_freq=10000,
                rope_scaling=None,
                rope_theta=1000000,
                sliding_window=512,
                sliding_window_pattern=6,
            ),
            999_885_952,
        ),
        (
            {
                "model_type": "gemma3",
                "boi_token_index": 255999,
                "eoi_token_index": 256000,
                "image_token_index": 262144,
                "mm_tokens_per_image": 256,
                "text_config": {
                    "hidden_size": 2560,
                    "intermediate_size": 10240,
                    "model_type": "gemma3_text",
                    "num_hidden_layers": 34,
                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024,
                },
                "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
            },
            3_880_263_168,
        ),
        (
            published(
                "gpt2",
                sizes=(12, 12, 768, None, 12, 50257, 1024),
                attn_pdrop=0.1,
                embd_pdrop=0.1,
                layer_norm_epsilon=1e-5,
                n_ctx=1024,
                resid_pdrop=0.1,
                summary_activation=None,
                summary_first_dropout=0.1,
                summary_proj_to_labels=True,
                summary_type="cls_index",
                summary_use_proj=True,
                task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
            ),
            124_439_808,
        ),
        (
            published(
                "olmo",
                sizes=(16, 16, 2048, 8192, 16, 50304, 2048),
                attention_bias=False,
                clip_qkv=None,
                rope_scaling=None,
                rope_theta=10000.0,
                tie_word_embeddings=True,
            ),
            1_176_764_416,
        ),
        (
            published(
                "olmo2",
                sizes=(16, 16, 2048, 8192, 16, 100352, 4096),
                attention_bias=False,
                rms_norm_eps=1e-6,
                rope_scaling=None,
                rope_theta=500000,
            ),
            1_484_916_736,
        ),
    ],
    ids=[
        "Llama 2 7B",
        "Llama 3.1 8B",
        "Qwen2.5 0.5B",
        "Qwen3 0.6B",
        "Mistral 7B",
        "Gemma 2 2B",
        "Phi-3 mini",
        "Phi-4 mini",
        "Gemma 3 1B",
        "Gemma 3 4B, its text model",
        "GPT-2",
        "OLMo 1B",
        "OLMo 2 1B",
    ],
)
def test_published_models_have_their_published_number_of_parameters(settings, parameters):
    assert count(param_shapes(config_from_hf(settings))) == parameters


@pytest.mark.parametrize(
    ("family", "setting", "words"),
    [
        ("llama", {"sliding_window": 128}, "not known: sliding_window"),
        ("llama", {"quantization_config": {}}, "not known: quantization_config"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp 2, expected 1"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved true"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.*dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_parameters.*ya"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"rope_scaling": LLAMA_31 | {"beta_fast": 3}}, "beta_fast"),
        ("llama", {"rope_scaling": LLAMA_31 | {"factor": 0}}, "factor is 0"),
        ("llama", {"rope_scaling": LLAMA_31 | {"low_freq_factor": 9}}, "low < high"),
        ("llama", {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ("llama", {"head_dim": 7}, "7 of 7 coordinates"),
        ("llama", {"hidden_act": "swiglu"}, "hidden_act 'swiglu'"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "not known: layer_types"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("qwen2", {"use_mrope": True}, "use_mrope true"),
        ("qwen2", {"layer_types": ["full_attention"]}, "each of 2 layers"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "but no sliding_window"),
        ("qwen3", {"layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ("gemma2", {"sliding_window": None}, "null sliding_window"),
        ("phi3", {"attention_bias": True}, "attention_bias true"),
        ("phi3", {"resid_pdrop": "none"}, 'resid_pdrop is "none"'),
        ("phi3", {"original_max_position_embeddings": "long"}, "original_max_position_embeddings"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling asks for"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope"}},
            "short_factor is null, expected a list of",
        ),
        ("phi3", {"rope_scaling": SU | {"long_factor": [1.0]}}, "long_factor is .*4 numbers"),
        ("phi3", {"rope_scaling": SU | {"short_factor": [1, 1, 1, 0]}}, "short_factor is 0"),
        ("phi3", {"rope_scaling": SU | {"short_mscale": 1.1}}, "not known: short_mscale"),
        ("phi3", {"partial_rotary_factor": 0.4}, "turn 3 of 8 coordinates"),
        (
            "phi3",
            {"rope_scaling": SU | {"original_max_position_embeddings": 9}},
            "original_max_position_embeddings is 9, expected 4096",
        ),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention true"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 9.0}}, "expected sliding_attention and"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "layers with a window do not have",
        ),
        ("gemma3_text", {"rope_local_base_freq": -1}, "rope_local_base_freq is -1"),
        ("gemma3", {"vision": 1}, "not known: vision"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights false"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx true"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn true"),
        ("gpt2", {"attn_pdrop": "none"}, 'attn_pdrop is "none"'),
        ("gpt2", {"n_ctx": "long"}, 'n_ctx is "long"'),
        ("gpt2", {"rope_theta": 10000.0}, "not known: rope_theta"),
        ("olmo", {"clip_qkv": 0}, "clip_qkv is 0"),
        ("olmo", {"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06, expected 1e-05"),
        ("olmo2", {"clip_qkv": 8.0}, "not known: clip_qkv"),
        ("gemma2", {"hidden_act": "gelu"}, 'hidden_act "gelu"'),
        ("gemma2", {"final_logit_softcapping": -1.0}, "final_logit_softcapping is -1"),
        ("gemma4_text", {}, "'gemma4_text'.*llama, qwen2, qwen3, mistral, gemma2"),
    ],
)
def test_settings_that_change_the_computation_are_refused_by_name(family, setting, words):
    with pytest.raises(InputError, match=words):
        config_of(family, **setting)


def test_the_base_of_layers_with_a_window_is_their_own(checkpoints):
    params, config = read(checkpoints("gemma3")[0])
    plain = forward(params, jnp.asarray(prompts()), config).logits
    for change in ({"local_rotary_base": None}, {"rotary_base": 20.0}, {"rotary_scaling": None}):
        other = forward(params, jnp.asarray(prompts()), replace(config, **change)).logits
        assert np.abs(other - plain).max() > 1e-3, change


def test_windows_and_caps_change_what_is_computed(checkpoints):
    params, config = read(checkpoints("gemma2")[0])

    plain = forward(params, jnp.asarray(prompts()), config).logits
    for change in (
        {"windows": ()},
        {"windows": (None, 4, None)},
        {"attention_cap": None},
        {"logit_cap": None},
        {"query_scalar": float(config.head_size)},
        {"scaled_embedding": False},
        {"norm": "rms"},
    ):
        other = forward(params, jnp.asarray(prompts()), replace(config, **change)).logits
        assert np.abs(other - plain).max() > 1e-3, change


def test_gpt2_is_read_as_the_hub_has_it_without_a_first_name_and_with_masks(checkpoints):
    folder, model = checkpoints("gpt2")
    params, config = read(folder)
    bare = {n.removeprefix("transformer."): t for n, t in model.state_dict().items()}
    bare |= {f"h.{n}.attn.bias": np.tril(np.ones((1, 1, 64, 64), bool)) for n in range(3)}
    bare["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_from_state_dict(bare, config)))
    del bare["wpe.weight"]
    with pytest.raises(InputError, match=r"tensor 'transformer\.wpe\.weight' is missing"):
        params_from_state_dict(bare, config)


def test_a_position_that_was_not_learned_is_refused(checkpoints):
    params, config = read(checkpoints("gpt2")[0])
    with pytest.raises(InputError, match="a run of 65 positions, and the model knows 64"):
        forward(params, jnp.ones((1, 65), int), config)
    with pytest.raises(InputError, match="a run of 67 positions, and the model knows 64"):
        generate(params, jnp.ones((1, 60), int), jnp.array([60]), config, steps=7)


def test_longrope_is_read_up_to_the_context_of_pretraining(checkpoints):
    folder, _ = checkpoints("phi3, longrope")
    config, [note] = read_settings(settings_of(folder))
    assert (config.max_positions, config.rotary_dims) == (24, 4)
    assert "texts up to 24 tokens are read, with its short factors" in note
    assert config.rotary_scaling.amplitude == np.sqrt(1 + np.log(64 / 24) / np.log(24))
    params, _ = read(folder)
    assert forward(params, jnp.ones((1, 24), int), config).logits.shape == (1, 24, 97)
    with pytest.raises(InputError, match="a run of 25 positions, and the model knows 24"):
        forward(params, jnp.ones((1, 25), int), config)


def test_longrope_in_older_spellings_is_the_new_one():
    long = {"max_position_embeddings": 8192}
    new = config_of("phi3", rope_parameters=SU | {"type": None, "rope_type": "longrope"}, **long)
    assert new == config_of("phi3", rope_scaling=SU, **long)
    assert new.rotary_scaling.amplitude == np.sqrt(1 + np.log(2) / np.log(4096))
    given = config_of("phi3", rope_scaling=SU | {"attention_factor": 1.25}, **long)
    assert given.rotary_scaling.amplitude == 1.25


def test_a_quantized_gpt2_is_refused_in_words(checkpoints, tmp_path):
    _, config = read(checkpoints("gpt2")[0])
    settings = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 16}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"GPT-2, whose linear layers are published \[in, out\]"):
        load_quantized(tmp_path, config)

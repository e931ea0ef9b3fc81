"""Settings of a ``config.json`` that cannot change what a trained decoder computes."""

from __future__ import annotations

from typing import Any

# Settings that do not reach the forward pass of a trained model: bookkeeping, token numbers,
# initialisation, dropout (off outside training), how text is generated, heads of other tasks, and
# how transformers returns its results.
_NEUTRAL = """
architectures assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
assistant_lookbehind attention_dropout attn_implementation auto_map bad_words_ids
begin_suppress_tokens cache_config cache_implementation chunk_size_feed_forward classifier_dropout
compile_config constraints continuous_batching_config disable_compile diversity_penalty do_sample
dola_layers dtype early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
epsilon_cutoff eta_cutoff exponential_decay_length_penalty finetuning_task force_words_ids
gradient_checkpointing guidance_scale hidden_dropout id2label initializer_range is_assistant
is_decoder is_encoder_decoder is_llama_config label2id length_penalty low_memory max_cache_len
max_length max_matching_ngram_size max_new_tokens max_sequence_length max_time min_length
min_new_tokens min_p model_max_length model_type no_repeat_ngram_size num_assistant_tokens
num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_attentions
output_hidden_states output_logits output_scores penalty_alpha prefill_chunk_size prefix
problem_type prompt_lookup_num_tokens remove_invalid_values renormalize_logits repetition_penalty
return_dict return_dict_in_generate sequence_bias speculation_type stop_strings
summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
suppress_tokens
target_lookbehind task_specific_params temperature tf_legacy_loss token_healing tokenizer_class
top_h top_k top_p torch_dtype torchscript typical_p use_bfloat16 use_cache use_mtp
watermarking_config
"""
NEUTRAL = frozenset(_NEUTRAL.split())
NEUTRAL_BEGINNINGS = ("_", "transformers", "unsloth_")
NEUTRAL_ENDS = ("_token_id", "_token_ids")

# Settings that transformers wrote into every config.json, whatever the model, and the one value
# that each has in a plain decoder.
PLAIN: dict[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}


def neutral(name: str) -> bool:
    """Whether a setting of this name cannot change what is computed, whatever its value."""
    return name in NEUTRAL or name.startswith(NEUTRAL_BEGINNINGS) or name.endswith(NEUTRAL_ENDS)

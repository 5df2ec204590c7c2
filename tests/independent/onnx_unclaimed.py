"""What the ONNX project's node test cases ask for and xpnn does not do: each case by name, under the reason why not.

The table is complete for onnx up to `COMPLETE_UP_TO`. A case of a newer onnx that no mapping can take is printed at the
end of the run as new, and fails nothing: a release of onnx is no bug of xpnn. A case that a mapping takes must give the
expected numbers, however new it is.
"""

COMPLETE_UP_TO = (1, 23)

ADDITIVE_MASK = "the mask is a float that is added to the scores; xpnn's masks are bools"
SOFTCAP = "the scores go through a scaled tanh (softcap)"
HALF = "half precision, which the array API standard does not have"
INTEGERS = "integers; xpnn's ops take real numbers"
DILATED_POOLING = "dilation of a pooling window"
NO_REDUCTION = 'reduction "none": a loss of xpnn is one number'
PEEPHOLES = "peepholes from the cell to the gates of an LSTM"
RESET_BEFORE = (
    "a GRU whose reset gate acts on the state before the product; in xpnn it acts on the product, as in PyTorch"
)
OWN_RANDOM_NUMBERS = "the expected mask comes from NumPy's legacy random generator; xpnn's masks come from Philox"

UNCLAIMED = {
    ADDITIVE_MASK: (
        "test_attention_3d_attn_mask",
        "test_attention_3d_diff_heads_sizes_attn_mask",
        "test_attention_3d_diff_heads_with_past_and_present",
        "test_attention_3d_gqa_attn_mask",
        "test_attention_3d_gqa_with_past_and_present",
        "test_attention_3d_with_past_and_present",
        "test_attention_3d_with_past_and_present_qk_matmul",
        "test_attention_3d_with_past_and_present_qk_matmul_bias",
        "test_attention_3d_with_past_and_present_qk_matmul_softmax",
        "test_attention_4d_attn_mask",
        "test_attention_4d_attn_mask_3d",
        "test_attention_4d_attn_mask_3d_causal",
        "test_attention_4d_attn_mask_4d",
        "test_attention_4d_attn_mask_4d_causal",
        "test_attention_4d_diff_heads_mask4d_padded_kv",
        "test_attention_4d_diff_heads_sizes_attn_mask",
        "test_attention_4d_diff_heads_with_past_and_present",
        "test_attention_4d_diff_heads_with_past_and_present_mask3d",
        "test_attention_4d_diff_heads_with_past_and_present_mask4d",
        "test_attention_4d_gqa_attn_mask",
        "test_attention_4d_gqa_with_past_and_present",
        "test_attention_4d_with_past_and_present",
        "test_attention_4d_with_past_and_present_qk_matmul",
        "test_attention_4d_with_past_and_present_qk_matmul_bias",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask",
        "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
        "test_attention_4d_with_qk_matmul_bias",
        "test_attention_4d_with_qk_matmul_softmax",
        "test_attention_local_window_ext_cache_rank2_mask",
        "test_attention_local_window_ext_cache_rank3_head_mask",
        "test_attention_local_window_ext_cache_rank4_batch_mask",
    ),
    DILATED_POOLING: (
        "test_averagepool_2d_dilations",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_0_ceil_mode_is_True",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_False",
        "test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True",
        "test_averagepool_3d_dilations_small",
        "test_maxpool_2d_dilations",
        "test_maxpool_3d_dilations",
        "test_maxpool_3d_dilations_use_ref_impl",
        "test_maxpool_3d_dilations_use_ref_impl_large",
    ),
    HALF: (
        "test_attention_24_qk_matmul_output_mode3_softmax_precision",
        "test_attention_3d_causal_bf16",
        "test_attention_4d_attn_mask_causal_bf16",
        "test_attention_4d_causal_bf16",
        "test_attention_4d_causal_fp16",
        "test_attention_4d_causal_padded_kv_bf16",
        "test_attention_4d_fp16",
        "test_attention_4d_gqa_causal_nonpad_decode_fp16",
        "test_attention_4d_gqa_with_past_and_present_fp16",
        "test_attention_4d_padded_kv_bf16",
        "test_attention_local_window_ext_cache_float16_mask",
    ),
    INTEGERS: ("test_maxpool_2d_uint8",),
    NO_REDUCTION: (
        "test_nllloss_NC",
        "test_nllloss_NCd1d2",
        "test_nllloss_NCd1d2_with_weight",
        "test_nllloss_NCd1d2d3_none_no_weight_negative_ii",
        "test_nllloss_NCd1d2d3d4d5_none_no_weight",
        "test_sce_NCd1d2d3_none_no_weight_negative_ii",
        "test_sce_NCd1d2d3_none_no_weight_negative_ii_log_prob",
        "test_sce_NCd1d2d3d4d5_none_no_weight",
        "test_sce_NCd1d2d3d4d5_none_no_weight_log_prob",
        "test_sce_none",
        "test_sce_none_log_prob",
        "test_sce_none_weights",
        "test_sce_none_weights_log_prob",
    ),
    OWN_RANDOM_NUMBERS: (
        "test_training_dropout",
        "test_training_dropout_default",
        "test_training_dropout_default_mask",
        "test_training_dropout_mask",
    ),
    PEEPHOLES: ("test_lstm_with_peepholes",),
    RESET_BEFORE: (
        "test_gru_bidirectional",
        "test_gru_reverse",
        "test_gru_seq_length",
    ),
    SOFTCAP: (
        "test_attention_3d_diff_heads_sizes_softcap",
        "test_attention_3d_gqa_softcap",
        "test_attention_3d_softcap",
        "test_attention_3d_with_past_and_present_qk_matmul_softcap",
        "test_attention_4d_diff_heads_sizes_softcap",
        "test_attention_4d_gqa_softcap",
        "test_attention_4d_softcap",
        "test_attention_4d_softcap_neginf_mask",
        "test_attention_4d_softcap_neginf_mask_poison",
        "test_attention_4d_with_qk_matmul_softcap",
        "test_attention_local_window_gqa_rank4_mask",
    ),
}
"""Why not -> the names of the cases."""

UNCLAIMED_OUTPUTS: dict[tuple[str, str], str] = {
    ("Attention", "qk_matmul_output"): "scores before the softmax are not kept; the weights behind it are checked",
    ("Dropout", "mask"): "the layer does not give its mask",
    ("LayerNormalization", "InvStdDev"): "the statistics are not given",
    ("LayerNormalization", "Mean"): "the statistics are not given",
    ("MaxPool", "Indices"): "the places of the maxima are not given; the matrix checks where the gradient goes",
}
"""Outputs that xpnn does not give, of cases whose other outputs are checked: (op type, formal name) -> why."""

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
CEIL_COUNTED = "ceil_mode that divides by the padding and not by what lies behind it"
NO_REDUCTION = 'reduction "none": a loss of xpnn is one number'
PEEPHOLES = "peepholes from the cell to the gates of an LSTM"
RESET_BEFORE = "a GRU whose reset gate acts on the state before the product; in xpnn it acts on the product, as in PyTorch"
OWN_RANDOM_NUMBERS = "the expected mask comes from NumPy's legacy random generator; xpnn's masks come from Philox"

UNCLAIMED: dict[str, tuple[str, ...]] = {}

UNCLAIMED_OUTPUTS: dict[tuple[str, str], str] = {
    ("Attention", "qk_matmul_output"): "scores before the softmax are not kept; the weights behind it are checked",
    ("Dropout", "mask"): "the layer does not give its mask",
    ("LayerNormalization", "InvStdDev"): "the statistics are not given",
    ("LayerNormalization", "Mean"): "the statistics are not given",
    ("MaxPool", "Indices"): "the places of the maxima are not given; the matrix checks where the gradient goes",
}
"""Outputs that xpnn does not give, of cases whose other outputs are checked: (op type, formal name) -> why."""

"""Faults of the other mechanisms, and of layers as their papers have them."""

TWIN = "test_cores.py::test_values_and_gradients_equal_the_twin"
OPTIONS = "test_cores.py::test_options_equal_the_twin"
RECURRENCE = "test_input_cores.py::test_gla_is_its_recurrence"
MERGED = "test_input_cores.py::test_merged_convolution"
LAYER = "test_paper.py::test_layer_is_its_formula"
STATISTICS = "test_ravlt_training.py::test_with_cp_moves_statistics_once"
IN_A_NETWORK = "test_paper.py::test_in_a_network"

PAPERS = {
    "models/attention/features.py": [
        ("eps is dropped", "return mean + 1e-6", "return mean", TWIN),
        ("sums are no means", "k = k / k.shape[-2]", "k = k * 1.0", TWIN),
    ],
    "models/attention/focused.py": [
        ("norms are of a head", "x, dim=(1, 3), keepdim", "x, dim=3, keepdim", TWIN),
        (
            "eps after the scale",
            "(x.relu() + 1e-6) / scale",
            "x.relu() / scale + 1e-6",
            TWIN,
        ),
        (
            "positions are resized otherwise",
            'mode="bicubic"',
            'mode="bilinear"',
            "test_paper.py::test_positions_are_resized",
        ),
        ("the local term is of the keys", "self._local(v)", "self._local(k)", LAYER),
    ],
    "models/attention/cosformer.py": [
        ("half waves", "(math.pi / 2 / length)", "(math.pi / length)", TWIN),
        (
            "keys keep their sign",
            "modulate(k.relu(), waves)",
            "modulate(k, waves)",
            TWIN,
        ),
    ],
    "models/attention/vicinity.py": [
        (
            "the inverse is not clamped",
            "_clamp(1 / sums)",
            "(1 / sums)",
            "test_core_properties.py::test_the_legacy_clamp_of_vicinity",
        ),
        (
            "keys keep their sign",
            "modulate(k.relu(), waves)",
            "modulate(k, waves)",
            TWIN,
        ),
        ("the gate replaces", "* (1 + gate)", "* gate", LAYER),
    ],
    "models/attention/norm.py": [
        (
            "the norm is of a head",
            "channels = x.shape[1] * x.shape[3]",
            "channels = x.shape[3]",
            "test_core_properties.py::test_norm_attention_has_unit_rows",
        ),
    ],
    "models/attention/diag.py": [
        (
            "softmax sees the padding",
            "real.transpose(-2, -1) > 0",
            "real.transpose(-2, -1) >= 0",
            OPTIONS,
        ),
        (
            "scores without the scale",
            "scores = q * q.shape[-1] ** -0.5 @ k",
            "scores = q @ k",
            OPTIONS,
        ),
    ],
    "models/attention/fixation.py": [
        (
            "gates do not see the value",
            "torch.cat((q, k, v)",
            "torch.cat((q, k, k)",
            TWIN,
        ),
        ("keys take the queries' gate", "_gate(self.gate_k", "_gate(self.gate_q", TWIN),
    ],
    "models/attention/shift.py": [
        (
            "too few channels move",
            "NEIGHBOURS, share=16",
            "NEIGHBOURS, share=32",
            "test_shift.py::test_spatial_shift_copies_neighbours",
        ),
    ],
    "models/attention/hedgehog.py": [
        ("shifts do not cancel", "q + k_max, k - k_max", "q - k_max, k - k_max", TWIN),
        (
            "no negated half",
            "torch.cat((k, -k), dim=-1)",
            "torch.cat((k, k), dim=-1)",
            TWIN,
        ),
    ],
    "models/attention/gla.py": [
        (
            "states decay from the wrong end",
            "(k * (total - sums).exp())",
            "(k * sums.exp())",
            RECURRENCE,
        ),
        (
            "columns are put back as rows",
            "_transposed(x, hw[::-1]) if",
            "_transposed(x, hw) if",
            RECURRENCE,
        ),
        ("chunks know themselves", "g.device).triu()", "g.device).triu(1)", RECURRENCE),
        (
            "gates forget faster",
            "_SHARPNESS = 16",
            "_SHARPNESS = 8",
            "test_input_cores.py::test_gla_forgets_half_in_sixteen_tokens",
        ),
        (
            "no gain",
            "y * rms_factor(y) * self.gain.to(y.dtype)",
            "y * rms_factor(y)",
            TWIN,
        ),
        ("shares do not sum to 1", "(1 - share)", "share", LAYER),
        ("the gates see the input", "hw, local), hw)", "hw, x), hw)", LAYER),
    ],
    "models/attention/chela.py": [
        (
            "merged without a shift",
            "bias = bias + shift",
            "bias = shift",
            MERGED,
        ),
        (
            "the short kernel is off the middle",
            "(margin,) * 4",
            "(margin - 1, margin + 1, margin, margin)",
            "test_input_cores.py::test_merged_kernel",
        ),
        (
            "queries and keys are exchanged",
            "return q + u_q, k + u_k",
            "return q + u_k, k + u_q",
            TWIN,
        ),
        (
            "the core has norms of its own kind",
            "self.conv = ShortLongConv(dim, _LONG, _SHORT, norm_cfg)",
            "self.conv = ShortLongConv(dim, _LONG, _SHORT, _BATCH_NORM)",
            STATISTICS,
        ),
        (
            "the layer has norms of its own kind",
            "self.high = ShortLongConv(dim, _SHORT, 1, norm_cfg)",
            "self.high = ShortLongConv(dim, _SHORT, 1, _BATCH_NORM)",
            STATISTICS,
        ),
        (
            "the low frequencies come first",
            "self.low(F.silu(self.high(x)))",
            "self.high(F.silu(self.low(x)))",
            LAYER,
        ),
        (
            "no activation between the convolutions",
            "self.low(F.silu(self.high(x)))",
            "self.low(self.high(x))",
            LAYER,
        ),
        ("the gate is of the input", "self.gate(u)", "self.gate(x)", LAYER),
        ("projections are of the input", "self.qkv(u)", "self.qkv(x)", LAYER),
        (
            "the residual starts at the input",
            "F.silu(self.gate(u))) + u",
            "F.silu(self.gate(u))) + x",
            LAYER,
        ),
        (
            "the core keeps its norms",
            "        self.conv = self.conv.merge()",
            "        self.conv.eval()",
            "test_input_cores.py::test_merged_convolution",
        ),
        (
            "the layer keeps norms",
            "self.high, self.low = self.high.merge(), self.low.merge()",
            "self.low = self.low.merge()",
            IN_A_NETWORK,
        ),
        (
            "frozen convolutions learn when merged",
            "        merged.requires_grad_(self.long.weight.requires_grad)\n",
            "",
            "test_input_cores.py::test_frozen_convolutions_merge_frozen",
        ),
    ],
}

"""Faults of RALA, of RoPE, of softmax and of the shell around all cores."""

TWIN = "test_cores.py::test_values_and_gradients_equal_the_twin"
IN_TILES = "test_tiling.py::test_cores_mix_in_tiles"
ROTATION = "test_rope.py::test_rotation_acts_on_adjacent_pairs"
TABLE = "test_rope.py::test_another_table_is_refused_by_name"
NETWORK = "test_ravlt_numbers.py::test_the_network_equals_its_channels_first_twin"
TILES = "test_tiling.py::test_tiles_equal_the_whole_grid_before_and_after_folding"

ATTENTION = {
    "models/attention/rope.py": [
        (
            "frequencies end before 1e-4",
            "_BASE ** (-m / max(count - 1, 1))",
            "_BASE ** (-m / max(count, 1))",
            "test_rope.py::test_frequencies_include_both_ends",
        ),
        (
            "positions begin at 1",
            "dtype=dtype)[:, None] * theta",
            "dtype=dtype)[:, None] * theta + theta",
            "test_rope.py::test_table_holds_the_turns_of_one_axis",
        ),
        (
            "rows and columns are exchanged",
            "pairs[..., 0, :].mul_(row[:, None])\n    pairs[..., 1, :].mul_(col)",
            "pairs[..., 1, :].mul_(row[:, None])\n    pairs[..., 0, :].mul_(col)",
            ROTATION,
        ),
        (
            "columns are not rotated",
            "    pairs[..., 1, :].mul_(col)\n",
            "",
            ROTATION,
        ),
        (
            "a tile is rotated as the first one",
            "row[top : top + x.shape[2] // hw[1]]",
            "row[: x.shape[2] // hw[1]]",
            "test_rope.py::test_rotation_in_place_of_some_rows",
        ),
        (
            "gradients turn the same way",
            "grad, row.conj(), col.conj()",
            "grad, row, col",
            "test_gradients.py::test_rotate",
        ),
        (
            "the recorded form turns the other way",
            "a * cos - b * sin, b * cos + a * sin",
            "a * cos + b * sin, b * cos - a * sin",
            "test_gradients.py::test_the_real_form_of_rotate",
        ),
        (
            "the recorded form pairs halves of a head",
            "x.unflatten(-1, (-1, 2)).unbind(-1)",
            "x.unflatten(-1, (2, -1)).unbind(-2)",
            "test_gradients.py::test_the_real_form_of_rotate",
        ),
        (
            "a table of inference mode is kept for training",
            "with torch.inference_mode(False), torch.no_grad():",
            "with torch.no_grad():",
            "test_rope.py::test_table_from_inference_mode_serves_training",
        ),
        (
            "loading takes any table",
            "            self._check(key, state_dict[key])",
            "            pass",
            TABLE,
        ),
        (
            "loading takes a table of NaN",
            "if not worst <= _TOLERANCE",
            "if worst > _TOLERANCE",
            TABLE,
        ),
    ],
    "models/attention/cores/rala.py": [
        (
            "alpha without the scale",
            "g = q_mean * k.shape[-1] ** -0.5",
            "g = q_mean",
            TWIN,
        ),
        (
            "alpha is 1 everywhere",
            ".softmax(-2)",
            ".softmax(-1)",
            "test_core_properties.py::test_token_weights_sum_to_one",
        ),
        ("no rotation", "rope: bool = True", "rope: bool = False", TWIN),
    ],
    "models/attention/cores/linear.py": [
        (
            "alpha is left out",
            "k = k * self.token_weights(q.mean(-2, keepdim=True), k)",
            "k = k / k.shape[-2]",
            TWIN,
        ),
        (
            "the global query is a sum",
            "self.token_weights(q.mean(-2, keepdim=True), k)",
            "self.token_weights(q.sum(-2, keepdim=True), k)",
            TWIN,
        ),
        (
            "the global query looks at raw queries",
            "q, k = elu1(at_least_float32(q)), elu1(at_least_float32(k))\n"
            "        k = k * self.token_weights(q.mean",
            "raw = at_least_float32(q)\n"
            "        q, k = elu1(raw), elu1(at_least_float32(k))\n"
            "        k = k * self.token_weights(raw.mean",
            TWIN,
        ),
        (
            "the denominator is of rotated queries and keys",
            "        k = k * self.token_weights(q.mean(-2, keepdim=True), k)\n",
            "        k = k * self.token_weights(q.mean(-2, keepdim=True), k)\n"
            "        if self.rope:\n"
            "            q, k = rotate(q, hw), rotate(k, hw)\n"
            "            d = q @ k.sum(-2, keepdim=True).transpose(-2, -1)\n"
            "            return q, k, d + _EPS\n",
            "test_core_properties.py::test_the_released_order_of_operations",
        ),
        ("eps is dropped", "_EPS = 1e-6", "_EPS = 0.0", TWIN),
        (
            "keys are not rotated",
            "rotate(q, hw), rotate(k, hw)",
            "rotate(q, hw), k",
            TWIN,
        ),
        (
            "sums are no means",
            "return 1.0 / k.shape[-2]",
            "return 1.0",
            "test_core_properties.py::test_token_weights_sum_to_one",
        ),
        (
            "in tiles the global query is a sum",
            "q_sum / q.shape[-2], k)",
            "q_sum, k)",
            IN_TILES,
        ),
        (
            "in tiles the denominator is of rotated keys",
            "                k_sum = k_sum + k_tile.sum(-2, keepdim=True)\n"
            "                if self.rope:\n"
            "                    rotate_(k_tile, hw, top)\n",
            "                if self.rope:\n"
            "                    rotate_(k_tile, hw, top)\n"
            "                k_sum = k_sum + k_tile.sum(-2, keepdim=True)\n",
            IN_TILES,
        ),
        (
            "in tiles eps is dropped",
            "k_sum.transpose(-2, -1) + _EPS",
            "k_sum.transpose(-2, -1)",
            IN_TILES,
        ),
    ],
    "models/attention/cores/base.py": [
        (
            "the feature map is elu",
            "below = x.clamp(max=0).exp_()",
            "below = x.clamp(max=0).expm1_()",
            "test_core_properties.py::test_feature_map",
        ),
        (
            "the feature map has the gradient of exp",
            "return grad * y.clamp(max=1)",
            "return grad * y",
            "test_gradients.py::test_elu1",
        ),
    ],
    "models/attention/cores/softmax.py": [
        (
            "keys are not rotated",
            "q, k = _rotate_pair(q, k, hw)",
            "q, _ = _rotate_pair(q, k, hw)",
            TWIN,
        ),
        (
            "the dense form without the scale",
            "(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1))",
            "(q @ k.transpose(-2, -1))",
            "test_cores.py::test_own_dense_form",
        ),
    ],
    "models/attention/heads.py": [
        (
            "heads take every n-th channel",
            "unflatten(-1, (num_heads, -1)).transpose(1, 2)",
            "unflatten(-1, (-1, num_heads)).transpose(2, 3).transpose(1, 2)",
            NETWORK,
        ),
    ],
    "models/attention/shell.py": [
        (
            "the gate is left out",
            "return self.proj((y + self.lepe(v)) * gate)",
            "return self.proj(y + self.lepe(v))",
            NETWORK,
        ),
        (
            "the gate has an activation",
            "(y + self.lepe(v)) * gate)",
            "(y + self.lepe(v)) * gate.sigmoid())",
            NETWORK,
        ),
        (
            "LePE is of the queries",
            "(y + self.lepe(v)) * gate",
            "(y + self.lepe(q)) * gate",
            NETWORK,
        ),
        (
            "LePE is not gated",
            "(y + self.lepe(v)) * gate",
            "y * gate + self.lepe(v)",
            NETWORK,
        ),
        ("the halo is too small", "halo=2", "halo=1", TILES),
        ("in tiles the gate is left out", ".mul_(gate[tile])", "", TILES),
        (
            "a norm is folded that the core needs",
            "if not self.core.needs_input:",
            "if self.core is not None:",
            "test_input_cores.py::test_the_layer_hands_over_what_its_projections_get",
        ),
    ],
}

"""Faults of the Triton kernels, of their operators, and of the rule that picks them."""

RALA = "test_kernels.py::test_rala"
SPLITS = "test_kernels.py::test_rala_around_the_size_of_a_split"
LARGE = "test_kernels.py::test_weights_of_tokens_that_differ_by_hundreds"
TILES = "test_kernels.py::test_rala_around_the_size_of_a_tile"
DIMENSIONS = "test_kernels.py::test_rala_with_head_dimensions"
ROTATION = "test_kernels.py::test_rotation"
CONVOLUTION = "test_kernels.py::test_depthwise_convolution"
NETWORK = "test_kernels.py::test_network"
SECOND = "test_kernels.py::test_second_derivatives_of_rala"
OPCHECK = "test_custom_operators.py::test_rala_follows_the_rules_of_operators"
SECOND_CONVOLUTION = (
    "test_kernels.py::test_depthwise_convolution_without_bias_and_second_derivatives"
)
COMPILED = "test_custom_operators.py::test_compiled_without_breaks"
TRACED = "test_custom_operators.py::test_traced_models_hold_plain_operations"
FUNCTIONAL = "test_custom_operators.py::test_functional_gradients_take_plain_operations"
SHAPES = "test_custom_operators.py::test_shapes_that_do_not_fit"
MACHINE = "test_machine_code.py::test_kernels_fit_the_gpu"

KERNELS = {
    "ops/tiles.py": [
        (
            "padding is mapped to 1",
            "tl.where(mask, tl.where(x >= 0",
            "(tl.where(x >= 0",
            TILES,
        ),
        (
            "heads of the first image only",
            "x_ptr += (head // num_heads).to(tl.int64) * strides[0]",
            "x_ptr += 0 * (head // num_heads).to(tl.int64) * strides[0]",
            TILES,
        ),
    ],
    "ops/rala/kernels.py": [
        ("the maximum stays", "            top = new_top\n", "", LARGE),
        ("sums are not rescaled", "            buffer *= shrink\n", "", LARGE),
        ("m is not rescaled", "            key_sum *= shrink\n", "", LARGE),
        (
            "splits weigh the same",
            "tl.exp(log - total)[:, None]",
            "tl.exp(0 * log)[:, None]",
            SPLITS,
        ),
        (
            "the scale of the logits is gone",
            "(num_tokens * tl.sqrt(D * 1.0))",
            "num_tokens",
            RALA,
        ),
        (
            "the scale has the padded dimension",
            "(num_tokens * tl.sqrt(D * 1.0))",
            "(num_tokens * tl.sqrt(DP * 1.0))",
            DIMENSIONS,
        ),
        (
            "the denominator's gradient is gone",
            "        query_grad += denominator_grad[:, None] * key_sum[None, :]\n",
            "",
            RALA,
        ),
        (
            "the global query has no gradient",
            "            query_grad += mean_grad[None, :]\n",
            "            pass\n",
            RALA,
        ),
        (
            "weights have no mean gradient",
            "(tl.sum(key * key_grad, 1) - mean_grad)",
            "tl.sum(key * key_grad, 1)",
            "test_kernels.py::test_denominators_as_small_as_their_eps",
        ),
        (
            "gradients are rotated forth",
            "key_grad = rotate_pairs(key_grad, cos, -sin, DP, BLOCK)",
            "key_grad = rotate_pairs(key_grad, cos, sin, DP, BLOCK)",
            RALA,
        ),
        (
            "the feature map has the derivative 1",
            "        key_grad *= tl.minimum(key, 1.0)\n",
            "",
            RALA,
        ),
        (
            "m has no gradient",
            "key_sum_grad -= query * tl.sum(y",
            "key_sum_grad -= 0 * tl.sum(y",
            RALA,
        ),
    ],
    "ops/rala/triton.py": [
        (
            "second derivatives are zero",
            "if torch.is_grad_enabled():",
            "if False:",
            SECOND,
        ),
        (
            "any shapes pass",
            "if not q.shape == k.shape == v.shape",
            "if False and q.shape",
            SHAPES,
        ),
        (
            "fake outputs are laid out by heads",
            "    return empty_tokens(v), state, log, query_sum",
            "    return v.new_empty(v.shape), state, log, query_sum",
            OPCHECK,
        ),
        (
            "tiles are too large",
            "LARGEST_TILE, 8 if is_large",
            "128, 8 if is_large",
            MACHINE,
        ),
    ],
    "ops/rotary/kernels.py": [
        ("no inverse", "        sin = -sin\n", "        pass\n", ROTATION),
        (
            "columns take the frequencies of other rows",
            "number = tl.where(is_row, pair, pair - D // 4)",
            "number = tl.where(is_row, pair, D // 2 - 1 - pair)",
            ROTATION,
        ),
        (
            "rows are columns",
            "token // width, token % width",
            "token % width, token // width",
            ROTATION,
        ),
    ],
    "ops/depthwise/kernels.py": [
        (
            "kernels are never turned",
            "        if FLIP:\n                tap",
            "        if False:\n                tap",
            CONVOLUTION,
        ),
        (
            "images are not padded",
            "inside[:, None] & exists",
            "exists & (inside[:, None] | True)",
            CONVOLUTION,
        ),
        (
            "no residual",
            "                weight += 1.0\n",
            "                pass\n",
            CONVOLUTION,
        ),
    ],
    "ops/depthwise/triton.py": [
        (
            "turned kernels have the gradient of others",
            "            grad_weight = grad_weight.flip(2, 3)\n",
            "            pass\n",
            SECOND_CONVOLUTION,
        ),
    ],
    "ops/residual.py": [
        (
            "the branch is scaled twice",
            "torch.addcmul(x, gamma, branch)\n    with",
            "torch.addcmul(x, gamma, gamma * branch)\n    with",
            "test_transforms.py::test_script_saves_and_loads",
        ),
    ],
    "ops/dispatch.py": [
        (
            "tracers record custom operators",
            "if _plain_only or torch.jit.is_tracing():",
            "if _plain_only:",
            TRACED,
        ),
        (
            "functional transforms reach the kernels",
            "if torch._C._are_functorch_transforms_active():",
            "if False:",
            FUNCTIONAL,
        ),
        (
            "compiled models hold plain operations",
            "        return type(x) in (*_PLAIN_TENSORS, FakeTensor)\n",
            "        return False\n",
            COMPILED,
        ),
    ],
    "ops/gpu.py": [
        (
            "float64 goes to the kernels",
            "t.dtype not in _DTYPES or t.device",
            "t.device",
            "test_gpu_rule.py::test_other_dtypes_devices_and_requests",
        ),
        (
            "old GPUs pass",
            "capability(device) < (8, 0)",
            "capability(device) < (7, 0)",
            "test_gpu_rule.py::test_old_gpus",
        ),
        (
            "Triton is not tried",
            "        _prepare_triton()\n",
            "        pass\n",
            "test_gpu_rule.py::test_without_a_compiler",
        ),
        (
            "a warning for each call",
            "@functools.cache\ndef _warn",
            "def _warn",
            "test_gpu_rule.py::test_old_gpus",
        ),
    ],
    "ops/launch.py": [
        (
            "one program walks a head",
            "min(max(splits, 1), MAX_SPLITS)",
            "1",
            "test_gpu_rule.py::test_one_large_head_fills_the_gpu",
        ),
        (
            "the last tokens are left",
            "size = -(-size // LARGEST_TILE) * LARGEST_TILE",
            "size = size // LARGEST_TILE * LARGEST_TILE",
            "test_gpu_rule.py::test_splits_cover_the_tokens_and_none_is_empty",
        ),
    ],
}

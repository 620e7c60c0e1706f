"""Faults of the operators, of their fast forms, and of the rules that pick a form."""

CORES = "test_cores.py::test_values_and_gradients_equal_the_twin"
HALF = "test_cores.py::test_half_precision_is_only_the_rounding_of_inputs_and_output"
ROTATED = "test_definitions.py::test_rotation_in_float32_is_precise_at_large_positions"
ROTATION = "test_definitions.py::test_rotation_acts_on_adjacent_pairs"
ROWS = "test_definitions.py::test_rotation_in_place_of_some_rows"
DEPTHWISE = "test_definitions.py::test_depthwise_convolution"
ROUNDING = "test_definitions.py::test_the_residual_is_not_rounded_into_the_kernel"
FORMS = "test_forms.py::test_values_and_gradients_equal_the_plain_form"
PICKED = "test_dispatch.py::test_the_form_that_is_picked"
CALLS = "test_recompute.py::test_how_often_a_function_is_called"
FAKE = "test_forms.py::test_fake_tensors"
TRAINING = "test_ravlt_training.py::test_with_cp_recomputes_in_training_only"
RECOMPUTES = "test_ravlt_training.py::test_when_feed_forward_networks_recompute"
STATISTICS = "test_ravlt_training.py::test_with_cp_moves_statistics_once"

OPERATORS = {
    "ops/dispatch.py": [
        ("plain forms are not asked for", "_plain_only or type(x)", "type(x)", PICKED),
        (
            "plain forms stay after the context",
            "        _plain_only = before",
            "        pass",
            PICKED,
        ),
        (
            "other devices take the form of the CPU",
            'is_eager(x) and x.device.type == "cpu"',
            "is_eager(x)",
            PICKED,
        ),
        (
            "CPUs take the plain form",
            'is_eager(x) and x.device.type == "cpu"',
            'is_eager(x) and x.device.type == "cuda"',
            PICKED,
        ),
        (
            "fake tensors count as tensors",
            "type(x) not in _PLAIN_TENSORS",
            "not isinstance(x, _PLAIN_TENSORS)",
            CALLS,
        ),
        (
            "parameters do not count as tensors",
            "_PLAIN_TENSORS = (Tensor, nn.Parameter)",
            "_PLAIN_TENSORS = (Tensor,)",
            PICKED,
        ),
        (
            "tracing counts as eager",
            "torch.compiler.is_compiling() or torch.jit.is_tracing()",
            "torch.compiler.is_compiling()",
            "test_forms.py::test_traced_and_saved",
        ),
        (
            "compiling counts as eager",
            "torch.compiler.is_compiling() or torch.jit.is_tracing()",
            "torch.jit.is_tracing()",
            "test_compile.py::test_one_graph",
        ),
        (
            "modules of half precision take the form of the CPU",
            "        and x.dtype in (torch.float32, torch.float64)\n",
            "",
            ROUNDING,
        ),
        (
            "autocast takes the form of the CPU",
            "        and not is_autocast_on_cpu()\n",
            "",
            ROUNDING,
        ),
    ],
    "ops/precision.py": [
        (
            "float64 is rounded",
            "x.to(torch.promote_types(x.dtype, torch.float32))",
            "x.float()",
            CORES,
        ),
        (
            "autocast rounds what needs float32",
            "        return torch.autocast(x.device.type, enabled=False)",
            "        return contextlib.nullcontext()",
            HALF,
        ),
        (
            "devices without autocast are refused",
            "except RuntimeError:",
            "except NotImplementedError:",
            "test_forms.py::test_meta_tensors",
        ),
    ],
    "ops/layout.py": [
        (
            "maps lie channels-last",
            "image.flatten(0, 1).t().contiguous().unsqueeze(0)",
            "image.flatten(0, 1).t().unsqueeze(0)",
            "test_ravlt_numbers.py::test_outputs_are_contiguous_down_to_roi_align",
        ),
        (
            "maps lie channels-last in the plain form",
            "    return maps.contiguous()\n\n\ndef _channels_first_cpu",
            "    return maps\n\n\ndef _channels_first_cpu",
            FAKE,
        ),
        (
            "no images have no maps",
            "is_eager_on_cpu(x) and len(x)",
            "is_eager_on_cpu(x)",
            "test_ravlt_numbers.py::test_no_images",
        ),
        (
            "maps are transposed",
            "maps.unflatten(2, x.shape[1:3])",
            "maps.unflatten(2, x.shape[2:0:-1]).transpose(2, 3)",
            FORMS,
        ),
    ],
    "ops/linear/cpu.py": [
        ("no bias on CPUs", ".add_(bias)", "", FORMS),
    ],
    "ops/depthwise/cpu.py": [
        (
            "the identity counts twice",
            "residual=False)",
            "residual=residual)",
            DEPTHWISE,
        ),
        (
            "the identity is off the middle",
            "(weight.shape[-1] // 2,) * 4",
            "(0, weight.shape[-1] - 1, weight.shape[-1] // 2, weight.shape[-1] // 2)",
            DEPTHWISE,
        ),
        (
            "the identity stays in the kernel",
            "weight = weight + _identity(weight)",
            "weight = weight.add_(_identity(weight))",
            "test_definitions.py::test_depthwise_convolution_leaves_the_kernel",
        ),
        (
            "the last taps get no gradient",
            "{*range(0, size - 2, 3), size - 3}",
            "{*range(0, size - 2, 3)}",
            DEPTHWISE,
        ),
        (
            "pieces that overlap are added",
            "grad_weight[piece] = ",
            "grad_weight[piece] += ",
            DEPTHWISE,
        ),
        (
            "biases need a gradient",
            "grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None",
            "grad.sum((0, 2, 3))",
            CORES,
        ),
    ],
    "ops/depthwise/naive.py": [
        ("the residual is left out", "if not residual:", "if True:", FORMS),
        (
            "autocast rounds the sum",
            "return y.add_(x) if y.dtype == x.dtype else x + y",
            "return y.add_(x)",
            ROUNDING,
        ),
    ],
    "ops/recompute.py": [
        (
            "recomputes where no gradient is wanted",
            "if not (torch.is_grad_enabled() and is_eager(x)):",
            "if not is_eager(x):",
            RECOMPUTES,
        ),
        (
            "recomputes while a compiler or tracer records",
            "if not (torch.is_grad_enabled() and is_eager(x)):",
            "if not torch.is_grad_enabled():",
            CALLS,
        ),
        (
            "recomputes on every device unless told",
            'enabled = x.device.type == "cpu"',
            "enabled = True",
            CALLS,
        ),
        (
            "recomputes although told not to",
            "    if not enabled:\n        return function(x)\n",
            "",
            CALLS,
        ),
        (
            "blocks are recomputed where no gradient is wanted",
            "    if not torch.is_grad_enabled():\n        return module(x)\n",
            "",
            TRAINING,
        ),
        (
            "statistics move twice",
            "            _statistics_kept(norms),\n",
            "            contextlib.nullcontext(),\n",
            STATISTICS,
        ),
        (
            "a recomputation moves the running statistics",
            "        norm.momentum = 0.0\n",
            "        pass\n",
            STATISTICS,
        ),
        (
            "batches are counted twice",
            "            norm.num_batches_tracked.copy_(count)\n",
            "",
            STATISTICS,
        ),
        (
            "statistics never move again",
            "            norm.momentum = momentum\n",
            "",
            STATISTICS,
        ),
        (
            "contexts while compiling",
            "if norms and is_eager(x):",
            "if norms:",
            "test_compile.py::test_recomputed_blocks_with_batch_norms_in_one_graph",
        ),
    ],
    "ops/rotary/__init__.py": [
        (
            "frequencies end before 1e-4",
            "head_dim // 4, device=device, dtype=dtype\n    )",
            "head_dim // 4 + 1, device=device, dtype=dtype\n    )[:-1]",
            "test_definitions.py::test_frequencies_include_both_ends",
        ),
        (
            "rows begin at 1",
            "torch.arange(hw[0], ",
            "torch.arange(1, hw[0] + 1, ",
            ROTATION,
        ),
        (
            "columns begin at 1",
            "torch.arange(hw[1], ",
            "torch.arange(1, hw[1] + 1, ",
            ROTATION,
        ),
        (
            "rows and columns are exchanged",
            "pairs[..., 0, :].mul_(rows[:, None])\n    pairs[..., 1, :].mul_(cols)",
            "pairs[..., 1, :].mul_(rows[:, None])\n    pairs[..., 0, :].mul_(cols)",
            ROTATION,
        ),
        (
            "columns are not rotated",
            "    pairs[..., 1, :].mul_(cols)\n",
            "",
            ROTATION,
        ),
        (
            "rows and columns are exchanged in the plain form",
            "    first = _rotate_pairs(first, rows[:, None])\n"
            "    return torch.cat((first, _rotate_pairs(second, cols))",
            "    first = _rotate_pairs(first, cols)\n"
            "    return torch.cat((first, _rotate_pairs(second, rows[:, None]))",
            ROTATION,
        ),
        (
            "the plain form turns the other way",
            "a * cos - b * sin, b * cos + a * sin",
            "a * cos + b * sin, b * cos - a * sin",
            ROTATION,
        ),
        (
            "the plain form pairs halves of a head",
            "x[..., ::2], x[..., 1::2]",
            "x.chunk(2, dim=-1)",
            ROTATION,
        ),
        (
            "the plain form in place changes nothing",
            "return x.copy_(_rotate_real(x, rows, cols))",
            "return _rotate_real(x, rows, cols)",
            ROWS,
        ),
        (
            "wide grids lack columns",
            "cols = torch.arange(hw[1], ",
            "cols = torch.arange(hw[0], ",
            FORMS,
        ),
        (
            "tall grids lack rows",
            "rows = torch.arange(hw[0], ",
            "rows = torch.arange(hw[1], ",
            ROTATED,
        ),
        (
            "gradients turn the same way",
            "t.conj() if t.is_complex() else -t",
            "t if t.is_complex() else -t",
            FORMS,
        ),
        (
            "gradients turn the same way on other devices",
            "t.conj() if t.is_complex() else -t",
            "t.conj() if t.is_complex() else t",
            "test_forms.py::test_rotation_by_real_tables",
        ),
        (
            "other devices keep what the plain form keeps",
            "    if is_eager(x):\n        return _Rotation",
            "    if is_eager_on_cpu(x):\n        return _Rotation",
            PICKED,
        ),
        (
            "the input is rotated",
            "copy = x.clone(memory_format=torch.contiguous_format)",
            "copy = x.detach()",
            FORMS,
        ),
        (
            "frequencies are kept, and fake ones, too",
            "def rotary_frequencies(",
            "import functools\n\n\n@functools.cache\ndef rotary_frequencies(",
            FAKE,
        ),
        (
            "tables of inference mode are kept for training",
            "        tables = rotary_tables(x, hw)\n",
            "        tables = vars(rotate).setdefault(hw, rotary_tables(x, hw))\n",
            "test_forms.py::test_tables_from_inference_mode_serve_training",
        ),
    ],
}

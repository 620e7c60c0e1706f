"""Faults of RALA and its operator, of softmax, the gated layer, and rotary tables."""

TWIN = "test_cores.py::test_values_and_gradients_equal_the_twin"
TABLE = "test_rope.py::test_another_table_is_refused_by_name"
NETWORK = "test_ravlt_numbers.py::test_the_network_equals_its_channels_first_twin"
SCRIPTED = "test_transforms.py::test_script_saves_and_loads"
STATISTICS = "test_ravlt_training.py::test_with_cp_moves_statistics_once"
PRECISE = "test_precision.py::test_autocast_changes_no_bit"
ELU1 = "test_definitions.py::test_elu1"
IN_CHUNKS = "test_definitions.py::test_rala_in_chunks"
FORMS = "test_forms.py::test_values_and_gradients_equal_the_plain_form"
PICKED = "test_dispatch.py::test_the_form_that_is_picked"

ATTENTION = {
    "models/attention/rope.py": [
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
        (
            "the buffer holds each angle once",
            "theta.float().repeat_interleave(2)",
            "theta.float()",
            "test_rope.py::test_buffer_is_each_angle_twice",
        ),
    ],
    "models/attention/rala.py": [
        ("no rotation", "rope: bool = True", "rope: bool = False", TWIN),
        (
            "keys are not reweighted",
            "        self.reweight = True\n",
            "",
            TWIN,
        ),
    ],
    "models/attention/linear.py": [
        ("plain linear attention rotates", "rope: bool = False", "rope=True", TWIN),
        (
            "the buffer forgets the rotation",
            "        _, k, _ = linear_attention_terms(q, k, hw, self.rope, ",
            "        _, k, _ = linear_attention_terms(q, k, hw, False, ",
            "test_rank.py::test_kv_buffers_equal_the_twin",
        ),
    ],
    "models/attention/softmax.py": [
        (
            "keys are not rotated",
            "q, k = rotate_queries_and_keys(q, k, hw)",
            "q, _ = rotate_queries_and_keys(q, k, hw)",
            TWIN,
        ),
        (
            "the dense form without the scale",
            "(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1))",
            "(q @ k.transpose(-2, -1))",
            "test_cores.py::test_own_dense_form",
        ),
    ],
    "models/attention/base.py": [
        (
            "heads take every n-th channel",
            "unflatten(-1, [num_heads, -1]).transpose(1, 2)",
            "unflatten(-1, [-1, num_heads]).transpose(2, 3).transpose(1, 2)",
            NETWORK,
        ),
        (
            "TorchScript does not know which cores need the input",
            '__constants__ = ("needs_input",)',
            "__constants__ = ()",
            SCRIPTED,
        ),
    ],
    "models/attention/__init__.py": [
        (
            "softmax rotates in its paper's layer",
            '"softmax": dict(rope=False), ',
            "",
            "test_paper.py::test_layer_is_its_formula",
        ),
        (
            "vicinity keeps all channels",
            'dim // 2 if name == "vicinity" else dim',
            "dim",
            "test_paper.py::test_parameters",
        ),
        (
            "options are not checked",
            "    if unknown:\n",
            "    if not known:\n",
            "test_ravlt.py::test_unknown_options",
        ),
        (
            "a core's norm_cfg is ignored",
            'if norm_cfg is not None and "norm_cfg" in parameters:',
            'if norm_cfg is not None and "core" in parameters:',
            STATISTICS,
        ),
        (
            "a paper layer's norm_cfg is ignored",
            "_construct(layer, (dim, num_heads, mechanism), {}, norm_cfg)",
            "_construct(layer, (dim, num_heads, mechanism), {}, None)",
            STATISTICS,
        ),
    ],
    "models/ravlt.py": [
        (
            "the gate is left out",
            "self.proj((join_heads(y, hw) + self.lepe(v)) * gate)",
            "self.proj(join_heads(y, hw) + self.lepe(v))",
            NETWORK,
        ),
        (
            "the gate has an activation",
            "self.proj((join_heads(y, hw) + self.lepe(v)) * gate)",
            "self.proj((join_heads(y, hw) + self.lepe(v)) * gate.sigmoid())",
            NETWORK,
        ),
        (
            "LePE is of the queries",
            "self.lepe(v)",
            "self.lepe(join_heads(q, hw))",
            NETWORK,
        ),
        (
            "LePE is not gated",
            "self.proj((join_heads(y, hw) + self.lepe(v)) * gate)",
            "self.proj(join_heads(y, hw) * gate + self.lepe(v))",
            NETWORK,
        ),
        (
            "the gated layer ignores norm_cfg",
            "return GatedAttention(dim, num_heads, core, norm_cfg)",
            "return GatedAttention(dim, num_heads, core)",
            STATISTICS,
        ),
        (
            "the paper's layer ignores norm_cfg",
            "return build_paper_attention(core, dim, num_heads, norm_cfg)",
            "return build_paper_attention(core, dim, num_heads)",
            STATISTICS,
        ),
    ],
    "ops/elu1.py": [
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
            ELU1,
        ),
        (
            "the input is overwritten",
            "return elu1_(x.clone())",
            "return elu1_(x.detach())",
            FORMS,
        ),
        (
            "other devices keep what the plain form keeps",
            "_ELU1.apply(x) if is_eager(x) else",
            "_ELU1.apply(x) if is_eager(x) and x.is_cpu else",
            PICKED,
        ),
        (
            "scripts call the form of the CPU",
            "    if torch.jit.is_scripting():\n        return _elu1_plain(x)\n",
            "",
            SCRIPTED,
        ),
        (
            "the plain form rounds to zero",
            "torch.where(x >= 0, x + 1, x.clamp(max=0).exp())",
            "torch.nn.functional.elu(x) + 1",
            ELU1,
        ),
    ],
    "ops/rala/__init__.py": [
        (
            "the form without gradients is taken with them",
            "is_eager(q) and not torch.is_grad_enabled()",
            "is_eager(q)",
            FORMS,
        ),
        (
            "queries and keys are overwritten at inference",
            "t.to(dtype, copy=True, ",
            "t.to(dtype, ",
            "test_dispatch.py::test_values_without_gradients",
        ),
        (
            "half precision rounds the sums at inference",
            "dtype = torch.promote_types(q.dtype, torch.float32)",
            "dtype = q.dtype",
            "test_precision.py::test_half_precision_without_gradients",
        ),
        (
            "outputs at inference have another dtype",
            "rope, reweight).to(v.dtype)",
            "rope, reweight)",
            "test_precision.py::test_half_precision_without_gradients",
        ),
        (
            "autocast reaches the sums",
            "    with autocast_off(q):\n        return naive.rala(",
            "    if True:\n        return naive.rala(",
            PRECISE,
        ),
        (
            "autocast reaches what analysis looks at",
            "    with autocast_off(q):\n        return naive.terms(",
            "    if True:\n        return naive.terms(",
            PRECISE,
        ),
    ],
    "ops/rala/naive.py": [
        (
            "alpha without the scale",
            "g = q.mean(-2, keepdim=True) * q.shape[-1] ** -0.5",
            "g = q.mean(-2, keepdim=True)",
            TWIN,
        ),
        (
            "alpha is 1 everywhere",
            ".softmax(-2)",
            ".softmax(-1)",
            "test_core_properties.py::test_token_weights_sum_to_one",
        ),
        (
            "alpha is left out",
            "k = k * (k @ g.transpose(-2, -1)).softmax(-2)",
            "k = k / k.shape[-2]",
            TWIN,
        ),
        (
            "the global query is a sum",
            "q.mean(-2, keepdim=True)",
            "q.sum(-2, keepdim=True)",
            TWIN,
        ),
        (
            "the global query looks at raw queries",
            "    q, k = elu1(at_least_float32(q)), elu1(at_least_float32(k))\n"
            "    if reweight:\n"
            "        g = q.mean",
            "    raw = at_least_float32(q)\n"
            "    q, k = elu1(raw), elu1(at_least_float32(k))\n"
            "    if reweight:\n"
            "        g = raw.mean",
            TWIN,
        ),
        (
            "the denominator is of rotated queries and keys",
            "    denominator = denominators(q, k.sum(-2, keepdim=True))\n"
            "    if rope:\n"
            "        tables = rotary_tables(q, hw)\n"
            "        q, k = rotate(q, hw, tables), rotate(k, hw, tables)\n",
            "    if rope:\n"
            "        tables = rotary_tables(q, hw)\n"
            "        q, k = rotate(q, hw, tables), rotate(k, hw, tables)\n"
            "    denominator = denominators(q, k.sum(-2, keepdim=True))\n",
            "test_core_properties.py::test_the_released_order_of_operations",
        ),
        ("eps is dropped", " + 1e-6", "", TWIN),
        (
            "keys are not rotated",
            "rotate(q, hw, tables), rotate(k, hw, tables)",
            "rotate(q, hw, tables), k",
            TWIN,
        ),
        (
            "sums are no means",
            "k = k / k.shape[-2]",
            "k = k * 1.0",
            "test_core_properties.py::test_token_weights_sum_to_one",
        ),
    ],
    "ops/rala/chunked.py": [
        (
            "the global query is a sum",
            "g = q_sum / q.shape[-2] * ",
            "g = q_sum * ",
            IN_CHUNKS,
        ),
        (
            "alpha without the scale",
            "g = q_sum / q.shape[-2] * q.shape[-1] ** -0.5",
            "g = q_sum / q.shape[-2]",
            IN_CHUNKS,
        ),
        (
            "every chunk has weights of its own",
            "k_chunk.mul_(weights[..., tokens, :])",
            "k_chunk.mul_((k_chunk @ g.transpose(-2, -1)).softmax(-2))",
            IN_CHUNKS,
        ),
        (
            "sums are no means",
            "k_chunk.div_(q.shape[-2])",
            "k_chunk.div_(k_chunk.shape[-2])",
            IN_CHUNKS,
        ),
        (
            "the denominator is of rotated keys",
            "            k_sum += k_chunk.sum(-2, keepdim=True)\n"
            "            if rope:\n"
            "                rotate_(k_chunk, rows[top:bottom], cols)\n",
            "            if rope:\n"
            "                rotate_(k_chunk, rows[top:bottom], cols)\n"
            "            k_sum += k_chunk.sum(-2, keepdim=True)\n",
            IN_CHUNKS,
        ),
        (
            "the denominator is of rotated queries",
            "            denominator = denominators(q_chunk, k_sum)\n"
            "            if rope:\n"
            "                rotate_(q_chunk, rows[top:bottom], cols)\n",
            "            if rope:\n"
            "                rotate_(q_chunk, rows[top:bottom], cols)\n"
            "            denominator = denominators(q_chunk, k_sum)\n",
            IN_CHUNKS,
        ),
        (
            "every chunk of keys is rotated as the first",
            "rotate_(k_chunk, rows[top:bottom], ",
            "rotate_(k_chunk, rows[: bottom - top], ",
            IN_CHUNKS,
        ),
        (
            "every chunk of queries is rotated as the first",
            "rotate_(q_chunk, rows[top:bottom], ",
            "rotate_(q_chunk, rows[: bottom - top], ",
            IN_CHUNKS,
        ),
        (
            "the buffer is of the last chunk",
            "buffer = buffer + k_chunk",
            "buffer = k_chunk",
            IN_CHUNKS,
        ),
    ],
}

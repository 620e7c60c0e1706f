"""Faults of inference in tiles, and of the folds."""

TILES = "test_tiled.py::test_tiles_equal_the_whole_grid_before_and_after_folding"
DECISION = "test_tiled.py::test_when_tiles_are_used"
LIMITS = "test_tiled.py::test_zero_tiles_nothing_and_partial_tokens_count"
HOOKS = "test_tiled.py::test_a_hook_sees_whole_grids"
FOLDS = "test_fold.py::test_same_outputs"
ONCE = "test_fold.py::test_folded_weights_are_rounded_once"
DERIVED = "test_fold.py::test_derived_classes_fold_exactly"
ADAPTERS = "test_fold.py::test_adapters_survive_folds_and_tiles"

INFERENCE = {
    "inference/tiled.py": [
        (
            "a halo is too small on one side",
            "min(stop + halo, count)",
            "min(stop + halo - 1, count)",
            "test_tiled.py::test_no_tile_is_too_large_and_each_cell_is_in_one",
        ),
        (
            "memory depends on the precision",
            "flat.numel() < size",
            "flat.numel() != size",
            "test_tiled.py::test_a_name_keeps_its_memory_whatever_the_precision",
        ),
        (
            "tiles where gradients are needed",
            "if torch.is_grad_enabled() or not is_eager(x)",
            "if not is_eager(x)",
            DECISION,
        ),
        (
            "tiles while a compiler or tracer records",
            " or not is_eager(x)",
            "",
            "test_tiled.py::test_recorded_models_compute_whole_grids",
        ),
        (
            "tiles on every device unless told",
            'if side is None and x.device.type == "cpu":',
            "if side is None:",
            "test_tiled.py::test_other_devices_compute_whole_grids_unless_told",
        ),
        (
            "tiles without data",
            "if not side or x.is_meta:",
            "if not side:",
            DECISION,
        ),
        (
            "tiles although told not to",
            "    side = encoder.tile\n",
            "    side = encoder.tile or None\n",
            LIMITS,
        ),
        (
            "images of a batch do not count",
            "tokens = x.shape[0] * -(-x",
            "tokens = -(-x",
            DECISION,
        ),
        (
            "grids are rounded down",
            "-(-x.shape[2] // 4) * -(-x.shape[3] // 4)",
            "(x.shape[2] // 4) * (x.shape[3] // 4)",
            LIMITS,
        ),
        (
            "hooks after a call are ignored",
            "        or module._forward_hooks\n",
            "",
            HOOKS,
        ),
        (
            "hooks before a call are ignored",
            "        or module._forward_pre_hooks\n",
            "",
            HOOKS,
        ),
        (
            "hooks of inner layers are ignored",
            "for module in root.modules()",
            "for module in (root, *root.children())",
            HOOKS,
        ),
        (
            "hooks of the stages are ignored",
            "for root in (encoder.patch_embed, encoder.layers)",
            "for root in (encoder.patch_embed,)",
            HOOKS,
        ),
        (
            "hooks of the stem are ignored",
            "for root in (encoder.patch_embed, encoder.layers)",
            "for root in (encoder.layers,)",
            HOOKS,
        ),
        (
            "compiled blocks are taken apart",
            '        or getattr(module, "_compiled_call_impl", None)\n',
            "",
            "test_tiled.py::test_compiled_blocks_run",
        ),
        (
            "no warning of a tile that is overruled",
            "    if encoder.tile:\n",
            "    if encoder.tile is None:\n",
            "test_tiled.py::test_a_tile_that_is_overruled_is_reported",
        ),
        (
            "a warning where no tile was given",
            "    if encoder.tile:\n",
            "    if side:\n",
            "test_tiled.py::test_a_tile_that_is_overruled_is_reported",
        ),
        (
            "a batch is not split",
            "if tokens <= workspace.side**2 else x.split(1)",
            "if tokens else x.split(1)",
            "test_tiled.py::test_batches_that_exceed_a_tile_go_image_by_image",
        ),
        (
            "small batches are split",
            "if tokens <= workspace.side**2 else x.split(1)",
            "if tokens < 0 else x.split(1)",
            "test_tiled.py::test_batches_that_exceed_a_tile_go_image_by_image",
        ),
        (
            "stages are not left out",
            "encoder.layers[: last + 1]",
            "encoder.layers",
            "test_classifier.py::test_tiles_stop_early",
        ),
        (
            "the stem's halo is too small",
            "grid_tiles(height, width, side, halo=2)",
            "grid_tiles(height, width, side, halo=1)",
            TILES,
        ),
        (
            "the halo of LePE is too small",
            "grid_tiles(*hw, side, halo=2)",
            "grid_tiles(*hw, side, halo=1)",
            TILES,
        ),
        ("the ffn's halo is too small", "halo=1", "halo=0", TILES),
        ("the gate is left out", ".mul_(gate[tile])", "", TILES),
        ("the norm is left out", "layer(norm(x)))]", "layer(x))]", TILES),
        (
            "the layer scale is left out",
            "x[tile].addcmul_(gamma.view(-1), branch)",
            "x[tile].add_(branch)",
            TILES,
        ),
        (
            "keys are always reweighted",
            "core.rope, core.reweight)",
            "core.rope)",
            TILES,
        ),
        (
            "cores do not get their input",
            '(grids["x"],) if core.needs_input else ()',
            "(norm(x) * 0,) if core.needs_input else ()",
            TILES,
        ),
        (
            "classes derived from a core compute as it does",
            "if type(core) in (LinearCore, RALACore):",
            "if isinstance(core, LinearCore):",
            "test_tiled.py::test_derived_classes_compute_themselves",
        ),
        (
            "classes derived from a layer compute as it does",
            "if type(layer) is GatedAttention:",
            "if isinstance(layer, GatedAttention):",
            "test_tiled.py::test_derived_classes_compute_themselves",
        ),
        (
            "derived blocks and stages compute as their bases do",
            "type(part) is not cls or",
            "not isinstance(part, cls) or",
            "test_tiled.py::test_parts_that_the_walk_does_not_know",
        ),
        (
            "each tile is normalized by itself",
            "        module.training\n        or module._forward_hooks\n",
            "        module._forward_hooks\n",
            "test_tiled.py::test_parts_that_the_walk_does_not_know",
        ),
        (
            "queries and keys are rounded",
            'wide if name in ("q", "k") else part.dtype',
            "part.dtype",
            "test_tiled.py::test_sums_over_tokens_are_precise_in_half_precision",
        ),
    ],
    "inference/fold.py": [
        (
            "the bias is folded after the scale",
            "    conv.bias.copy_(conv.bias + weight @ at_least_float32(norm.bias))\n"
            "    conv.weight.copy_((weight * norm.weight).view_as(conv.weight))\n",
            "    conv.weight.copy_((weight * norm.weight).view_as(conv.weight))\n"
            "    conv.bias.copy_(conv.bias + weight @ at_least_float32(norm.bias))\n",
            FOLDS,
        ),
        (
            "a folded norm keeps its scale",
            "    nn.init.ones_(norm.weight)\n",
            "",
            FOLDS,
        ),
        (
            "a folded norm keeps its shift",
            "    nn.init.zeros_(norm.bias)\n",
            "",
            FOLDS,
        ),
        (
            "a folded layer scale stays",
            "    nn.init.ones_(scale)\n",
            "",
            FOLDS,
        ),
        (
            "a layer scale does not reach the bias",
            "        conv.bias.copy_(conv.bias * factor)\n",
            "        pass\n",
            FOLDS,
        ),
        (
            "the layer scale is folded where a residual follows",
            "    if type(block.attn) in _END_WITH_PROJ:\n",
            "    if block.attn:\n",
            "test_fold.py::test_every_mechanism_folds",
        ),
        (
            "the layer scale of a derived layer is folded",
            "type(block.attn) in _END_WITH_PROJ",
            "isinstance(block.attn, _END_WITH_PROJ)",
            DERIVED,
        ),
        (
            "the norm before a derived layer is folded",
            "type(attn) is GatedAttention",
            "isinstance(attn, GatedAttention)",
            DERIVED,
        ),
        (
            "derived blocks fold as their base does",
            "if type(block) is not Block:",
            "if not isinstance(block, Block):",
            DERIVED,
        ),
        (
            "other feed-forward networks fold as ours does",
            "if type(block.ffn) is ConvFFN:",
            "if block.ffn:",
            "test_fold.py::test_other_layers_of_a_block_are_left_alone",
        ),
        (
            "norms are folded into adapters",
            "type(layer) is not ChannelLayerNorm or type(conv) is not PointwiseConv",
            "type(layer) is not ChannelLayerNorm",
            ADAPTERS,
        ),
        (
            "layer scales are folded into adapters",
            "    if type(conv) is not PointwiseConv:\n        return\n    factor = ",
            "    factor = ",
            ADAPTERS,
        ),
        (
            "a residual kernel is to take a scale",
            "_fold_scale(block.gamma_1, block.attn.proj)",
            "_fold_scale(block.gamma_1, block.pos)",
            "test_fold.py::test_what_is_left_alone",
        ),
        (
            "layer norms are folded in half precision",
            "weight = at_least_float32(conv.weight).flatten(1)",
            "weight = conv.weight.flatten(1)",
            ONCE,
        ),
        (
            "shifts are folded in half precision",
            "conv.bias + weight @ at_least_float32(norm.bias)",
            "conv.bias + (weight @ at_least_float32(norm.bias)).to(norm.bias)",
            ONCE,
        ),
        (
            "a batch norm's scale does not reach the bias",
            "conv.bias.copy_(conv.bias * scale + shift)",
            "conv.bias.copy_(conv.bias + shift)",
            FOLDS,
        ),
        (
            "networks fold twice",
            "    if encoder.deployed:\n        return encoder\n",
            "",
            "test_fold.py::test_folding_twice_changes_no_bit",
        ),
        (
            "folded networks do not know it",
            "    encoder.deployed = True\n",
            "",
            "test_fold.py::test_modes_afterwards",
        ),
        (
            "a norm is folded that the core needs",
            "if type(attn) is GatedAttention and not attn.core.needs_input:",
            "if type(attn) is GatedAttention:",
            "test_input_cores.py::test_the_layer_hands_over_what_its_projections_get",
        ),
        (
            "attention keeps its batch norms",
            "            part.switch_to_deploy()\n",
            "            part.eval()\n",
            "test_paper.py::test_in_a_network",
        ),
        (
            "the classifier's norm is dropped",
            "encoder.norm = _fold_batch_norm(encoder.proj, encoder.norm)",
            "encoder.norm = nn.Identity()",
            "test_classifier.py::test_folds",
        ),
        (
            "pruned classifiers do not fold",
            "isinstance(encoder, RAVLTClassifier) and isinstance(encoder.norm, "
            "_BatchNorm)",
            "isinstance(encoder, RAVLTClassifier)",
            "test_classifier.py::test_shortened_models_have_no_classifier",
        ),
        (
            "the average of weights is not folded",
            "                switch_to_deploy(hook.ema_model)",
            "                pass",
            "test_fold.py::test_hook_beside_an_average_of_weights",
        ),
    ],
}

"""Faults of blocks, folds, tiles, freezing, and of loading checkpoints."""

TWIN = "test_ravlt_numbers.py::test_the_network_equals_its_channels_first_twin"
TILES = "test_tiling.py::test_tiles_equal_the_whole_grid_before_and_after_folding"
FOLDS = "test_deploy.py::test_same_outputs"
FROZEN = "test_ravlt_training.py::test_frozen_stages_really_freeze"
MISFITS = "test_checkpoint.py::test_files_that_do_not_fit"

NETWORK = {
    "models/layers.py": [
        (
            "another eps",
            "LayerNorm(channels, eps=1e-6)",
            "LayerNorm(channels)",
            TWIN,
        ),
        (
            "the bias is folded after the scale",
            "        self.bias.add_(weight @ norm.bias)\n"
            "        weight.mul_(norm.weight)\n",
            "        weight.mul_(norm.weight)\n"
            "        self.bias.add_(weight @ norm.bias)\n",
            FOLDS,
        ),
        (
            "a folded norm keeps its scale",
            "        nn.init.ones_(norm.weight)\n",
            "",
            FOLDS,
        ),
        (
            "a folded norm keeps its shift",
            "        nn.init.zeros_(norm.bias)\n",
            "",
            FOLDS,
        ),
        (
            "a folded layer scale stays",
            "        nn.init.ones_(scale)\n",
            "",
            FOLDS,
        ),
        (
            "a layer scale does not reach the bias",
            "            self.bias.mul_(scale.flatten())",
            "            pass",
            FOLDS,
        ),
        (
            "a batch norm is folded without eps",
            "(norm.running_var + norm.eps).sqrt()",
            "norm.running_var.sqrt()",
            FOLDS,
        ),
        (
            "a batch norm is folded with the mean's sign wrong",
            "conv.bias.sub_(norm.running_mean)",
            "conv.bias.add_(norm.running_mean)",
            FOLDS,
        ),
        ("the stem's halo is too small", "halo=2", "halo=1", TILES),
        (
            "maps lie channels-last",
            "image.flatten(0, 1).t().contiguous() for",
            "image.flatten(0, 1).t() for",
            "test_ravlt_numbers.py::test_outputs_are_contiguous_down_to_roi_align",
        ),
    ],
    "models/depthwise.py": [
        (
            "the identity is folded and added",
            "self.residual = False",
            "self.residual = True",
            "test_gradients.py::test_depthwise_convolution_with_the_identity_folded_in",
        ),
        (
            "the last taps get no gradient",
            "{*range(0, size - 2, 3), size - 3}",
            "{*range(0, size - 2, 3)}",
            "test_gradients.py::test_depthwise_convolution",
        ),
    ],
    "models/blocks.py": [
        (
            "layer scales are exchanged",
            "self.norm1, self.gamma_1",
            "self.norm1, self.gamma_2",
            TWIN,
        ),
        (
            "no residual in the ffn",
            "hidden_dim, 3, residual=True",
            "hidden_dim, 3",
            TWIN,
        ),
        ("the ffn's halo is too small", "halo=1", "halo=0", TILES),
        (
            "drop path drops nothing",
            "return self.drop_path(gamma.expand(len(x), 1, 1, -1))",
            "return gamma",
            "test_gradients.py::"
            "test_drop_path_skips_the_same_samples_as_in_the_yardstick",
        ),
        (
            "blocks fold twice",
            "        if self.deployed:\n            return\n        self.pos",
            "        self.pos",
            "test_deploy.py::test_folding_twice_changes_no_bit",
        ),
        (
            "an identity is not folded",
            "        self.ffn.dwconv.fold_identity()\n",
            "",
            "test_deploy.py::test_what_is_left_alone",
        ),
        (
            "all blocks are recomputed",
            "if self.with_cp and self.training and",
            "if self.training and",
            "test_memory.py::test_recomputed_blocks_keep_less",
        ),
        (
            "blocks are recomputed in evaluation",
            "if self.with_cp and self.training and",
            "if self.with_cp and",
            "test_ravlt_training.py::test_with_cp_recomputes_in_training_only",
        ),
    ],
    "models/tiling.py": [
        (
            "a halo is too small on one side",
            "min(stop + halo, count)",
            "min(stop + halo - 1, count)",
            "test_tiling.py::test_no_tile_is_too_large_and_each_cell_is_in_one",
        ),
        (
            "memory depends on the precision",
            "flat.numel() < size",
            "flat.numel() != size",
            "test_tiling.py::test_a_name_keeps_its_memory_whatever_the_precision",
        ),
        (
            "tiles in training",
            "tile == 0 or module.training or",
            "tile == 0 or",
            "test_tiling.py::test_when_tiles_are_used",
        ),
    ],
    "models/archs.py": [
        (
            "a size lacks a block",
            "depths=(2, 2, 6, 2)",
            "depths=(2, 2, 5, 2)",
            "test_ravlt.py::test_parameters_and_tensors_of_the_released_sizes",
        ),
        (
            "a size begins with other layer scales",
            "layer_scale_init=(1.0, 1.0, 1e-6, 1e-6)",
            "layer_scale_init=(1.0, 1.0, 1.0, 1.0)",
            "test_ravlt.py::test_layer_scale",
        ),
    ],
    "models/trunk.py": [
        (
            "the last block skips too rarely",
            "max(sum(depths) - 1, 1)",
            "sum(depths)",
            "test_ravlt.py::test_drop_path_rises_linearly",
        ),
        (
            "no warning of other attention",
            'warn_attn_types(local_metadata["attn_types"], self.attn_types)',
            "pass",
            "test_ravlt.py::test_state_dicts_record_the_attention_and_warn",
        ),
        (
            "folded and plain weights mix",
            "        self._check_folded(state_dict, prefix)\n",
            "",
            "test_deploy.py::test_folded_and_plain_weights_do_not_mix",
        ),
        (
            "folded networks train",
            "if mode and self.deployed:",
            "if mode and self.deployed is None:",
            "test_deploy.py::test_modes_afterwards",
        ),
        (
            "heads count as deep as the last block",
            "num_layers = sum(depths) + 2",
            "num_layers = sum(depths) + 1",
            "test_layer_decay.py::test_every_parameter_has_the_rate_of_its_depth",
        ),
    ],
    "models/ravlt.py": [
        ("outputs are not normalised", "self.extra_norms[str(stage)](x)", "x", TWIN),
        (
            "frozen parts learn",
            "            part.requires_grad_(False)",
            "            pass",
            FROZEN,
        ),
        (
            "frozen parts train",
            "                part.eval()",
            "                pass",
            FROZEN,
        ),
        (
            "a norm too many is frozen",
            "int(i) < self.frozen",
            "int(i) <= self.frozen",
            FROZEN,
        ),
        (
            "the stem is not frozen",
            "self.frozen_stages < 0:",
            "self.frozen_stages <= 0:",
            FROZEN,
        ),
        (
            "synchronised norms do not obey norm_eval",
            "isinstance(module, _BatchNorm)",
            "isinstance(module, nn.BatchNorm2d)",
            "test_ravlt_training.py::test_norm_eval_keeps_statistics_and_trains_the_rest",
        ),
        (
            "the prefix is ignored",
            'cfg["checkpoint"], cfg.get("prefix")',
            'cfg["checkpoint"]',
            "test_checkpoint.py::test_one_backbone_of_two",
        ),
    ],
    "models/classifier.py": [
        (
            "the last norm is dropped in folding",
            "self.norm = fold_batch_norm(self.proj, self.norm)",
            "self.norm = nn.Identity()",
            "test_classifier.py::test_folds",
        ),
    ],
    "deploy.py": [
        (
            "the average of weights is not folded",
            "                switch_to_deploy(hook.ema_model)",
            "                pass",
            "test_deploy.py::test_hook_beside_an_average_of_weights",
        ),
    ],
    "weights/checkpoint.py": [
        (
            "files may run code",
            "torch.load(file, map_location=map_location, weights_only=True)",
            "torch.load(file, map_location=map_location, weights_only=False)",
            "test_checkpoint.py::test_a_hostile_file_is_refused_and_nothing_runs",
        ),
        (
            "missing keys are ignored",
            "if missing or unexpected:",
            "if unexpected:",
            MISFITS,
        ),
        (
            "unknown keys are ignored",
            "if missing or unexpected:",
            "if missing:",
            MISFITS,
        ),
        (
            "other shapes are ignored",
            "    for key in sorted(loaded):\n",
            "    loaded = {k for k in loaded if own[k].shape == state_dict[k].shape}\n"
            "    state_dict = {k: state_dict[k] for k in loaded}\n"
            "    for key in sorted(loaded):\n",
            MISFITS,
        ),
        (
            "keys need not be strings",
            "            if not isinstance(key, str):",
            "            if key is None:",
            MISFITS,
        ),
        (
            "half a classifier is accepted",
            "missing |= _HEAD_KEYS - unexpected",
            "missing |= set()",
            MISFITS,
        ),
        (
            "no warning of other attention",
            "    warn_attn_types(attn_types or RELEASED_ATTN_TYPES, model.attn_types)",
            "    pass",
            "test_checkpoint.py::test_attention_of_the_file",
        ),
        (
            "files that do not say are not of the released attention",
            "attn_types or RELEASED_ATTN_TYPES, model",
            "attn_types or model.attn_types, model",
            "test_checkpoint.py::test_attention_of_the_file",
        ),
        (
            "stages that are not built are foreign",
            '    unbuilt.append(f"layers.{num_stages - 1}.downsample.")\n',
            "",
            "test_checkpoint.py::test_fewer_outputs_take_a_full_file",
        ),
        (
            "mmengine reads local files itself",
            'for prefix in ("", "http://"',
            'for prefix in ("http://"',
            "test_checkpoint.py::test_mmengine_reads_through_us_when_asked",
        ),
    ],
    "weights/untrusted.py": [
        (
            "files may call getattr",
            '(_history_statistic, "builtins.getattr")',
            "getattr",
            "test_checkpoint.py::test_nothing_else_is_reached_by_way_of_the_history",
        ),
    ],
    "weights/convert.py": [
        (
            "norms of used levels are left out",
            "if i not in backbone.out_indices",
            "if i in backbone.out_indices",
            "test_convert.py::test_every_tensor_of_a_real_file_arrives",
        ),
    ],
    "engine/layer_decay.py": [
        (
            "heads decay, too",
            "(num_layers - 1 - depth)",
            "(num_layers - depth)",
            "test_layer_decay.py::test_every_parameter_has_the_rate_of_its_depth",
        ),
    ],
}

"""Faults of the network, the classifier, freezing, and learning rates."""

TWIN = "test_ravlt_numbers.py::test_the_network_equals_its_channels_first_twin"
SIZES = "test_ravlt.py::test_parameters_and_tensors_of_the_released_sizes"
FOLDS = "test_fold.py::test_same_outputs"
FROZEN = "test_ravlt_training.py::test_frozen_stages_really_freeze"
STOP = "test_classifier.py::test_stopping_early_runs_no_later_stage"
NORM = "test_classifier.py::test_the_norm_of_the_last_stage"
PRUNED = "test_classifier.py::test_a_pruned_model_gets_a_new_head"
SHORTENED = "test_classifier.py::test_shortened_models_have_no_classifier"
MEMORY = "test_memory.py::test_the_feed_forward_network_keeps_one_hidden_map"
TRAINING = "test_ravlt_training.py::test_with_cp_recomputes_in_training_only"
FOLD_FORMAT = "test_fold.py::test_folds_of_version_0_1_are_refused"
RECOMPUTES = "test_ravlt_training.py::test_when_feed_forward_networks_recompute"

NETWORK = {
    "models/layers.py": [
        (
            "another eps",
            "LayerNorm(channels, eps=1e-6)",
            "LayerNorm(channels)",
            TWIN,
        ),
        (
            "norms learn although they are not to",
            ".requires_grad_(requires_grad)",
            "",
            "test_ravlt.py::test_norm_cfg_takes_the_hosts_keys",
        ),
        (
            "a batch norm is folded without eps",
            "(var + norm.eps).sqrt()",
            "var.sqrt()",
            FOLDS,
        ),
        (
            "a batch norm is folded with the mean's sign wrong",
            "bias - mean * scale",
            "bias + mean * scale",
            FOLDS,
        ),
        (
            "batch norms are folded in half precision",
            "at_least_float32(t)\n        for t in (norm.running_mean",
            "t\n        for t in (norm.running_mean",
            "test_fold.py::test_folded_weights_are_rounded_once",
        ),
    ],
    "models/archs.py": [
        ("a size lacks a block", "depths=(2, 2, 6, 2)", "depths=(2, 2, 5, 2)", SIZES),
        (
            "a size begins with other layer scales",
            "layer_scale_init=(1.0, 1.0, 1e-6, 1e-6)",
            "layer_scale_init=(1.0, 1.0, 1.0, 1.0)",
            "test_ravlt.py::test_layer_scale",
        ),
        (
            "'shell' is unknown",
            'PROFILES = ("gated", "paper", "shell")',
            'PROFILES = ("gated", "paper")',
            "test_ravlt.py::test_the_profile_of_version_0_1",
        ),
        (
            "'shell' is another attention than 'gated'",
            'in ("gated", "shell"):',
            '== "gated":',
            "test_ravlt.py::test_the_profile_of_version_0_1",
        ),
        (
            "'shell' is the paper's layer",
            'paper = profile == "paper"',
            'paper = profile != "gated"',
            "test_ravlt.py::test_the_profile_of_version_0_1",
        ),
        (
            "'shell' is warned of as another attention",
            "_shortest_forms(saved) != _shortest_forms(used)",
            "tuple(saved) != tuple(used)",
            "test_ravlt.py::test_equal_attention_gives_no_warning",
        ),
        (
            "RALA has another layer in its own paper",
            'profile == "paper" and core.get("type") != "rala"',
            'profile == "paper"',
            "test_paper.py::test_the_paper_layer_of_rala_is_the_gated_one",
        ),
    ],
    "models/base.py": [
        (
            "no warning of other attention",
            'warn_attn_types(local_metadata["attn_types"], self.attn_types)',
            "pass",
            "test_ravlt.py::test_state_dicts_record_the_attention_and_warn",
        ),
        (
            "folded and plain weights mix",
            "        self.check_folds(state_dict, prefix, local_metadata)\n",
            "",
            "test_fold.py::test_folded_and_plain_weights_do_not_mix",
        ),
        (
            "folds of version 0.1 load",
            'local_metadata.get("folds") != _FOLD_FORMAT',
            "not _FOLD_FORMAT",
            FOLD_FORMAT,
        ),
        (
            "folds need metadata",
            "if folded and recorded and",
            "if folded and",
            FOLD_FORMAT,
        ),
        (
            "folds are not recorded",
            '        local_metadata["folds"] = _FOLD_FORMAT',
            "        pass",
            "test_fold.py::test_folded_and_plain_weights_do_not_mix",
        ),
        (
            "TorchScript compiles a setter of mmengine",
            '__jit_unused_properties__ = ("is_init",)',
            "__jit_unused_properties__ = ()",
            "test_transforms.py::test_script_saves_and_loads",
        ),
        (
            "folded networks train",
            "if mode and self.deployed:",
            "if mode and self.deployed is None:",
            "test_fold.py::test_modes_afterwards",
        ),
        (
            "heads count as deep as the last block",
            "num_layers = sum(depths) + 2",
            "num_layers = sum(depths) + 1",
            "test_layer_decay.py::test_every_parameter_has_the_rate_of_its_depth",
        ),
    ],
    "models/ravlt.py": [
        (
            "layer scales are exchanged",
            "x = self.add_scaled(x, self.gamma_1, ",
            "x = self.add_scaled(x, self.gamma_2, ",
            TWIN,
        ),
        (
            "no residual in the ffn",
            "DepthwiseConv(hidden_dim, 3, residual=True)",
            "DepthwiseConv(hidden_dim, 3)",
            TWIN,
        ),
        (
            "no residual around the position convolution",
            "self.pos = DepthwiseConv(dim, 3, residual=True)",
            "self.pos = DepthwiseConv(dim, 3)",
            TWIN,
        ),
        (
            "autocast rounds the residual stream",
            "x = self.pos(x.to(self.gamma_1.dtype))",
            "x = self.pos(x)",
            "test_ravlt_numbers.py::test_autocast_leaves_the_residual_stream",
        ),
        (
            "drop path drops nothing",
            "gamma = self.drop_path(gamma.expand(x.shape[0], 1, 1, -1))",
            "pass",
            "test_gradients.py::test_drop_path_skips_the_same_samples_as_in_the_twin",
        ),
        (
            "drop path skips whole batches",
            "self.drop_path(gamma.expand(x.shape[0], 1, 1, -1))",
            "self.drop_path(gamma)",
            "test_gradients.py::test_drop_path_skips_the_same_samples_as_in_the_twin",
        ),
        (
            "the ffn recomputes in evaluation",
            "if self.training and not torch.jit.is_scripting():\n"
            "            return recompute(",
            "if not torch.jit.is_scripting():\n            return recompute(",
            RECOMPUTES,
        ),
        (
            "the ffn recomputes under with_cp",
            "block.ffn.recompute = False if enable else self.recompute_ffn",
            "block.ffn.recompute = self.recompute_ffn",
            RECOMPUTES,
        ),
        (
            "recompute_ffn is forgotten",
            "block.ffn.recompute = False if enable else self.recompute_ffn",
            "block.ffn.recompute = False if enable else None",
            MEMORY,
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
            TRAINING,
        ),
        (
            "the last block skips too rarely",
            "max(sum(depths) - 1, 1)",
            "sum(depths)",
            "test_ravlt.py::test_drop_path_rises_linearly",
        ),
        (
            "all stages run",
            "            if i <= last:",
            "            if i < NUM_STAGES:",
            STOP,
        ),
        (
            "outputs are not normalised",
            "channels_first(norm(tokens[int(i)]))",
            "channels_first(tokens[int(i)])",
            TWIN,
        ),
        (
            "outputs are views",
            "channels_first(norm(tokens[int(i)]))",
            "norm(tokens[int(i)]).permute(0, 3, 1, 2)",
            "test_ravlt_numbers.py::test_outputs_are_contiguous_down_to_roi_align",
        ),
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
            "symbolic graphs hold what operators decide",
            "(PointwiseConv, DepthwiseConv, *CORES.values())",
            "(PointwiseConv, DepthwiseConv)",
            "test_transforms.py::test_symbolic_graph",
        ),
        (
            "all stages run to stop early",
            "last if stop_early else final",
            "final",
            STOP,
        ),
        (
            "stages are left out unasked",
            "last if stop_early else final",
            "last",
            STOP,
        ),
        (
            "the last layers take another stage",
            "        if len(tokens) <= final:\n"
            "            return channels_first(tokens[-1]), taken\n",
            "",
            STOP,
        ),
        ("norm is ignored", "if norm and i == final:", "if False:", NORM),
        (
            "the last layers are never left out",
            "if norm and i == final:",
            "if i == final:",
            "test_classifier.py::test_stages_are_the_backbones",
        ),
        (
            "the last layers take every stage",
            "if norm and i == final:",
            "if norm:",
            NORM,
        ),
        (
            "normalised maps are always channels-first",
            'out if output_fmt == "NCHW" else out.permute(0, 2, 3, 1)',
            "out",
            NORM,
        ),
        (
            "intermediate maps are views",
            "taken.append(channels_first(tokens[i]))",
            "taken.append(tokens[i].permute(0, 3, 1, 2))",
            "test_classifier.py::test_mmseg_takes_it_by_its_timm_backbone",
        ),
        (
            "other ways to extract features pass",
            'if kwargs.get("feature_cls", "getter") != "getter":',
            'if kwargs.get("feature_cls", "getter") is None:',
            "test_classifier.py::test_other_ways_to_extract_features_are_refused",
        ),
        (
            "what no output needs stays",
            "        self.layers[-1].downsample = None\n",
            "",
            "test_classifier.py::test_features_only",
        ),
        (
            "pruned models keep the width of their head",
            "            self.num_features = self.head_hidden_size = "
            "self.embed_dims[last]\n",
            "",
            PRUNED,
        ),
        (
            "shortened models keep layers of another width",
            "        if prune_norm or shortened:",
            "        if prune_norm:",
            PRUNED,
        ),
        (
            "shortened models keep a classifier that does not fit",
            "        elif prune_norm or shortened:\n"
            "            self.reset_classifier(0)\n",
            "",
            SHORTENED,
        ),
        (
            "prune_head is ignored",
            "        if prune_head:",
            "        if not prune_head:",
            SHORTENED,
        ),
        (
            "a new classifier has a precision of its own",
            "self.head = head.to(next(self.parameters()))",
            "self.head = head",
            "test_classifier.py::test_new_classes_begin_as_the_first_ones",
        ),
        (
            "a new classifier is drawn in half precision",
            "head = self._build_head(num_classes).apply(init_convolution)\n"
            "        self.head = head.to(next(self.parameters()))\n",
            "head = self._build_head(num_classes).to(next(self.parameters()))\n"
            "        self.head = head.apply(init_convolution)\n",
            "test_classifier.py::test_new_classes_begin_as_the_first_ones",
        ),
        (
            "a new classifier begins as PyTorch likes",
            "self._build_head(num_classes).apply(init_convolution)",
            "self._build_head(num_classes)",
            "test_classifier.py::test_new_classes_begin_as_the_first_ones",
        ),
        (
            "the licence of weights is ours",
            'license="unknown" if url else "apache-2.0"',
            'license="apache-2.0"',
            "test_classifier.py::test_timm_lists_them",
        ),
    ],
    "training/layer_decay.py": [
        (
            "heads decay, too",
            "(num_layers - 1 - depth)",
            "(num_layers - depth)",
            "test_layer_decay.py::test_every_parameter_has_the_rate_of_its_depth",
        ),
    ],
}

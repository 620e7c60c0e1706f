"""Faults of loading and converting checkpoints."""

MISFITS = "test_checkpoint.py::test_files_that_do_not_fit"

WEIGHTS = {
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
            "    warn_attn_types(saved, model.attn_types)",
            "    pass",
            "test_checkpoint.py::test_attention_of_the_file",
        ),
        (
            "files that do not say are not of the released attention",
            'metadata.get("attn_types") or RELEASED_ATTN_TYPES',
            'metadata.get("attn_types") or model.attn_types',
            "test_checkpoint.py::test_attention_of_the_file",
        ),
        (
            "folds of version 0.1 load",
            '    model.check_folds(state_dict, "", metadata)\n',
            "",
            "test_fold.py::test_folds_of_version_0_1_are_refused",
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
}

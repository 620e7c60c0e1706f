"""Faults of the swap: channels, strides, order of levels, pixels, weights, rates."""

CHANNELS = "test_wiring.py::test_channels"
REFUSALS = "test_levels.py::test_refusals"
STAGES = "test_levels.py::test_stages"
WEIGHTS = "test_training.py::test_no_weights_of_the_old_backbone_are_loaded"
RATES = "test_training.py::test_rates_that_named_the_old_backbone"

SWAP = {
    "swap/levels.py": [
        (
            "strides are of another size of image",
            "round(side / x.shape[-1])",
            "round(_SIDE / x.shape[-1])",
            REFUSALS,
        ),
        (
            "backbones are asked in evaluation",
            "model.to(device).train()",
            "model.to(device).eval()",
            "test_levels.py::test_branches_are_refused",
        ),
    ],
    "swap/stages.py": [
        (
            "stages are counted from the first",
            "tuple(STRIDES.index(stride) for stride in strides)",
            "tuple(range(len(old)))",
            STAGES,
        ),
        (
            "dilated levels are counted from the first",
            "tuple(range(len(STRIDES) - len(old), len(STRIDES)))",
            "tuple(range(len(old)))",
            STAGES,
        ),
        (
            "channels may fall",
            "a.stride <= b.stride and a.channels <= b.channels",
            "a.stride <= b.stride",
            "test_levels.py::test_channels_that_fall",
        ),
        (
            "no warning of other strides",
            "if strides != new:",
            "if len(strides) != len(new):",
            "test_training.py::test_warnings_name_the_setting",
        ),
    ],
    "swap/readers.py": [
        (
            "the deepest level goes first no more",
            "        new_channels.reverse()",
            "        pass",
            f"{CHANNELS}[mmdet::yolo]",
        ),
        (
            "one number is of the first level",
            "count - 1 if one else",
            "0 if one else",
            f"{CHANNELS}[mmdet::centernet]",
        ),
        (
            "levels are left out twice",
            '        yield Change((*path, "start_level"), 0, why)\n',
            "",
            f"{CHANNELS}[mmdet::retinanet]",
        ),
        (
            "levels are made that nothing reads",
            'count - 1 if one else first.get("start_level", 0), count',
            "count - 1 if one else 0, count",
            f"{CHANNELS}[mmdet::retinanet]",
        ),
        (
            "the last level is not counted anew",
            'neck["end_level"] - used[0]',
            'neck["end_level"]',
            "test_wiring.py::test_a_neck_that_ends_early",
        ),
        (
            "heads read the old positions",
            "shifted = [used.index(i) for i in taken]",
            "shifted = taken",
            f"{CHANNELS}[mmseg::deeplabv3plus]",
        ),
        (
            "the first level's channels stay",
            'yield Change((*path, "c1_in_channels"), new[0], _WHY)',
            "pass",
            f"{CHANNELS}[mmseg::deeplabv3plus]",
        ),
        (
            "auxiliary heads are forgotten",
            '("decode_head", "auxiliary_head")',
            '("decode_head",)',
            f"{CHANNELS}[mmseg::upernet]",
        ),
        (
            "a head without convolutions keeps its width",
            'head.get("num_convs") == 0',
            'head.get("num_convs") == -1',
            f"{CHANNELS}[mmseg::segmenter]",
        ),
        (
            "extractors hand on the old width",
            'if key == "in_channels" or passed:',
            'if key == "in_channels":',
            f"{CHANNELS}[mmdet::faster_rcnn]",
        ),
        (
            "necks that never fitted pass",
            "elif list(found) != old_channels:",
            "elif len(found) != len(old_channels):",
            "test_wiring.py::test_a_neck_that_does_not_fit_is_told",
        ),
        (
            "cascades on one grid are parted",
            "== 1 < len(strides)",
            "== 1 > len(strides)",
            REFUSALS,
        ),
    ],
    "swap/sites.py": [
        (
            "wrappers hide their models",
            "yield from find_sites(value, (*path, key))",
            "pass",
            f"{CHANNELS}[mmdet::soft_teacher]",
        ),
    ],
    "swap/swap.py": [
        (
            "images keep three channels",
            '        new["in_channels"] = cfg["in_channels"]',
            "        pass",
            "test_wiring.py::test_images_of_other_channels",
        ),
        (
            "synchronised norms are lost",
            'new["norm_cfg"] = dict(type="SyncBN")',
            "pass",
            f"{CHANNELS}[mmseg::upernet]",
        ),
        (
            "norms leave eval mode",
            '            new["norm_eval"] = True',
            "            pass",
            "test_training.py::test_weights_of_ravlt",
        ),
    ],
    "swap/imports.py": [
        (
            "earlier imports are lost",
            'if name.partition(".")[0] not in gone]',
            "if name in gone]",
            "test_wiring.py::test_what_was_imported_before_stays",
        ),
        (
            "packages that other parts need are lost",
            "and not _names_part_of(package, swapped.to_dict())",
            "",
            "test_settings.py::test_a_package_that_another_part_needs_stays",
        ),
    ],
    "swap/plain.py": [
        (
            "necks that join maps are taken out",
            "if len(set(strides)) < len(levels):",
            "if not strides:",
            "test_plain.py::test_parts_that_join_maps_of_one_stride_get_them",
        ),
        (
            "heads may enlarge fine maps",
            "out[0].stride >= STRIDES[0]",
            "out[0].stride >= 1",
            "test_plain.py::test_parts_that_join_maps_of_one_stride_get_them",
        ),
        (
            "maps are resized the other way",
            "[s / stride for s in STRIDES]",
            "[stride / s for s in STRIDES]",
            "test_plain.py::test_parts_that_join_maps_of_one_stride_get_them",
        ),
        (
            "dilated networks count as plain",
            "len(set(levels)) == 1",
            "levels[-1].stride < 32",
            "test_plain.py::test_other_backbones_are_left_alone",
        ),
        (
            "detectors count as segmentors",
            "if not plain or not list(segmentation_heads(site)):",
            "if not plain:",
            "test_plain.py::test_detectors_read_levels_of_one_width",
        ),
    ],
    "swap/settings.py": [
        (
            "installed backbones are not asked",
            'None if _is_installed(site.backbone["type"], scope) else _widths(site)',
            "_widths(site)",
            "test_settings.py::test_a_backbone_that_fails_is_not_taken_for_an_absent_one",
        ),
        (
            "equal widths count as a pyramid",
            "rising = sorted(set(widths))",
            "rising = sorted(widths)",
            "test_settings.py::test_settings_that_do_not_suffice",
        ),
    ],
    "swap/changes.py": [
        (
            "the given config is changed",
            "swapped = copy.deepcopy(cfg)",
            "swapped = cfg",
            "test_wiring.py::test_the_given_config_is_untouched",
        ),
    ],
    "swap/leaf.py": [
        (
            "the old backbone's keys are inherited",
            '        value = {"_delete_": True, **value}',
            "        value = {**value}",
            "test_leaf.py::test_reading_it_gives_the_swapped_config",
        ),
    ],
    "swap/training.py": [
        (
            "channels stay BGR",
            "dict(_PIXELS, bgr_to_rgb=True)",
            "dict(_PIXELS)",
            "test_training.py::test_pixels_are_normalised_as_imagenet",
        ),
        (
            "the whole model's weights are loaded",
            '        yield Change(("load_from",), None, why)',
            "        pass",
            WEIGHTS,
        ),
        (
            "the old backbone's weights are loaded",
            '            yield Change((*site.path, "pretrained"), None, why)',
            "            pass",
            WEIGHTS,
        ),
        (
            "norms decay",
            "_exempt(kept, _LAYER_SCALES + _NORMS * norms)",
            "_exempt(kept, _LAYER_SCALES)",
            RATES,
        ),
        (
            "layer scales have the head's learning rate",
            "dict(keys.get(first, {})) | dict(decay_mult=0.0)",
            "dict(decay_mult=0.0)",
            RATES,
        ),
        (
            "keys of the old backbone stay",
            "if _names(k, new) or not _names(k, old)}",
            "if k}",
            RATES,
        ),
        (
            "a layer scale decays",
            '(".gamma_1", ".gamma_2")',
            '(".gamma_1",)',
            "test_training.py::test_layer_scales_do_not_decay",
        ),
        (
            "layer decay has another rate",
            'paramwise.get("decay_rate", 0.9))',
            "0.9)",
            "test_training.py::test_layer_decay_of_the_hosts_becomes_ours",
        ),
        (
            "layer decay under its other name has another rate",
            'settings.setdefault("layer_decay_rate", ',
            "settings.update(layer_decay_rate=",
            "test_plain.py::test_layer_decay_keeps_its_rate",
        ),
        (
            "layer decay knows other backbones only",
            '        yield Change((*path, "constructor"), _DECAY, known)\n',
            "",
            "test_training.py::test_layer_decay_of_the_hosts_becomes_ours",
        ),
        (
            "no warning of another optimizer",
            'if kind in ("", "AdamW", "Adam"):',
            'if kind in (None, "AdamW", "Adam", "SGD"):',
            "test_training.py::test_warnings_name_the_setting",
        ),
    ],
}

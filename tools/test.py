#!/usr/bin/env python
"""Evaluate a checkpoint of a detector or a segmentor."""

import argparse
import os

from mmengine.config import Config, ConfigDict

from ravlt.config import find_evaluators, is_segmentation, type_name
from ravlt.data.check.run import verify_images
from ravlt.data.root import record_data_root, recorded_data_root
from ravlt.errors import RAVLTError
from ravlt.training.checkpoints.fit_hook import add_fit_check
from ravlt.training.cli import add_run_arguments, read_run_config, run_cli
from ravlt.training.config import add_safety
from ravlt.training.distributed.group import join_processes
from ravlt.training.distributed.preparation import check_data_once
from ravlt.training.start import build_runner, check_backbones


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file or address")
    parser.add_argument(
        "--out",
        help="where predictions go: a .pkl file (detection), a folder (segmentation)",
    )
    parser.add_argument("--show-dir", help="folder for pictures of the predictions")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="evaluate a checkpoint that lacks tensors of the model or has others",
    )
    parser.add_argument(
        "--deploy", action="store_true", help="fold RAVLT for speed; same results"
    )
    return parser.parse_args()


def save_predictions(cfg: Config, out: str) -> None:
    """Let the evaluator write the predictions; refuse to overwrite files."""
    if os.path.isfile(out) or (os.path.isdir(out) and os.listdir(out)):
        raise RAVLTError(f"--out '{out}' exists; name another place or remove it.")
    if is_segmentation(cfg):
        kinds = ("IoUMetric", "CityscapesMetric")
        found = [e for e in find_evaluators(cfg, "test") if type_name(e) in kinds]
        if not found:
            raise RAVLTError(f"--out needs {' or '.join(kinds)} as test_evaluator.")
        for evaluator in found:
            evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith((".pkl", ".pickle")):
        raise RAVLTError(f"--out '{out}' must end in .pkl for a detector; rename it.")
    dump = dict(type="DumpDetResults", out_file_path=out)
    evaluators = cfg.test_evaluator
    if not isinstance(evaluators, list):
        evaluators = [evaluators]
    cfg.test_evaluator = [*evaluators, dump]


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let the host's visualisation hook draw every image."""
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise RAVLTError(
            "--show-dir needs default_hooks.visualization; inherit the host's "
            "default_runtime.py."
        )
    hook.update(draw=True, interval=1)
    if is_segmentation(cfg):
        cfg.visualizer.save_dir = folder
    else:
        hook.test_out_dir = os.path.abspath(folder)


def augment(cfg: Config) -> None:
    """Use the test-time augmentation of the config, or a horizontal flip."""
    if "tta_model" not in cfg:
        if is_segmentation(cfg):
            raise RAVLTError("--tta needs tta_model in the config; add one.")
        import ravlt.inference.tta  # noqa: F401 (registers the model; needs mmdet)

        cfg.custom_imports.imports.append("ravlt.inference.tta")
        # As in mmdet's test.py: NMS merges the detections of both images.
        cfg.tta_model = dict(
            type="MaskTTAModel",
            tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
        )
    if "tta_pipeline" not in cfg:
        cfg.tta_pipeline = flip_pipeline(cfg.test_dataloader.dataset.pipeline)
    cfg.tta_model = ConfigDict(cfg.tta_model, module=cfg.model)
    cfg.model = cfg.tta_model
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def flip_pipeline(pipeline: list) -> list:
    """Return a test pipeline that yields each image unchanged and mirrored."""
    *steps, pack = pipeline
    if "meta_keys" in pack:  # the default has the keys below
        keys = (*pack["meta_keys"], "flip", "flip_direction")
        pack = ConfigDict(pack, meta_keys=tuple(dict.fromkeys(keys)))
    return [
        *steps,
        dict(
            type="TestTimeAug",
            transforms=[
                [dict(type="RandomFlip", prob=p) for p in (1.0, 0.0)],
                [pack],
            ],
        ),
    ]


def main() -> None:
    args = parse_args()
    cfg = read_run_config(args, args.checkpoint)
    # The config of this evaluation may replace that of a training run.
    recorded = recorded_data_root(cfg, cfg.work_dir)
    if recorded:
        record_data_root(cfg, recorded)
    check_backbones(cfg)
    join_processes(cfg)
    cfg.load_from, cfg.resume = args.checkpoint, False
    check_data_once(cfg, ("test_dataloader",))
    if args.tta:
        augment(cfg)
    add_safety(cfg)
    add_fit_check(cfg, strict=not args.allow_partial)
    if args.out:
        save_predictions(cfg, args.out)
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.deploy:
        hooks = cfg.get("custom_hooks") or []
        cfg.custom_hooks = [*hooks, dict(type="DeployHook")]
    runner = build_runner(cfg)
    verify_images(runner)
    runner.test()


if __name__ == "__main__":
    run_cli(main)

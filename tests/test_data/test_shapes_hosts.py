"""The shapes in the hosts' data sets, and their ground truth in the hosts' metrics."""

from pathlib import Path

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations as LoadInstances
from mmdet.evaluation import CocoMetric
from mmdet.utils import register_all_modules
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations as LoadLabels

from helpers.shapes_dataset import SIZE, TRAIN, annotations, labels
from ravlt.data.shapes.dataset import CLASSES, PALETTE, SEG_CLASSES


def coco_dataset(root: Path, split: str):
    register_all_modules()
    return CocoDataset(
        data_root=str(root),
        ann_file=f"annotations/instances_{split}.json",
        data_prefix={"img": f"images/{split}/"},
        metainfo={"classes": CLASSES, "palette": PALETTE[1:]},
        pipeline=[],
    )


def test_mmdet_reads_it(root):
    dataset = coco_dataset(root, "training")
    coco = annotations(root, "training")
    assert len(dataset) == TRAIN
    load = LoadInstances(with_bbox=True, with_mask=True)
    for index in range(TRAIN):
        info = dataset.get_data_info(index)
        assert Path(info["img_path"]).is_file()
        notes = coco.loadAnns(coco.getAnnIds(imgIds=info["img_id"]))
        info["img_shape"] = info["ori_shape"] = SIZE
        loaded = load(info)
        assert loaded["gt_ignore_flags"].tolist() == [n["iscrowd"] == 1 for n in notes]
        assert loaded["gt_bboxes_labels"].tolist() == [
            n["category_id"] - 1 for n in notes
        ]
        masks = np.stack([coco.annToMask(note) for note in notes])
        np.testing.assert_array_equal(loaded["gt_masks"].to_ndarray(), masks)


def test_ground_truth_has_a_perfect_score_in_mmdet(root):
    dataset = coco_dataset(root, "training")
    coco = annotations(root, "training")
    path = root / "annotations" / "instances_training.json"
    metric = CocoMetric(ann_file=str(path), metric=["bbox", "segm"])
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        truth = [one for one in info["instances"] if not one["ignore_flag"]]
        ids = coco.getAnnIds(imgIds=info["img_id"], iscrowd=False)
        masks = [coco.annToMask(note) for note in coco.loadAnns(ids)]
        prediction = {
            "bboxes": torch.tensor([one["bbox"] for one in truth]),
            "labels": torch.tensor([one["bbox_label"] for one in truth]),
            "scores": torch.ones(len(truth)),
            "masks": torch.from_numpy(np.stack(masks)).bool(),
        }
        sample = {
            "img_id": info["img_id"],
            "ori_shape": SIZE,
            "pred_instances": prediction,
        }
        metric.process({}, [sample])
    scores = metric.evaluate(size=len(dataset))
    assert scores["coco/bbox_mAP"] >= 0.99
    assert scores["coco/segm_mAP"] >= 0.99


def test_mmseg_reads_it(root):
    dataset = BaseSegDataset(
        data_root=str(root),
        data_prefix={
            "img_path": "images/training",
            "seg_map_path": "annotations/training",
        },
        img_suffix=".jpg",
        seg_map_suffix=".png",
        reduce_zero_label=True,
        metainfo={"classes": SEG_CLASSES, "palette": PALETTE},
        pipeline=[],
    )
    assert len(dataset) == TRAIN
    load = LoadLabels()
    seen = set()
    for index in range(TRAIN):
        info = dataset.get_data_info(index)
        loaded = load(info)["gt_seg_map"]
        expected = labels(root, "training", Path(info["img_path"]).name)
        np.testing.assert_array_equal(loaded, expected - 1)
        seen |= set(np.unique(loaded).tolist())
    assert seen == set(range(len(SEG_CLASSES)))

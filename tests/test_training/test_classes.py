"""Heads that do not fit the classes of the data are found before anything is built."""

import logging

import pytest
from mmengine.config import Config

from helpers.tool_runs import DET, SEG, Run, as_line, small, train
from ravlt.config import load_config
from ravlt.errors import RAVLTError
from ravlt.training.guards import classes
from ravlt.training.guards.classes import check_classes

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    lines = []

    def print_log(line: str, logger: str, level: int) -> None:
        assert (logger, level) == ("current", logging.WARNING)
        lines.append(line)

    monkeypatch.setattr(classes, "print_log", print_log)
    return lines


def change(config, **options) -> Config:
    cfg = load_config(str(config))
    cfg.merge_from_dict({key.replace("__", "."): v for key, v in options.items()})
    return cfg


def refusal(cfg: Config) -> str:
    with pytest.raises(RAVLTError) as refused:
        check_classes(cfg, LOADERS)
    return str(refused.value)


# Each has a number of classes that is not that of its data, rightly.
@pytest.mark.parametrize(
    "name",
    [
        *(str(path) for path in (DET, SEG)),
        "mmdet::bytetrack/bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_"
        "test-mot17halfval.py",
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_fcos-rpn_1x_coco.py",
        "mmdet::glip/odinw/glip_atss_swin-t_a_fpn_dyhead_pretrain_odinw13.py",
        "mmdet::htc/htc_r50_fpn_1x_coco.py",
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
        "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
        "mmdet::mm_grounding_dino/rtts/grounding_dino_swin-t_finetune_8xb4_1x_rtts.py",
        "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
        "mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py",
    ],
)
def test_configs_that_fit(name, warned):
    check_classes(load_config(name), LOADERS)
    assert not warned


def test_box_and_mask_head_of_a_detector():
    box, mask = "model.roi_head.bbox_head", "model.roi_head.mask_head"
    names = "disk, square, triangle, ..."
    assert refusal(change(DET, **{f"{box}.num_classes": 2})) == (
        f"{box}.num_classes=2 does not fit train_dataloader.dataset, which has 5 "
        f"classes ({names}); set num_classes=5, or correct the data set's "
        f"metainfo.classes."
    )
    both = {f"{box}.num_classes": 80, f"{mask}.num_classes": 80}
    assert refusal(change(DET, **both)).startswith(
        f"{box}.num_classes=80 and {mask}.num_classes=80 do not fit "
        f"train_dataloader.dataset, which has 5 classes"
    )


def test_every_stage_of_a_cascade():
    cascade = "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py"
    stage = "model.roi_head.bbox_head.2.num_classes"
    assert refusal(change(cascade, **{stage: 3})).startswith(f"{stage}=3 does not fit")


def test_data_of_the_evaluation():
    cfg = change(DET, val_dataloader__dataset__metainfo__classes=("disk", "cross"))
    assert "do not fit val_dataloader.dataset, which has 2 classes" in refusal(cfg)


@pytest.mark.parametrize(
    ("key", "fitting", "names"),
    [
        ("num_things_classes", 80, "person, bicycle, car, ..."),
        ("num_stuff_classes", 53, "banner, blanket, bridge, ..."),
    ],
)
def test_things_and_stuff(key, fitting, names):
    panoptic = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
    assert refusal(change(panoptic, **{f"model.panoptic_head.{key}": 3})) == (
        f"model.panoptic_head.{key}=3 does not fit train_dataloader.dataset, which has "
        f"{fitting} classes ({names}); set {key}={fitting}, or correct the data set's "
        f"metainfo.classes."
    )


def test_a_string_in_place_of_names():
    cfg = change(DET, train_dataloader__dataset__metainfo__classes="disk")
    assert refusal(cfg) == (
        "train_dataloader.dataset.metainfo.classes='disk' is no list of names; write "
        "classes=('disk',), with a comma."
    )


def test_a_segmentor_with_too_few_classes():
    key = "model.decode_head.num_classes"
    assert refusal(change(SEG, **{key: 3})).startswith(
        f"{key}=3 does not fit train_dataloader.dataset, which has 6 classes"
    )


def test_a_segmentor_with_more_classes_is_a_warning(warned):
    pspnet = "mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py"
    key = "model.auxiliary_head.num_classes"
    check_classes(change(pspnet, **{key: 20}), LOADERS[:1])
    (line,) = warned
    assert line.startswith(
        f"{key}=20 does not fit train_dataloader.dataset, which has 19 classes (road, "
        f"sidewalk, building, ...); set num_classes=19, or"
    )


@pytest.mark.parametrize(
    "head", [dict(num_classes=2, out_channels=1), dict(num_classes=1)]
)
def test_a_segmentor_of_foreground_and_background(head, warned):
    names = dict(classes=("ground", "thing"), palette=[[0] * 3, [255] * 3])
    options = {f"model.decode_head.{key}": value for key, value in head.items()}
    cfg = change(SEG, **options)
    for loader in LOADERS:
        cfg[loader].dataset.update(type="BaseSegDataset", metainfo=names)
    check_classes(cfg, LOADERS)
    assert not warned


def test_zero_labels_of_data_set_and_pipeline():
    ade20k = "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"
    cfg = change(ade20k, train_dataloader__dataset__type="CityscapesDataset")
    cfg.model.decode_head.num_classes = 19
    assert refusal(cfg) == (
        "train_dataloader.dataset.pipeline.1.reduce_zero_label=True does not fit its "
        "data set, whose reduce_zero_label is False; leave it out of the pipeline."
    )


@pytest.mark.integration
@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_tools_refuse(tmp_path, shapes, tool):
    key = "model.roi_head.mask_head.num_classes"
    if tool == "train.py":
        run = train(tmp_path, "--data-root", shapes, config=DET, options={key: 3})
    else:
        options = as_line(small(DET) | {key: 3})
        line = [DET, "some.pth", "--data-root", shapes, "--tta", *options]
        run = Run(tool, line, tmp_path)
    loader = tool.removesuffix(".py") + "_dataloader"
    assert run.error().startswith(f"error: {key}=3 does not fit {loader}.dataset")


def test_heads_that_the_hosts_do_not_have_are_a_warning(warned):
    cfg = change(DET)
    cfg.model.attribute_head = dict(type="Mine", num_classes=10)
    check_classes(cfg, ("train_dataloader",))
    (line,) = warned
    assert line.startswith("model.attribute_head.num_classes=10 does not fit train_")


def test_the_comparison_can_be_turned_off():
    cfg = change(DET, **{"model.roi_head.bbox_head.num_classes": 3})
    assert "bbox_head.num_classes=3" in refusal(cfg)
    cfg.bad_images = "off"
    check_classes(cfg, ("train_dataloader",))

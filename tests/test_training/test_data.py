import copy

import pytest
from mmengine.config import Config

from helpers.check_runs import runner_of
from ravlt.config import find_datasets
from ravlt.data.check import run
from ravlt.data.check.run import check_data, remove_verification, verify_images
from ravlt.data.root import set_data_root
from ravlt.errors import RAVLTError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def inner(name: str, **keys) -> dict:
    return dict(type="CocoDataset", data_root=name, **keys)


def names(dataset) -> list[str]:
    return sorted(found["data_root"] for found in find_datasets(dict(dataset=dataset)))


def test_finds_datasets_through_wrappers():
    assert names(inner("a")) == ["a"]
    assert names(dict(type="RepeatDataset", times=3, dataset=inner("a"))) == ["a"]
    concat = dict(type="ConcatDataset", datasets=[inner("a"), inner("b")])
    assert names(concat) == ["a", "b"]
    assert names([inner("a"), concat]) == ["a", "a", "b"]
    mixed = dict(type="MultiImageMixDataset", dataset=concat, pipeline=[])
    assert names(dict(type="ClassBalancedDataset", dataset=mixed)) == ["a", "b"]
    assert list(find_datasets({})) == []
    assert list(find_datasets(dict(dataset=None))) == []


def test_found_datasets_are_those_of_the_config():
    cfg = Config(dict(dataset=dict(type="RepeatDataset", dataset=inner("a"))))
    (found,) = find_datasets(cfg)
    found["data_root"] = "b"
    assert cfg.dataset.dataset.data_root == "b"


# ----------------------------------------------------------------------- set_data_root


def evaluators(old: str, ann_files: list) -> list:
    """The annotation files of evaluators after the data root has become 'new'."""
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dict(type="Repeat", dataset=inner(old))),
            val_dataloader=dict(dataset=[inner(old), dict(type="CocoDataset")]),
            val_evaluator=[dict(type="CocoMetric", ann_file=f) for f in ann_files],
            test_evaluator=dict(type="CocoMetric", ann_file=ann_files[0]),
        )
    )
    set_data_root(cfg, "new")
    for name in LOADERS[:2]:
        for dataset in find_datasets(cfg[name]):
            assert dataset["data_root"] == "new"
    found = [evaluator.ann_file for evaluator in cfg.val_evaluator]
    assert cfg.test_evaluator.ann_file == found[0]
    return found


@pytest.mark.parametrize("old", ["data/coco", "data/coco/"])
def test_data_root_and_evaluators(old):
    inside, outside = "data/coco/annotations/val.json", "elsewhere/val.json"
    beside = "data/coco_extra/val.json"
    assert evaluators(old, [inside, outside, beside, None]) == [
        "new/annotations/val.json",
        outside,
        beside,
        None,
    ]


def test_data_root_and_panoptic_label_maps():
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=inner("data/coco/")),
            val_evaluator=dict(
                type="CocoPanopticMetric",
                ann_file="data/coco/annotations/panoptic_val2017.json",
                seg_prefix="data/coco/annotations/panoptic_val2017/",
            ),
        )
    )
    set_data_root(cfg, "new")
    assert cfg.val_evaluator.ann_file == "new/annotations/panoptic_val2017.json"
    assert cfg.val_evaluator.seg_prefix == "new/annotations/panoptic_val2017/"


def test_data_root_without_data_or_evaluators():
    cfg = Config(dict(val_evaluator=None, train_dataloader=None))
    set_data_root(cfg, "new")
    assert cfg.to_dict() == dict(val_evaluator=None, train_dataloader=None)


# -------------------------------------------------------------------------- check_data


@pytest.fixture
def cfg(tmp_path) -> Config:
    """A config whose data is there."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "ann.json").write_text("{}")
    dataset = inner(
        str(tmp_path),
        ann_file="ann.json",
        data_prefix=dict(img_path="images", seg_map_path="labels"),
    )
    return Config({name: dict(dataset=copy.deepcopy(dataset)) for name in LOADERS})


def refusal(cfg: Config, *args) -> str:
    with pytest.raises(RAVLTError) as refused:
        check_data(cfg, *args)
    return str(refused.value)


def test_sound_data_passes(cfg, tmp_path):
    check_data(cfg)
    cfg.train_dataloader.dataset.ann_file = ""
    cfg.val_dataloader.dataset.ann_file = str(tmp_path / "ann.json")
    cfg.val_dataloader.dataset.data_prefix = None
    cfg.test_dataloader = None
    check_data(cfg)


def test_missing_root(cfg):
    cfg.val_dataloader.dataset.data_root = "gone"
    assert refusal(cfg) == (
        "val_dataloader.dataset.data_root 'gone' does not exist; give the data set's "
        "folder with --data-root."
    )


@pytest.mark.parametrize("key", ["ann_file", "data_prefix.img_path"])
def test_missing_file_or_folder(cfg, tmp_path, key):
    cfg.merge_from_dict({f"test_dataloader.dataset.{key}": "gone"})
    assert refusal(cfg) == (
        f"test_dataloader.dataset.{key} '{tmp_path / 'gone'}' does not exist; correct "
        f"that key, or give the data set's folder with --data-root."
    )


def test_only_the_named_loaders_are_looked_at(cfg):
    cfg.train_dataloader.dataset.data_root = "gone"
    check_data(cfg, ("val_dataloader", "test_dataloader"))
    assert "train_dataloader" in refusal(cfg, ("train_dataloader",))


def test_data_elsewhere_is_not_looked_for(cfg):
    cfg.train_dataloader.dataset.data_root = "s3://bucket/coco"
    cfg.val_dataloader.dataset.data_root = "gone"
    cfg.val_dataloader.dataset.backend_args = dict(backend="petrel")
    cfg.test_dataloader.dataset.data_prefix = dict(img_path="s3://bucket/test")
    check_data(cfg)


def test_the_local_backend_is_not_elsewhere(cfg):
    cfg.val_dataloader.dataset.data_root = "gone"
    cfg.val_dataloader.dataset.backend_args = dict(backend="local")
    assert "'gone'" in refusal(cfg)


def test_wrapped_data_is_looked_at(cfg):
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", dataset=inner("gone"))
    assert "'gone'" in refusal(cfg)


# ----------------------------------------------------------------------- verify_images


def steps(**first) -> list:
    return [dict(type="LoadImageFromFile", **first), dict(type="LoadAnnotations")]


def config_of(pipeline: list, **keys) -> Config:
    loader = dict(dataset=dict(type="CocoDataset", pipeline=pipeline))
    return Config({name: copy.deepcopy(loader) for name in LOADERS} | keys)


def verified(cfg: Config) -> list:
    """The pipelines that a runner would build; the config stays."""
    before, runner = cfg.to_dict(), runner_of(cfg)
    verify_images(runner)
    assert cfg.to_dict() == before
    return [getattr(runner, f"_{name}").dataset.pipeline for name in LOADERS]


def verification(**keys) -> dict:
    """The step in a run without a work directory."""
    return dict(type="VerifyImages", passed=None, on_error="error") | keys


def test_images_are_verified():
    for pipeline in verified(config_of(steps())):
        assert pipeline == [verification(), *steps()]


def test_what_passed_is_kept_beside_the_work_directory(tmp_path):
    cfg = config_of(steps(), work_dir=str(tmp_path / "runs/one"))
    place = str(tmp_path / "runs/.checked_data")
    assert [steps[0]["passed"] for steps in verified(cfg)] == [place] * 3


def test_verification_can_be_turned_off():
    assert verified(config_of(steps(), bad_images="off")) == [steps()] * 3


@pytest.mark.parametrize(
    ("reading", "keys"),
    [
        (dict(backend_args=dict(backend="petrel")), {}),
        ({}, dict(data_root="s3://bucket/coco")),
        ({}, dict(data_prefix=dict(img="https://some.where/images"))),
    ],
)
def test_remote_images_are_not_downloaded_twice(reading, keys, monkeypatch):
    logged = []
    monkeypatch.setattr(run, "print_log", lambda text, **_: logged.append(text))
    cfg = config_of(steps())
    cfg.train_dataloader.dataset.pipeline = steps(**reading)
    cfg.train_dataloader.dataset.update(keys)
    training, *evaluation = verified(cfg)
    assert (
        training == steps(**reading) and evaluation == [[verification(), *steps()]] * 2
    )
    (message,) = logged
    assert message.startswith("The images of train_dataloader are not checked, because")


def test_a_config_of_an_earlier_run_loses_the_step():
    cfg = config_of([dict(type="VerifyImages", on_error="skip"), *steps()])
    cfg.val_dataloader = None
    remove_verification(cfg)
    assert cfg.train_dataloader.dataset.pipeline == steps()
    assert cfg.test_dataloader.dataset.pipeline == steps()


def test_only_training_skips():
    pipelines = verified(config_of(steps(), bad_images="skip"))
    actions = [pipeline[0]["on_error"] for pipeline in pipelines]
    assert actions == ["skip", "error", "error"]


def test_verifies_right_before_the_loader_as_it_reads():
    loader = dict(type="mmdet.LoadImageFromFile", imdecode_backend="pillow")
    pipeline, *_ = verified(config_of([dict(type="Other"), loader]))
    verify = verification(imdecode_backend="pillow")
    assert pipeline == [dict(type="Other"), verify, loader]


def test_other_pipelines_stay():
    for pipeline in ([], [dict(type="LoadPoints")]):
        assert verified(config_of(pipeline)) == [pipeline] * 3
    runner = runner_of(Config(dict(train_dataloader=dict(dataset=dict(type="Bare")))))
    verify_images(runner)
    assert runner._train_dataloader == dict(dataset=dict(type="Bare"))


def test_wrapped_pipelines_are_verified():
    wrapped = dict(
        type="MultiImageMixDataset",
        dataset=dict(type="CocoDataset", pipeline=steps()),
        pipeline=[dict(type="Mosaic")],
    )
    runner = runner_of(Config(dict(train_dataloader=dict(dataset=wrapped))))
    verify_images(runner)
    assert runner._train_dataloader.dataset.pipeline == [dict(type="Mosaic")]
    pipeline = runner._train_dataloader.dataset.dataset.pipeline
    kinds = [step["type"] for step in pipeline]
    assert kinds == ["VerifyImages", "LoadImageFromFile", "LoadAnnotations"]


def test_tuples_of_datasets_and_steps():
    datasets = (inner("a"), inner("b"))
    loader = dict(dataset=dict(type="ConcatDataset", datasets=datasets))
    assert names(loader["dataset"]) == ["a", "b"]
    for pipeline in verified(config_of(tuple(steps()))):
        assert pipeline == [verification(), *steps()]


@pytest.mark.parametrize(
    "keys",
    [
        dict(ann_file=["a.json", "b.json"]),
        dict(ann_file="s3://bucket/train.json"),
        dict(data_prefix="images"),
    ],
)
def test_data_of_other_kinds_are_left_to_the_data_set(tmp_path, keys):
    (tmp_path / "images").mkdir()
    dataset = dict(type="Mine", data_root=str(tmp_path), **keys)
    check_data(Config(dict(train_dataloader=dict(dataset=dataset))))

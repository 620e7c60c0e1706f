"""Misspelled keys give a warning, or one line in place of a traceback."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner
from torch import nn

import ravlt  # noqa: F401 (registers the backbone)
from helpers.tool_runs import SEG, train
from ravlt.config import load_config
from ravlt.training.keys import explain_argument, find_typos


@pytest.fixture(scope="module")
def cfg() -> Config:
    return load_config(str(SEG))


@pytest.mark.parametrize(
    ("option", "expected"),
    {
        "train_dataloder.batch_size": "train_dataloader.batch_size",
        "optim_wraper.optimizer.lr": "optim_wrapper.optimizer.lr",
        "resum": "resume",
        "bad_image": "bad_images",
        "train_dataloader.batchsize": "train_dataloader.batch_size",
        "env_cfg.dist_cfg.backnd": "env_cfg.dist_cfg.backend",
        "train_dataloader.dataset.data_prefix.img_pth": (
            "train_dataloader.dataset.data_prefix.img_path"
        ),
    }.items(),
)
def test_misspelled_options(cfg, option, expected):
    assert list(find_typos(cfg, [option])) == [
        f"The config key '{option}' is unknown; did you mean '{expected}'?"
    ]


@pytest.mark.parametrize(
    "option",
    [
        "train_dataloader.batch_size",
        "train_dataloader.drop_last",
        "train_dataloader.dataset.pipeline.0.type",
        "train_dataloader.dataset.pipeline.99.type",
        "model.backbone.arch",
        "model.backbone.attn_types",
        "bad_images",
        "load_from",
        "tta_pipeline",
        "randomness.seed",
        # Constructors know better: a similar argument may exist as well.
        "train_dataloader.sampler.shufle",
    ],
)
def test_options_that_are_read(cfg, option):
    assert list(find_typos(cfg, [option])) == []


def test_options_that_only_the_file_reads():
    ade20k = load_config("mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py")
    assert list(find_typos(ade20k, ["optimizer.lr"])) == [
        "The config key 'optimizer.lr' has no effect, because nothing but the file "
        "reads 'optimizer'; set a key of the run, as the file does."
    ]


def test_misspelled_key_of_a_file():
    keys = dict(model={}, val_dataloder={}, val_evaluator_abs={}, test_pipeline=[])
    assert list(find_typos(Config(keys), [])) == [
        "The config key 'val_dataloder' is unknown; did you mean 'val_dataloader'?"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "mmdet::glip/odinw/glip_atss_swin-t_a_fpn_dyhead_pretrain_odinw35.py",
        "mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py",
        "mmdet::soft_teacher/"
        "soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py",
        "mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py",
    ],
)
def test_variables_of_the_hosts_are_no_typos(name):
    assert list(find_typos(load_config(name), [])) == []


# ------------------------------------------------------------------- constructors


def explained(build, *args, **kwargs) -> str | None:
    with pytest.raises(TypeError) as raised:
        build(*args, **kwargs)
    return explain_argument(raised.value)


def test_argument_of_a_backbone():
    config = dict(type="RAVLT", arch="test", drop_path=0.1)
    assert explained(MODELS.build, config) == (
        "The config gives RAVLT an unknown 'drop_path'; did you mean 'drop_path_rate'?"
    )


def test_argument_of_an_optimizer():
    config = dict(optimizer=dict(type="SGD", learning_rate=0.1))
    line = explained(build_optim_wrapper, nn.Linear(1, 1), config)
    assert line.startswith(
        "The config gives SGD an unknown 'learning_rate'; use params, lr, momentum,"
    )


def test_argument_that_a_class_passes_on():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    config = dict(type="LinearLR", start_facor=0.1, optimizer=optimizer)
    assert explained(PARAM_SCHEDULERS.build, config) == (
        "The config gives LinearLR an unknown 'start_facor'; did you mean "
        "'start_factor'?"
    )


def test_argument_of_a_loader():
    loader = dict(
        dataset=[1], sampler=dict(type="DefaultSampler", shuffle=False), num_worker=1
    )
    assert explained(Runner.build_dataloader, loader) == (
        "The config gives DataLoader an unknown 'num_worker'; did you mean "
        "'num_workers'?"
    )


def test_fault_of_code_keeps_its_traceback():
    def measure(size: int) -> int:
        return size

    @HOOKS.register_module()
    class BrokenHook:
        def __init__(self, size: int) -> None:
            measure(size, length=size)

    try:
        with pytest.raises(TypeError, match="unexpected keyword") as raised:
            HOOKS.build(dict(type="BrokenHook", size=1))
    finally:
        HOOKS.module_dict.pop("BrokenHook")
    assert explain_argument(raised.value) is None
    alone = TypeError("f() got an unexpected keyword argument 'x'")
    assert explain_argument(alone) is None
    assert explain_argument(KeyError("size")) is None


# -------------------------------------------------------------------------- tools


@pytest.mark.integration
def test_train_says_both(tmp_path, shapes):
    options = {
        "train_dataloder.batch_size": 2,
        "optim_wrapper.optimizer.learning_rate": 1e-3,
    }
    run = train(tmp_path, "--data-root", shapes, options=options)
    assert run.error().startswith("error: The config gives AdamW an unknown 'learn")
    assert run.err.count("warning: The config key 'train_dataloder.batch_size'") == 1

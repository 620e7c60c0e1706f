"""A run says whether its batch and learning rate are those of the recipe."""

import logging

import pytest
from mmengine.config import Config

from ravlt.training import batch_size
from ravlt.training.batch_size import report_batch_size


def make_config(base=16, enable=False, images=2, rate=1e-4, **wrapper) -> Config:
    return Config(
        dict(
            auto_scale_lr=dict(base_batch_size=base, enable=enable),
            train_dataloader=dict(batch_size=images),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=rate), **wrapper),
        )
    )


@pytest.fixture
def report(monkeypatch):
    """Returns what is logged for a config and a number of processes."""

    def report(cfg: Config, processes: int = 1) -> list[tuple[int, str]]:
        lines = []
        monkeypatch.setattr(batch_size, "get_world_size", lambda: processes)
        monkeypatch.setattr(
            batch_size,
            "print_log",
            lambda line, logger, level: lines.append((level, line)),
        )
        before = cfg.to_dict()
        report_batch_size(cfg)
        assert cfg.to_dict() == before
        return lines

    return report


def test_the_recipes_batch(report):
    line = "Batch of 16 images (8 processes x 2) at a learning rate of 0.0001"
    expected = [(logging.INFO, f"{line}, as in the recipe.")]
    assert report(make_config(), 8) == expected
    # A scale of one.
    assert report(make_config(enable=True), 8) == expected


def test_another_batch_at_the_recipes_rate(report):
    assert report(make_config()) == [
        (
            logging.WARNING,
            "Batch of 2 images (1 process x 2) at a learning rate of 0.0001; the "
            "recipe means 0.0001 for 16 images, which is 1.25e-05 for 2: add "
            "--auto-scale-lr.",
        )
    ]


def test_another_batch_at_its_own_rate(report):
    assert report(make_config(enable=True), 4) == [
        (
            logging.INFO,
            "Batch of 8 images (4 processes x 2) at a learning rate of 5e-05, scaled "
            "from the recipe's 0.0001 for 16 images.",
        )
    ]


def test_accumulation_makes_the_recipes_batch(report):
    assert report(make_config(accumulative_counts=4), 2) == [
        (
            logging.INFO,
            "Batch of 16 images (2 processes x 2, accumulated over 4 iterations) at a "
            "learning rate of 0.0001, as in the recipe.",
        )
    ]


@pytest.mark.parametrize(
    ("enable", "rate", "steps", "images", "meant"),
    [
        # mmengine scales by 2 / 16.
        (True, "1.25e-05", 8, 16, "0.0001"),
        (True, "1.25e-05", 4, 8, "5e-05"),
        (False, "0.0001", 4, 8, "5e-05"),
    ],
)
def test_accumulation_which_mmengine_does_not_count(
    report, enable, rate, steps, images, meant
):
    assert report(make_config(enable=enable, accumulative_counts=steps)) == [
        (
            logging.WARNING,
            f"Batch of {images} images (1 process x 2, accumulated over {steps} "
            f"iterations) at a learning rate of {rate}; the recipe means 0.0001 for 16 "
            f"images, which is {meant} for {images}: set optim_wrapper.optimizer.lr="
            f"{meant} without --auto-scale-lr, which does not count accumulation.",
        )
    ]


@pytest.mark.parametrize(
    "missing",
    [
        "auto_scale_lr",
        "auto_scale_lr.base_batch_size",
        "train_dataloader.batch_size",
        "optim_wrapper.optimizer",
        "optim_wrapper.optimizer.lr",
    ],
)
def test_nothing_where_the_config_does_not_say(report, missing):
    cfg = make_config()
    *path, key = missing.split(".")
    owner = cfg
    for name in path:
        owner = owner[name]
    owner.pop(key)
    assert report(cfg) == []

"""Every config: its name is true, its recipe is the paper's, and its model works."""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.models.archs import ARCHS

ROOT = Path(__file__).parents[1]
PATHS = sorted(
    path
    for path in ROOT.glob("configs/**/*.py")
    if not {"_base_", "quickstart"} & set(path.parts)
)


def name_of(path: Path) -> str:
    return path.stem


def paths_of(part: str) -> list[Path]:
    return [path for path in PATHS if part in path.stem]


# {method}_ravlt-{size}[-linear][_{neck}][_{head}]_{training}_{dataset}[-{crop}]
NAME = re.compile(
    r"(?P<method>[a-z-]+)_ravlt-(?P<size>[tsbl])(?P<linear>-linear)?"
    r"(?:_(?P<neck>fpn))?(?:_(?P<head>4conv1fc-giou))?"
    r"_(?:(?P<gpus>\d+)xb(?P<batch>\d+)-)?(?P<ms_crop>ms-crop-)?"
    r"(?:(?P<epochs>[13])x|(?P<iters>\d+)k)"
    r"_(?P<dataset>coco|ade20k)(?:-(?P<crop>\d+x\d+))?"
)
TYPES = {
    "retinanet": ("RetinaNet", "RetinaHead"),
    "mask-rcnn": ("MaskRCNN", "StandardRoIHead"),
    "cascade-mask-rcnn": ("CascadeRCNN", "CascadeRoIHead"),
    "fpn": ("EncoderDecoder", "FPNHead"),
    "upernet": ("EncoderDecoder", "UPerHead"),
}


CROP = (50, 61)  # of segmentation when the model runs


@dataclass
class Recipe:
    """What the paper's runs did, copied from its repository, not from our configs."""

    lr: float
    weight_decay: float
    exempt: str | None  # "name": parameters with norm in it; "layer": norm layers
    loss_scale: float | str | None  # None: fp32
    params: dict[str, int]  # millions, by size


RECIPES = {
    "retinanet": Recipe(1e-4, 1e-4, None, 512.0, dict(t=24, s=34, b=57, l=104)),
    "mask-rcnn": Recipe(1e-4, 0.05, "name", "dynamic", dict(t=33, s=44, b=67, l=114)),
    "cascade-mask-rcnn": Recipe(
        1e-4, 0.05, "layer", "dynamic", dict(s=82, b=105, l=152)
    ),
    "fpn": Recipe(1e-4, 1e-4, None, None, dict(t=18, s=28, b=51, l=98)),
    "upernet": Recipe(6e-5, 0.01, "name", 512.0, dict(s=55, b=77, l=125)),
}


@dataclass
class Case:
    """A config, and what its name says."""

    path: Path
    cfg: Config
    name: dict[str, str | None]

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.name["method"]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors this small, threads only wait for each other where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=PATHS, ids=name_of)
def case(request) -> Iterator[Case]:
    cfg = Config.fromfile(request.param)
    match = NAME.fullmatch(request.param.stem)
    assert match, f"{request.param.name} does not follow the grammar"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield Case(request.param, cfg, match.groupdict())


@pytest.fixture(scope="module")
def model(case) -> nn.Module:
    """The model at its real size, uninitialised: only names and shapes are read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "kaiming_normal_", "trunc_normal_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        return MODELS.build(copy.deepcopy(case.cfg.model))


def test_configs_are_found():
    assert {path.parent.name for path in PATHS} == {
        "retinanet",
        "mask_rcnn",
        "cascade_mask_rcnn",
        "sem_fpn",
        "upernet",
    }


def test_model_has_what_the_name_says(case, model):
    name, cfg = case.name, case.cfg.model
    detector, head = TYPES[name["method"]]
    heads = [cfg.get(key, {}) for key in ("bbox_head", "roi_head", "decode_head")]
    assert cfg.type == detector
    assert head in [h.get("type") for h in heads]
    assert ("neck" in cfg) == (name["neck"] == "fpn" or name["method"] == "fpn")
    assert "neck" not in cfg or cfg.neck.type == "FPN"

    backbone = model.backbone
    assert type(backbone).__name__ == "RAVLT"
    assert backbone.arch == name["size"]
    late = "rala" if name["linear"] else "softmax"
    assert backbone.attn_types == ("rala", "rala", late, late)
    rates = [block.drop_path.drop_prob for s in backbone.layers for block in s.blocks]
    drop_path_rate = dict(t=0.1, s=0.15, b=0.4, l=0.55)[name["size"]]
    assert max(rates) == pytest.approx(drop_path_rate)
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm)]
    assert {type(m) for m in norms} == {nn.SyncBatchNorm}
    model.train()
    assert all(m.training for m in norms)
    assert all(p.requires_grad for p in backbone.parameters())
    assert cfg.backbone.init_cfg.type == "Pretrained"
    assert cfg.backbone.init_cfg.checkpoint == (
        "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/"
        f"RAVLT_{name['size'].upper()}.pth"
    )
    assert cfg.get("pretrained") is None


def test_in_channels_are_the_backbones(case, model):
    cfg = case.cfg.model
    dims = ARCHS[case.name["size"]]["embed_dims"]
    outputs = [dims[i] for i in model.backbone.out_indices]
    taken = cfg.neck if "neck" in cfg else cfg.decode_head
    assert taken.in_channels == outputs
    if "auxiliary_head" in cfg:
        assert cfg.auxiliary_head.in_channels == dims[cfg.auxiliary_head.in_index]
        assert cfg.auxiliary_head.in_index == 2


@pytest.mark.parametrize("case", paths_of("4conv1fc-giou"), indirect=True, ids=name_of)
def test_cascade_head(case):
    heads = case.cfg.model.roi_head.bbox_head
    assert len(heads) == 3
    for head in heads:
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert head.norm_cfg.type == "SyncBN"
        assert head.reg_decoded_bbox
        assert head.loss_bbox.type == "GIoULoss"
        assert head.loss_bbox.loss_weight == 10
    rpn_loss = case.cfg.model.rpn_head.loss_bbox
    assert rpn_loss.type == "SmoothL1Loss"
    assert rpn_loss.beta == pytest.approx(1 / 9)


def test_data_are_what_the_name_says(case):
    name, cfg = case.name, case.cfg
    loader = cfg.train_dataloader
    assert loader.batch_size == int(name["batch"] or 2)
    total = int(name["gpus"] or 8) * loader.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=total)
    dataset = dict(coco="CocoDataset", ade20k="ADE20KDataset")[name["dataset"]]
    assert loader.dataset.type == cfg.val_dataloader.dataset.type == dataset

    pipeline = {step.type: step for step in loader.dataset.pipeline}
    assert pipeline["RandomFlip"].prob == 0.5
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.model.data_preprocessor.bgr_to_rgb
    if name["dataset"] == "coco":
        assert cfg.model.data_preprocessor.pad_size_divisor == 32
        assert ("RandomChoice" in pipeline) == bool(name["ms_crop"])
        if name["ms_crop"]:
            resize, crop = pipeline["RandomChoice"].transforms
            assert [s[0] for s in resize[0].scales] == list(range(480, 801, 32))
            assert [s[0] for s in crop[0].scales] == [400, 500, 600]
            assert (crop[1].type, crop[1].crop_size) == ("RandomCrop", (384, 600))
            assert (crop[1].crop_type, crop[1].allow_negative_crop) == (
                "absolute_range",
                True,
            )
            assert crop[2] == resize[0]
        else:
            assert pipeline["Resize"].scale == (1333, 800)
    else:
        crop = tuple(int(n) for n in name["crop"].split("x"))
        assert pipeline["RandomCrop"].crop_size == crop
        assert pipeline["RandomCrop"].cat_max_ratio == 0.75
        assert pipeline["RandomResize"].scale == (2048, 512)
        assert "PhotoMetricDistortion" in pipeline
        assert cfg.model.data_preprocessor.size == crop
        assert cfg.model.test_cfg.mode == "whole"
        assert cfg.model.decode_head.num_classes == 150


def test_schedule_is_what_the_name_says(case):
    name, cfg = case.name, case.cfg
    *warmup, decay = cfg.param_scheduler
    if name["epochs"]:
        epochs, milestones = {"1": (12, [8, 11]), "3": (36, [27, 33])}[name["epochs"]]
        assert cfg.train_cfg.max_epochs == decay.end == epochs
        assert (decay.type, decay.milestones) == ("MultiStepLR", milestones)
        assert decay.gamma == 0.1
        assert decay.get("by_epoch", True)
        assert [(w.start_factor, w.end) for w in warmup] == [(0.001, 500)]
        assert cfg.train_cfg.val_interval == 1
    else:
        iters = 1000 * int(name["iters"])
        assert cfg.train_cfg.max_iters == decay.end == iters
        power, eta_min, expected_warmup = {
            "fpn": (0.9, 1e-6, []),
            "upernet": (1.0, 0.0, [(1e-6, 1500)]),
        }[name["method"]]
        assert (decay.type, decay.power, decay.eta_min) == ("PolyLR", power, eta_min)
        assert not decay.by_epoch
        assert decay.begin == (1500 if warmup else 0)
        assert [(w.start_factor, w.end) for w in warmup] == expected_warmup
        assert cfg.train_cfg.val_interval == iters // 10
    assert all((w.type, w.by_epoch) == ("LinearLR", False) for w in warmup)
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


def test_parameter_groups(case, model, monkeypatch):
    recipe, cfg = case.recipe, case.cfg.optim_wrapper
    if recipe.loss_scale is None:
        assert cfg.type == "OptimWrapper"
    else:
        assert (cfg.type, cfg.dtype) == ("AmpOptimWrapper", "float16")
        assert cfg.loss_scale == recipe.loss_scale
    # Without a GPU the wrapper refuses to exist; it is not used here, only read.
    monkeypatch.setattr(
        "mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available",
        lambda: True,
    )
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg)).optimizer

    assert type(optimizer) is torch.optim.AdamW
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    in_norm_layer = {
        parameter
        for module in model.modules()
        if isinstance(module, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
        for parameter in module.parameters()
    }
    exempted = {"gamma_1": 0, "gamma_2": 0, "norm": 0}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        is_norm = {
            None: False,
            "name": "norm" in name,
            "layer": parameter in in_norm_layer,
        }[recipe.exempt]
        if leaf in exempted or is_norm:
            exempted[leaf if leaf in exempted else "norm"] += 1
            assert groups[parameter]["weight_decay"] == 0, name
        else:
            assert groups[parameter]["weight_decay"] == recipe.weight_decay, name
        assert groups[parameter]["lr"] == recipe.lr, name
        assert groups[parameter]["betas"] == (0.9, 0.999), name
    blocks = sum(ARCHS[case.name["size"]]["depths"])
    assert exempted["gamma_1"] == exempted["gamma_2"] == blocks
    assert bool(exempted["norm"]) == (recipe.exempt is not None)


def test_number_of_parameters_is_the_papers(case, model):
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    # The paper gives whole millions.
    assert millions == pytest.approx(case.recipe.params[case.name["size"]], abs=0.55)


def test_metafile_lists_the_config(case):
    metafile = yaml.safe_load((case.path.parent / "metafile.yml").read_text())
    entries = {entry["Name"]: entry for entry in metafile["Models"]}
    entry = entries[case.path.stem]
    assert entry["Config"] == str(case.path.relative_to(ROOT))
    assert entry["In Collection"] in [c["Name"] for c in metafile["Collections"]]
    assert case.path.name in (case.path.parent / "README.md").read_text()


def test_loss_reaches_every_parameter(case):
    run = _run(case)
    losses = {k: sum(_tensors(value)).item() for k, value in run.losses.items()}
    assert all(math.isfinite(value) for value in losses.values()), losses
    # Untrained classifiers are undecided between their classes; RetinaNet's is not.
    name, classes = {
        "retinanet": ("loss_cls", None),
        "mask-rcnn": ("loss_cls", 81),
        "cascade-mask-rcnn": ("s0.loss_cls", 81),
        "fpn": ("decode.loss_ce", 150),
        "upernet": ("decode.loss_ce", 150),
    }[case.name["method"]]
    assert losses[name] > 0
    if classes:
        assert losses[name] == pytest.approx(math.log(classes), rel=0.1)
    if "aux.loss_ce" in losses:
        assert losses["aux.loss_ce"] == pytest.approx(0.4 * math.log(150), rel=0.1)
    assert run.without_gradient == []  # DDP stops at the first of these
    assert run.bad_gradient == []


def test_predictions_are_valid(case):
    run = _run(case)
    assert len(run.predictions) == 2
    for sample in run.predictions:
        height, width = sample.ori_shape
        if case.name["dataset"] == "ade20k":
            labels = sample.pred_sem_seg.data
            assert labels.shape == (1, height, width)
            assert labels.min() >= 0
            assert labels.max() < 150
            continue
        found = sample.pred_instances
        assert len(found) > 0
        x1, y1, x2, y2 = found.bboxes.unbind(1)
        x_max, y_max = width / sample.scale_factor[0], height / sample.scale_factor[1]
        assert ((x1 >= 0) & (x1 <= x2) & (x2 <= x_max + 1e-3)).all()
        assert ((y1 >= 0) & (y1 <= y2) & (y2 <= y_max + 1e-3)).all()
        assert ((found.labels >= 0) & (found.labels < 80)).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        if "mask" in case.name["method"]:
            assert found.masks.shape == (len(found), height, width)
            assert found.masks.dtype == torch.bool


def test_tensors_have_the_right_shapes_and_repeat(case):
    run = _run(case)
    shapes = [tuple(t.shape) for t in run.tensors]
    height, width = run.input_size
    if case.name["dataset"] == "ade20k":
        assert shapes == [(2, 150, -(-height // 4), -(-width // 4))]
        logits = F.interpolate(run.tensors[0], (height, width), mode="bilinear")
        for sample, expected in zip(run.predictions, logits.argmax(1), strict=True):
            assert torch.equal(sample.pred_sem_seg.data[0], expected)
    elif case.name["method"] == "retinanet":
        grids = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
        assert shapes == [(2, 9 * 80, *g) for g in grids] + [
            (2, 9 * 4, *g) for g in grids
        ]
    else:
        # Of the 20 proposals an image, Mask R-CNN gives one tensor, Cascade one each.
        parts = {"mask-rcnn": [40], "cascade-mask-rcnn": [20, 20]}[case.name["method"]]
        outputs = [(81,), (80 * 4,), (80, 28, 28)]
        assert shapes == [(rois, *output) for output in outputs for rois in parts]
    assert all(t.isfinite().all() for t in run.tensors)
    for first, second in zip(run.tensors, run.tensors_again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("case", paths_of("retinanet"), indirect=True, ids=name_of)
def test_retinanet_pyramid_is_the_released_one(case):
    """Theirs takes four stages and leaves the first; ours does not make the first."""
    assert case.cfg.model.neck.start_level == 0
    dims = list(ARCHS[case.name["size"]]["embed_dims"])
    ours = MODELS.build(case.cfg.model.neck)
    theirs = MODELS.build(
        {**case.cfg.model.neck, "in_channels": dims, "start_level": 1}
    )
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.rand(1, dim, 16 >> i, 24 >> i) for i, dim in enumerate(dims)]
    for our, their in zip(ours(maps[1:]), theirs(maps), strict=True):
        assert torch.equal(our, their)


@dataclass
class Run:
    """What a shrunken model gave in each of its modes."""

    losses: dict
    without_gradient: list[str]
    bad_gradient: list[str]
    predictions: list
    tensors: list[Tensor]
    tensors_again: list[Tensor]
    input_size: tuple[int, int]


_RUNS: dict[str, Run] = {}


def _run(case: Case) -> Run:
    """Runs the three modes; sizes that shrink to the same model share the result."""
    cfg = _shrunken(case.cfg.model)
    key = str(cfg.to_dict())
    if key not in _RUNS:
        _RUNS[key] = _run_modes(cfg, case.name["dataset"])
    return _RUNS[key]


def _run_modes(cfg: ConfigDict, dataset: str) -> Run:
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()

    model.train()
    batch = model.data_preprocessor(_inputs(dataset), training=True)
    losses = model(**batch, mode="loss")
    model.parse_losses(losses)[0].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}

    model.eval()
    batch = model.data_preprocessor(_inputs(dataset), training=False)
    with torch.no_grad():
        tensors, tensors_again = (
            _tensors(model(**copy.deepcopy(batch), mode="tensor")) for _ in range(2)
        )
        predictions = model(**copy.deepcopy(batch), mode="predict")
    return Run(
        losses=losses,
        without_gradient=[n for n, g in grads.items() if g is None],
        bad_gradient=[
            n for n, g in grads.items() if g is not None and not g.isfinite().all()
        ],
        predictions=predictions,
        tensors=tensors,
        tensors_again=tensors_again,
        input_size=tuple(batch["inputs"].shape[-2:]),
    )


def _shrunken(model: ConfigDict) -> ConfigDict:
    """The same model, but narrow and with few boxes, and no score too low to show."""
    model = copy.deepcopy(model)
    _narrow(model)
    model.backbone.update(arch="test", init_cfg=None)
    dims = ARCHS["test"]["embed_dims"]
    outputs = [dims[i] for i in model.backbone.get("out_indices", range(4))]
    if "neck" in model:
        model.neck.in_channels = outputs
    else:
        model.decode_head.in_channels = outputs
    if "auxiliary_head" in model:
        model.auxiliary_head.in_channels = outputs[model.auxiliary_head.in_index]
    if "size" in model.data_preprocessor:
        model.data_preprocessor.size = CROP
    if "bbox_head" in model:
        model.test_cfg.score_thr = 0.0
    if "roi_head" in model:
        model.train_cfg.rpn_proposal.max_per_img = 50
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    return model


def _narrow(node) -> None:
    """Divides every width of neck and heads by 8."""
    if isinstance(node, list):
        for item in node:
            _narrow(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key.endswith("channels") and isinstance(value, int):
                node[key] = value // 8
            elif key.endswith("channels"):
                node[key] = [width // 8 for width in value]
            else:
                _narrow(value)


def _inputs(dataset: str) -> dict:
    """Two small images with annotations, sides not divisible by 32."""
    if dataset == "coco":
        shapes = [(3, 60, 90), (3, 64, 75)]
        return demo_mm_inputs(2, shapes, num_classes=80, with_mask=True)
    generator = torch.Generator().manual_seed(0)
    height, width = CROP
    samples = []
    for _ in range(2):
        labels = torch.randint(0, 150, (1, height, width), generator=generator)
        meta = dict(img_shape=(height, width), ori_shape=(height, width))
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = torch.randint(0, 256, (2, 3, height, width), generator=generator)
    return dict(inputs=list(images.to(torch.uint8)), data_samples=samples)


def _tensors(nested) -> list[Tensor]:
    """The tensors inside nested lists and tuples, in order."""
    if isinstance(nested, Tensor):
        return [nested]
    return [tensor for item in nested for tensor in _tensors(item)]

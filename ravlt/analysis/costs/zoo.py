"""Sizes and costs of the models, counted, beside the paper's where it has them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import yaml

from ravlt.analysis.markdown import format_table

from .count import Cost, costs_of, count_costs

_FLOPS = re.compile(r"FLOPs \(G, (\d+)x(\d+), without attention products\)")
_TITLES = (
    *("model", "size", "params (M)", "paper", "G, no attention", "paper", "off by"),
    "G, everything",
)
# What the paper rounds: whole millions; tenths of G on ImageNet, else whole G.
DENSE_TOLERANCE, IMAGENET_TOLERANCE = 0.01, 0.025


@dataclass
class Row:
    """A model: what its metafile says, from the paper or from here, and the count."""

    name: str
    size: tuple[int, int]
    stated_params: float
    stated_flops: float
    cost: Cost
    in_paper: bool = True

    @property
    def params(self) -> int:
        """Parameters in millions, rounded as in the paper."""
        return round(self.cost.params / 1e6)

    @property
    def deviation(self) -> float:
        """Of the multiply-adds without attention, relative to the metafile's."""
        return self.cost.macs_without_attention / 1e9 / self.stated_flops - 1

    @property
    def agrees(self) -> bool:
        """Whether parameters are the metafile's, and multiply-adds as good as."""
        bound = IMAGENET_TOLERANCE if self.size == (224, 224) else DENSE_TOLERANCE
        return self.params == self.stated_params and abs(self.deviation) <= bound


def zoo_rows(
    configs: str, arch_sizes: str = "tsbl", folder: str = "*"
) -> Iterator[Row]:
    """Count every model that has numbers in a metafile.

    Args:
        configs: Folder of the configs and their metafiles.
        arch_sizes: Letters of the sizes wanted.
        folder: Pattern of the methods' folders wanted.
    """
    for path in sorted(Path(configs).glob(f"{folder}/metafile.yml")):
        for model in yaml.safe_load(path.read_text())["Models"]:
            for key, flops in model["Metadata"].items():
                match = _FLOPS.fullmatch(key)
                size = re.search(r"ravlt[-_]([tsbl])(?=[-_.])", model["Name"])
                if not match or size[1] not in arch_sizes:
                    continue
                shape = (int(match[1]), int(match[2]))
                yield Row(
                    model["Name"],
                    shape,
                    model["Metadata"]["Parameters (M)"],
                    flops,
                    _cost(model, Path(configs), shape),
                    model["Metadata"]["Results Source"].startswith("Paper"),
                )


def zoo_table(rows: list[Row]) -> str:
    """Set rows in a Markdown table; cells of the paper are empty where it has none."""
    return format_table(_TITLES, map(_cells, rows))


def _cells(row: Row) -> tuple:
    paper = (row.stated_params, row.stated_flops, f"{row.deviation:+.1%}")
    params, flops, off = paper if row.in_paper else ("", "", "")
    return (
        row.name,
        f"{row.size[0]} x {row.size[1]}",
        f"{row.cost.params / 1e6:.3f}",
        params,
        f"{row.cost.macs_without_attention / 1e9:.2f}",
        flops,
        off,
        f"{row.cost.macs / 1e9:.2f}",
    )


def _cost(model: dict, configs: Path, size: tuple[int, int]) -> Cost:
    if "Config" in model:
        return costs_of(str(configs.parent / model["Config"]), size)["total"]
    with torch.device("meta"):  # a classifier, known to timm
        return count_costs(timm.create_model(model["Name"]), size)["total"]

"""Weights & Biases and MLflow, offline, by the lines of docs/own_data.md."""

import json
import os
import re
import sqlite3
from pathlib import Path

import pytest

from helpers.tool_runs import ROOT, read_scalars, train

pytestmark = pytest.mark.integration


def page_lines(backend: str) -> str:
    """Return the lines of the page that name a backend."""
    page = (ROOT / "docs/own_data.md").read_text()
    (line,) = re.findall(rf"^vis_backends = .*{backend}.*$", page, re.M)
    (use,) = re.findall(r"^visualizer = .*$", page, re.M)
    return f"{line}\n{use}"


def go_offline() -> None:
    os.environ["WANDB_MODE"] = "offline"


def run(cwd: Path, data: Path, backend: str) -> list[tuple]:
    """Train with a backend, and return (name, step, value) of the scalars logged."""
    options = ("--data-root", data)
    train(cwd, *options, child=page_lines(backend), prepare=go_offline).succeeded()
    return sorted(
        (name, line["step"], line[name])
        for line in read_scalars(cwd / "work")
        for name in ("loss", "mIoU")
        if name in line
    )


def test_mlflow(tmp_path, shapes):
    pytest.importorskip("mlflow", reason="pip install mlflow")
    expected = run(tmp_path, shapes, "MLflow")
    query = "select key, step, value from metrics where key in ('loss', 'mIoU')"
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = sorted(database.execute(query))
    assert len(expected) == 6
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected])


def test_wandb(tmp_path, shapes):
    pytest.importorskip("wandb", reason="pip install wandb")
    expected = run(tmp_path, shapes, "Wandb")
    (path,) = tmp_path.glob("work/*/vis_data/wandb/offline-run-*/run-*.wandb")
    written = path.read_bytes()  # protocol buffers, with each value as JSON
    assert len(expected) == 6
    for name, _, value in expected:
        assert name.encode() in written and json.dumps(value).encode() in written

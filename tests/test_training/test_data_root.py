"""Which data a command uses that continues a run and gives no --data-root."""

import argparse
from pathlib import Path

import pytest
from mmengine.config import Config

from ravlt.data.root import record_data_root, recorded_data_root
from ravlt.training import cli

TEXT = """
model = dict(type='A')
default_scope = 'mmdet'
data_root = 'own'
train_dataloader = dict(dataset=dict(type='B', data_root='own'))
"""


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "some.py"
    path.write_text(TEXT)
    return path


def run(config: Path, *line: str, checkpoint: str | None = None) -> Config:
    """Read the config as a run does, and write it as mmengine does."""
    parser = argparse.ArgumentParser()
    cli.add_run_arguments(parser)
    cfg = cli.read_run_config(parser.parse_args([str(config), *line]), checkpoint)
    work = Path(cfg.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    cfg.dump(work / config.name)
    return cfg


def root_of(cfg: Config) -> str:
    return cfg.train_dataloader.dataset.data_root


@pytest.fixture
def trained(config, tmp_path) -> str:
    """The folder of a run of this config, relative to where it was trained."""
    assert root_of(run(config, "--data-root", "given")) == "given"
    return str(tmp_path / "given")


def test_a_resumed_run_keeps_its_data(config, trained, capsys, monkeypatch):
    for _ in range(2):  # the resumed run records it again
        assert root_of(run(config, checkpoint="auto")) == trained
        assert capsys.readouterr().out == (
            f"--data-root {trained}, as recorded in './work_dirs/some'\n"
        )
    monkeypatch.setenv("RANK", "1")
    assert root_of(run(config, checkpoint="auto")) == trained
    assert capsys.readouterr().out == ""


def test_the_folder_of_a_checkpoint(config, trained):
    path = "work_dirs/some/epoch_1.pth"
    line = ("--work-dir", "elsewhere")
    assert root_of(run(config, *line, checkpoint=path)) == trained
    for foreign in ("https://host/epoch_1.pth", "foreign/epoch_1.pth"):
        assert root_of(run(config, "--work-dir", "new", checkpoint=foreign)) == "own"


def test_a_new_run_begins_with_the_config(config, trained, capsys):
    assert root_of(run(config)) == "own"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["--data-root", "other"], "other"),
        (["--cfg-options", "train_dataloader.dataset.data_root=other"], "other"),
        (["--cfg-options", "model.type=C"], None),
    ],
)
def test_the_command_line_comes_first(config, trained, line, expected):
    cfg = run(config, *line, checkpoint="auto")
    assert root_of(cfg) == (expected or trained)


def test_another_config_has_its_own_data(config, trained, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(TEXT)
    line = ("--work-dir", "work_dirs/some")
    assert root_of(run(other, *line, checkpoint="auto")) == "own"


def test_the_written_config_itself_may_be_edited(config, trained, tmp_path):
    path = tmp_path / "work_dirs/some/some.py"
    path.write_text(path.read_text().replace("data_root='given'", "data_root='new'"))
    cfg = run(path, "--work-dir", "work_dirs/some", checkpoint="auto")
    assert root_of(cfg) == "new"


@pytest.mark.parametrize(
    "text",
    ["import os; os.mkdir('owned')", "not python", "data_root_of_run = f()", "\0"],
)
def test_nothing_in_a_folder_is_executed(config, tmp_path, text):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "some.py").write_text(text)
    assert recorded_data_root(Config.fromfile(config), str(folder)) is None
    assert not (tmp_path / "owned").exists()


def test_an_address_is_recorded_as_it_is(config, tmp_path):
    cfg = Config.fromfile(config)
    record_data_root(cfg, "s3://bucket/coco")
    cfg.dump(tmp_path / "sub.py")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub.py").rename(tmp_path / "sub/some.py")
    assert recorded_data_root(cfg, str(tmp_path / "sub")) == "s3://bucket/coco"

import argparse
import sys
import warnings
from collections import OrderedDict

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from helpers.tool_runs import SEG
from ravlt.config import is_segmentation
from ravlt.errors import RAVLTError
from ravlt.training import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a program that raises; gives what it leaves the shell with."""
    # They change mmengine for the whole process.
    for name in ("use_safe_loading", "use_atomic_writes"):
        monkeypatch.setattr(cli, name, lambda: None)
    monkeypatch.setattr(cli, "find_problems", lambda: [])

    def run(main) -> object:
        with pytest.raises(SystemExit) as ended:
            cli.run_cli(main)
        return ended.value.code

    return run


def test_our_error_is_its_last_line(run):
    def main():
        raise RAVLTError("Caught RAVLTError in worker 0.\n  File x\nRAVLTError: a: b")

    assert run(main) == "error: a: b"


def test_interrupt_inside_a_bare_except_of_the_hosts(run):
    def main():
        try:
            raise KeyboardInterrupt
        except:  # noqa: E722 (so does mmengine's Config.pretty_text)
            raise SyntaxError("Failed to format the config file")  # noqa: B904

    assert run(main).startswith("interrupted: continue with --resume")


def test_warnings_of_pkg_resources_are_silenced(run):
    def main():
        warnings.warn("pkg_resources is deprecated as an API.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        sys.exit(0)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main)
    assert [str(warning.message) for warning in caught] == ["something else"]


def test_other_errors_keep_their_traceback(run):
    def main():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        cli.run_cli(main)


def test_what_is_explained_keeps_its_traceback_in_the_log(run, capsys, monkeypatch):
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())  # no earlier log

    def main():
        torch.stack([torch.zeros(1), torch.zeros(2)])

    assert run(main).startswith("error: The images or masks of one batch differ in ")
    log = capsys.readouterr().out
    assert "in main" in log and "stack expects each tensor to be equal size" in log


def test_problems_of_the_environment_come_first(run, monkeypatch):
    monkeypatch.setattr(cli, "find_problems", lambda: ["a is old.", "b is missing."])
    assert run(lambda: 1 / 0) == "error: a is old.\nerror: b is missing."


def arguments(*line: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_run_arguments(parser)
    return parser.parse_args(line)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("model = dict(type='A', depth=1)\ndefault_scope = 'mmdet'\n")
    return str(path)


def test_work_dir_comes_from_line_then_config_then_name(config, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    read = cli.read_run_config
    assert read(arguments(config)).work_dir == "./work_dirs/some"
    option = ["--cfg-options", "work_dir=theirs"]
    assert read(arguments(config, *option)).work_dir == "theirs"
    line = [config, "--work-dir", "mine", *option]
    assert read(arguments(*line)).work_dir == "mine"


@pytest.mark.parametrize(
    ("config", "stem"),
    [
        (str(SEG), SEG.stem),
        (
            "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
            "retinanet_r50_fpn_1x_coco",
        ),
    ],
    ids=["file", "host"],
)
def test_work_dir_is_named_after_the_config(config, stem):
    assert cli.read_run_config(arguments(config)).work_dir == f"./work_dirs/{stem}"


def test_options_and_launcher(config, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    line = [config, "--launcher", "slurm", "--local-rank", "1"]
    cfg = cli.read_run_config(arguments(*line, "--cfg-options", "model.depth=5"))
    assert cfg.launcher == "slurm" and cfg.model.depth == 5
    # The launcher's own word counts.
    assert cli.os.environ["LOCAL_RANK"] == "3"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", {"imports": ["ravlt"]}),
        ("custom_imports = dict(imports='a')", {"imports": ["a", "ravlt"]}),
        (
            "custom_imports = dict(imports=['a'], allow_failed_imports=True)",
            {"imports": ["a", "ravlt"], "allow_failed_imports": True},
        ),
        ("custom_imports = dict(imports=['ravlt'])", {"imports": ["ravlt"]}),
    ],
)
def test_the_config_left_behind_imports_us(tmp_path, given, expected, monkeypatch):
    monkeypatch.setattr(cli, "load_config", _parse_only)
    path = tmp_path / "some.py"
    path.write_text(f"model = dict(type='A')\ndefault_scope = 'mmdet'\n{given}\n")
    assert cli.read_run_config(arguments(str(path))).custom_imports == expected


def _parse_only(path: str) -> Config:
    return Config.fromfile(path, import_custom_modules=False)


def test_unknown_scope(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("model = dict(type='A')\ndefault_scope = 'mmpose'\n")
    with pytest.raises(RAVLTError) as refused:
        cli.read_run_config(arguments(str(path)))
    assert str(refused.value) == (
        "default_scope='mmpose' is neither 'mmdet' nor 'mmseg'; inherit the host's "
        "default_runtime.py."
    )


@pytest.mark.parametrize(("scope", "expected"), [("mmseg", True), ("mmdet", False)])
def test_is_segmentation(scope, expected):
    assert is_segmentation({"default_scope": scope}) is expected

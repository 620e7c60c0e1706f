"""Sharded checkpoints: whole or not there, nothing but tensors unpickled."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from helpers.hostile_checkpoints import Call
from helpers.tool_runs import Run
from ravlt.engine.resume import set_resume
from ravlt.engine.shards import consolidate, read_shards, write_shards
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.weights.checkpoint import read_checkpoint


def write(folder: Path, value: float = 1.0) -> None:
    tensors = {"model.a": torch.full((3,), value), "model.n": torch.tensor(2)}
    tensors["optimizer.a.step"] = torch.tensor(5.0)
    rest = dict(meta=dict(iter=4, seed=1), state_dict_metadata={"": dict(version=1)})
    write_shards(str(folder), tensors, rest)


def read(folder: Path) -> torch.Tensor:
    tensors = {"model.a": torch.zeros(3)}
    assert read_shards(str(folder), tensors)["meta"] == dict(iter=4, seed=1)
    return tensors["model.a"]


@pytest.fixture
def folder(tmp_path) -> Path:
    write(tmp_path / "iter_4.pth")
    return tmp_path / "iter_4.pth"


def test_reads_what_was_written(folder):
    assert read(folder).tolist() == [1.0] * 3
    plain = consolidate(str(folder))
    assert plain["state_dict"].keys() == {"a", "n"}
    assert plain["state_dict"]["n"] == 2 and plain["meta"]["iter"] == 4
    assert plain["state_dict"]._metadata == {"": dict(version=1)}


def test_written_anew_the_old_one_goes(folder):
    write(folder, 2.0)
    assert read(folder).tolist() == [2.0] * 3
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("place", ["dcp.save", "save_checkpoint"])
def test_kill_while_writing_anew_leaves_the_old_one(folder, monkeypatch, place):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"ravlt.engine.shards.{place}", die)
        with pytest.raises(KeyboardInterrupt):
            write(folder, 2.0)
    assert read(folder).tolist() == [1.0] * 3


def test_incomplete_one_is_refused(folder):
    (folder / "rest.pth").unlink()
    with pytest.raises(RAVLTError, match=r"iter_4\.pth' is no sharded checkpoint, or"):
        read(folder)


def test_resume_takes_the_newest_complete_one(tmp_path, folder):
    from mmengine.config import Config

    write(tmp_path / "iter_6.pth")
    (tmp_path / "iter_6.pth/rest.pth").unlink()
    cfg = Config(dict(work_dir=str(tmp_path)))
    set_resume(cfg, "auto")
    assert cfg.load_from == str(folder) and cfg.randomness.seed == 1


def test_other_models_are_refused(folder):
    for tensors in ({"model.b": torch.zeros(3)}, {"model.a": torch.zeros(4)}):
        with pytest.raises(RAVLTError, match="does not fit the model: 1 tensors are"):
            read_shards(str(folder), tensors)


def test_truncated_shard(folder):
    (path,) = folder.glob("*/*.distcp")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RAVLTError, match=r"iter_4\.pth', which is damaged \("):
        read(folder)


BOMB = Call(os.mkdir, "exploded")


def test_table_of_contents_runs_no_code(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (path,) = folder.glob("*/.metadata")
    path.write_bytes(pickle.dumps(BOMB))
    with pytest.raises(RAVLTError, match=r"damaged \(it names posix\.mkdir\)"):
        read(folder)
    assert not Path("exploded").exists()


def test_other_things_than_tensors_are_refused(folder, monkeypatch, tmp_path):
    """PyTorch would unpickle them."""
    monkeypatch.chdir(tmp_path)
    rest = dict(meta={}, state_dict_metadata={})
    write_shards(str(folder), {"model.a": BOMB}, rest)
    for use in (read, lambda folder: consolidate(str(folder))):
        with pytest.raises(RAVLTError, match=r"damaged \(it "):
            use(folder)
    assert not Path("exploded").exists()


def test_names_in_the_table_of_contents_are_strings(folder):
    (path,) = folder.glob("*/.metadata")
    table = pickle.loads(path.read_bytes())
    kinds = table.state_dict_metadata
    table.state_dict_metadata = {0: kinds.popitem()[1]} | kinds
    path.write_bytes(pickle.dumps(table))
    for use in (read, lambda folder: consolidate(str(folder))):
        with pytest.raises(RAVLTError, match=r"damaged \(it holds more than named"):
            use(folder)


def test_other_tools_say_what_to_do(folder):
    with pytest.raises(RAVLTError, match="convert it to a file with tools/model_conv"):
        read_checkpoint(folder)


@pytest.mark.integration
def test_consolidated_backbone_is_a_pretrained_one(tmp_path):
    """By the tool, and all the way into a plain RAVLT."""
    torch.manual_seed(0)
    model = RAVLT("test", attn_types="rala")
    weights = model.state_dict()
    tensors = {f"model.backbone.{key}": value for key, value in weights.items()}
    metadata = {f"backbone.{k}".strip("."): v for k, v in weights._metadata.items()}
    rest = dict(meta=dict(iter=1), state_dict_metadata=metadata)
    write_shards(str(tmp_path / "iter_1.pth"), tensors, rest)
    line = ["iter_1.pth", "plain.pth"]
    run = Run("model_converters/consolidate.py", line, tmp_path).succeeded()
    assert run.out == f"plain.pth: {len(weights)} tensors\n"
    init = dict(type="Pretrained", checkpoint=str(tmp_path / "plain.pth"))
    other = RAVLT("test", attn_types="rala", init_cfg=init)
    other.init_weights()
    for key, value in other.state_dict().items():
        assert torch.equal(value, weights[key])
    again = Run("model_converters/consolidate.py", line, tmp_path)
    assert again.error() == (
        "error: 'plain.pth' exists; name another file or remove it."
    )

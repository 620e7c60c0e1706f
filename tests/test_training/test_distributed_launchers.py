"""What the shell scripts start: recorded by what they would start."""

import json
import os
import subprocess
import sys

import pytest

from helpers.tool_runs import ROOT

pytestmark = pytest.mark.integration

TOOLS = ROOT / "tools"
SCRIPTS = ("dist_train.sh", "dist_test.sh", "slurm_train.sh")
SPACED = ["--cfg-options", "work dir=a b", "x='*'"]


@pytest.fixture
def record(tmp_path):
    """Runs a script where python and srun write down how they were called."""
    fake = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]))
print(os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE"))
"""
    for name in ("python", "srun"):
        (tmp_path / name).write_text(fake)
        (tmp_path / name).chmod(0o755)

    def run(script: str, *args: str, **env: str) -> tuple[list[str], str]:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | env
        line = ["bash", TOOLS / script, *args]
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        call, share = done.stdout.splitlines()
        return json.loads(call), share

    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax_and_usage(script):
    assert subprocess.run(["bash", "-n", TOOLS / script]).returncode == 0
    done = subprocess.run(["bash", TOOLS / script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: [") and script in done.stderr


def test_training_on_one_machine(record):
    call, share = record("dist_train.sh", "my config.py", "8", *SPACED)
    assert call == [
        *("python", "-m", "torch.distributed.run", "--nnodes=1", "--nproc_per_node=8"),
        *("--node_rank=0", "--master_addr=127.0.0.1", "--master_port=29500"),
        *(str(TOOLS / "train.py"), "my config.py", "--launcher", "pytorch", *SPACED),
    ]
    assert share == "None"


def test_training_on_several_machines(record):
    env = dict(NNODES="4", NODE_RANK="3", MASTER_ADDR="10.0.0.1", PORT="1234")
    call, _ = record("dist_train.sh", "c.py", "8", **env)
    assert call[3:8] == [
        *("--nnodes=4", "--nproc_per_node=8", "--node_rank=3"),
        *("--master_addr=10.0.0.1", "--master_port=1234"),
    ]


def test_training_that_restarts(record):
    env = dict(NNODES="2", MASTER_ADDR="10.0.0.1", PORT="1234", MAX_RESTARTS="3")
    call, share = record("dist_train.sh", "c.py", "8", "--resume", **env)
    assert call[3:9] == [
        *("--nnodes=2", "--nproc_per_node=8", "--max_restarts=3"),
        *("--rdzv_backend=c10d", "--rdzv_endpoint=10.0.0.1:1234", "--rdzv_id=1234"),
    ]
    assert share == "1"


def test_testing(record):
    call, _ = record("dist_test.sh", "my config.py", "w 1.pth", "2", *SPACED, PORT="7")
    assert "--nproc_per_node=2" in call and "--master_port=7" in call
    tail = [str(TOOLS / "test.py"), "my config.py", "w 1.pth", "--launcher", "pytorch"]
    assert call[-len(tail + SPACED) :] == tail + SPACED


@pytest.mark.parametrize(
    ("gpus", "per_node"), [("8", "8"), ("4", "4"), ("16", "8")], ids=lambda n: n
)
def test_slurm(record, gpus, per_node):
    line = ["my partition", "my job", "my config.py", "work dir", *SPACED]
    env = dict(GPUS=gpus, SRUN_ARGS="--time=1:00:00 --exclusive")
    call, _ = record("slurm_train.sh", *line, **env)
    assert call == [
        *("srun", "-p", "my partition", "--job-name=my job", f"--gres=gpu:{per_node}"),
        *(f"--ntasks={gpus}", f"--ntasks-per-node={per_node}", "--cpus-per-task=5"),
        *("--kill-on-bad-exit=1", "--time=1:00:00", "--exclusive", "python", "-u"),
        *(str(TOOLS / "train.py"), "my config.py", "--work-dir=work dir"),
        *("--launcher", "slurm", *SPACED),
    ]

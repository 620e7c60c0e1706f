"""Shared code of the command lines: arguments in the hosts' style, one-line errors."""

import argparse
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

import torch.distributed as dist
from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from ravlt.config import HOSTS, load_config
from ravlt.data.root import record_data_root, recorded_data_root, set_data_root
from ravlt.env.problems import find_problems, find_warnings
from ravlt.errors import RAVLTError
from ravlt.storage import explain_refusal, use_atomic_writes
from ravlt.training.explain import explain
from ravlt.training.guards.signals import EXIT_STATUS, Terminated
from ravlt.training.keys import explain_argument, find_typos
from ravlt.weights.checkpoint import use_safe_loading


def run_cli(
    main: Callable[[], None],
    remedy: str = "continue with --resume and the same --work-dir, from the last "
    "checkpoint",
) -> None:
    """Run a program and report errors that a user can fix in one line.

    The exit status is then 1. A run that SIGTERM ended also reports this in one line,
    and its exit status is 143.

    Args:
        main: Function that takes no arguments.
        remedy: Advice printed after Ctrl-C.
    """
    problems = find_problems()
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))
    if _is_first_process():  # the warnings of all processes are the same
        for warning in find_warnings():
            print(f"warning: {warning}", file=sys.stderr)
    # mmengine imports pkg_resources, and setuptools warns of that from 80.9 on.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
    use_safe_loading()
    use_atomic_writes()
    try:
        main()
        _leave_group()
    except Terminated as stop:
        _leave_group()
        print(stop, file=sys.stderr)
        sys.exit(EXIT_STATUS)
    except RAVLTError as error:
        # A data loader's worker puts a traceback before the message; use its last line.
        line = str(error).strip().splitlines()[-1]
        sys.exit(f"error: {line.rpartition('RAVLTError: ')[2]}")
    except BaseException as error:
        refusal = explain_refusal(error) or explain_argument(error)
        if refusal:
            sys.exit(f"error: {refusal}")
        explanation = explain(error)
        if explanation:
            # A bug in this package may raise the same error: log the traceback, too.
            trace = "".join(traceback.format_exception(error))
            print_log(trace, logger="current", level=logging.ERROR)
            sys.exit(f"error: {explanation}")
        if not _is_interrupt(error):
            raise
        sys.exit(f"interrupted: {remedy}.")


def _is_first_process() -> bool:
    """Return whether this is rank 0, as torchrun, Slurm or MPI number the processes."""
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return int(next((os.environ[n] for n in names if n in os.environ), 0)) == 0


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a config and for changes of its keys.

    Args:
        parser: Parser to extend.
    """
    parser.add_argument("config", help="config file, or mmdet::... / mmseg::...")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override keys of the config, e.g. train_dataloader.batch_size=4",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share.

    Args:
        parser: Parser to extend.
    """
    add_config_arguments(parser)
    parser.add_argument("--work-dir", help="where logs and checkpoints go")
    parser.add_argument(
        "--data-root", help="folder of the data set, in place of the config's"
    )
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none"
    )
    # torchrun and torch.distributed.launch spell it differently.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def use_data_root(
    cfg: Config, args: argparse.Namespace, folder: str | None = None
) -> None:
    """Point a config to the data of the command line, or of an earlier run.

    Args:
        cfg: A config that was read from a file, changed in place.
        args: Parsed arguments. If ``data_root`` is None and no option sets one, the
            folder that the earlier run recorded is used.
        folder: Work directory of the earlier run; None uses that of the config.
    """
    root, options = args.data_root, getattr(args, "cfg_options", None) or {}
    if root is None and not any(key.endswith("data_root") for key in options):
        folder = _work_dir(cfg) if folder is None else folder
        root = recorded_data_root(cfg, folder)
        if root and _is_first_process():
            print(f"--data-root {root}, as recorded in '{folder}'")
    if root is None:
        return
    set_data_root(cfg, root)
    record_data_root(cfg, root)


def read_run_config(args: argparse.Namespace, checkpoint: str | None = None) -> Config:
    """Read the config that the shared arguments describe.

    Args:
        args: Parsed arguments of :func:`add_run_arguments`.
        checkpoint: Checkpoint of an earlier run, whose data this run uses without
            ``--data-root``; ``'auto'`` for one in the work directory, None for a new
            run.

    Returns:
        The config, with ``launcher`` and ``work_dir`` set (command line over config
        over file name).
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args.config)
    options = args.cfg_options or {}
    if _is_first_process():
        for warning in find_typos(cfg, options):
            print(f"warning: {warning}", file=sys.stderr)
    cfg.merge_from_dict(options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or _work_dir(cfg)
    if args.data_root or checkpoint:
        auto = checkpoint == "auto"
        folder = cfg.work_dir if auto else os.path.dirname(checkpoint or "")
        use_data_root(cfg, args, folder)
    _check_scope(cfg)
    _import_ravlt(cfg)
    return cfg


def _work_dir(cfg: Config) -> str:
    stem = os.path.splitext(os.path.basename(cfg.filename))[0]
    return cfg.get("work_dir") or f"./work_dirs/{stem}"


def _leave_group() -> None:
    # mmengine leaves the group open, and a process that ends while the group's threads
    # run may abort. Collect models that hold the group first: if one is freed after the
    # group, it may wait for a thread that waits for Python's lock.
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error, even if a bare except replaced it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _check_scope(cfg: Config) -> None:
    if cfg.get("default_scope") not in HOSTS:
        raise RAVLTError(
            f"default_scope={cfg.get('default_scope')!r} is neither 'mmdet' nor "
            f"'mmseg'; inherit the host's default_runtime.py."
        )


def _import_ravlt(cfg: Config) -> None:
    """Import ravlt in the config of a run, so that the hosts' own tools can use it."""
    custom = cfg.get("custom_imports") or {}
    imports = custom.get("imports") or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if "ravlt" not in imports:
        cfg.custom_imports = {**custom, "imports": [*imports, "ravlt"]}

"""Let the hosts' tools read the checkpoints that mmengine writes."""

from mmengine.runner.checkpoint import CheckpointLoader, load_from_local


def _load_from_local(filename: str, map_location) -> dict:
    # Imported here, so that `import ravlt` does not load the code that reads weights.
    from ravlt.weights.untrusted import allowed_globals

    with allowed_globals():
        return load_from_local(filename, map_location)


def read_own_checkpoints() -> None:
    """Let mmengine read local files that contain its history buffers.

    PyTorch 2.6 and later refuse unknown types by default, and mmengine 0.10.7 does not
    allow the types that it writes, so the hosts' tools can neither test nor resume. All
    other types are loaded or refused as before. If another package has registered a
    loader for local files, that one stays.
    """
    if CheckpointLoader._schemes[""] is load_from_local:
        CheckpointLoader.register_scheme("", _load_from_local, force=True)

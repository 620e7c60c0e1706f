"""mmengine's own checkpoints, read by the hosts' tools."""

from mmengine.runner.checkpoint import CheckpointLoader, load_from_local


def _load_from_local(filename: str, map_location) -> dict:
    # Imported here, so that `import ravlt` does not load the code that reads weights.
    from ravlt.weights.untrusted import allowed_globals

    with allowed_globals():
        return load_from_local(filename, map_location)


def read_own_checkpoints() -> None:
    """Let mmengine read local files that contain its history buffers.

    PyTorch 2.6 and later refuse unknown types by default, and mmengine 0.10.7 does not
    declare the ones that it writes: the hosts' tools could neither test nor resume.
    Everything else is loaded, or refused, as before. A loader that somebody else has
    registered for local files stays.
    """
    if CheckpointLoader._schemes[""] is load_from_local:
        CheckpointLoader.register_scheme("", _load_from_local, force=True)

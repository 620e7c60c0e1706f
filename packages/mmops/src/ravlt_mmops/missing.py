"""Stand-ins for the operators that this package does not have."""

import sys


def missing_operator(name: str):
    """Return a function that raises when it is called.

    Args:
        name: An operator's name in ``mmcv._ext``.
    """

    def raise_missing(*args, **kwargs):
        caller = sys._getframe(1).f_globals.get("__name__", "the caller")
        raise NotImplementedError(
            f"{caller} needs mmcv's operator '{name}', which ravlt-mmops does not "
            f"have: run pip uninstall mmcv-lite ravlt-mmops, then, with torch<2.14, "
            f"setuptools<82 and a C++ compiler, MMCV_WITH_OPS=1 pip install "
            f"--no-build-isolation --no-binary mmcv mmcv==2.1.0."
        )

    return raise_missing

"""The module that mmcv-lite lacks: the functions that ``mmcv.ops`` calls.

Python prefers a compiled ``_ext.*.so`` in this folder, so a compiled mmcv wins.
"""

from ravlt_mmops.missing import missing_operator


def __getattr__(name: str):
    # mmcv asks for every operator's name at import and calls few of them.
    if name.startswith("__"):
        raise AttributeError(name)
    return missing_operator(name)

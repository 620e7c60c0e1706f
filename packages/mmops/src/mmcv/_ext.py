"""The module that mmcv-lite lacks: the functions that ``mmcv.ops`` calls.

Python prefers a compiled ``_ext.*.so`` in this folder, so a compiled mmcv wins.
"""

from ravlt_mmops.border_align import border_align_backward as border_align_backward
from ravlt_mmops.border_align import border_align_forward as border_align_forward
from ravlt_mmops.deform_roi_pool import (
    deform_roi_pool_backward as deform_roi_pool_backward,
)
from ravlt_mmops.deform_roi_pool import (
    deform_roi_pool_forward as deform_roi_pool_forward,
)
from ravlt_mmops.missing import missing_operator
from ravlt_mmops.nms import bbox_overlaps as bbox_overlaps
from ravlt_mmops.nms import nms as nms
from ravlt_mmops.nms import nms_match as nms_match
from ravlt_mmops.nms import softnms as softnms
from ravlt_mmops.prroi_pool import prroi_pool_backward as prroi_pool_backward
from ravlt_mmops.prroi_pool import prroi_pool_coor_backward as prroi_pool_coor_backward
from ravlt_mmops.prroi_pool import prroi_pool_forward as prroi_pool_forward
from ravlt_mmops.roi_align import roi_align_backward as roi_align_backward
from ravlt_mmops.roi_align import roi_align_forward as roi_align_forward
from ravlt_mmops.roi_pool import roi_pool_backward as roi_pool_backward
from ravlt_mmops.roi_pool import roi_pool_forward as roi_pool_forward


def __getattr__(name: str):
    # mmcv asks for every operator's name at import and calls few of them.
    if name.startswith("__"):
        raise AttributeError(name)
    return missing_operator(name)

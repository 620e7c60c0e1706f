"""The module that mmcv-lite lacks: the functions that ``mmcv.ops`` calls.

Python prefers a compiled ``_ext.*.so`` in this folder, so a compiled mmcv wins.
"""

# ruff: noqa: F401 (the imported names are what mmcv looks up here)

from ravlt_mmops.border_align import border_align_backward, border_align_forward
from ravlt_mmops.carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from ravlt_mmops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from ravlt_mmops.deform_roi_pool import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
)
from ravlt_mmops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from ravlt_mmops.info import get_compiler_version, get_compiling_cuda_version
from ravlt_mmops.masked_conv import masked_col2im_forward, masked_im2col_forward
from ravlt_mmops.missing import missing_operator
from ravlt_mmops.ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from ravlt_mmops.nms import bbox_overlaps, nms, nms_match, softnms
from ravlt_mmops.prroi_pool import (
    prroi_pool_backward,
    prroi_pool_coor_backward,
    prroi_pool_forward,
)
from ravlt_mmops.psamask import psamask_backward, psamask_forward
from ravlt_mmops.roi_align import roi_align_backward, roi_align_forward
from ravlt_mmops.roi_pool import roi_pool_backward, roi_pool_forward
from ravlt_mmops.sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)


def __getattr__(name: str):
    # mmcv asks for every operator's name at import and calls few of them.
    if name.startswith("__"):
        raise AttributeError(name)
    return missing_operator(name)

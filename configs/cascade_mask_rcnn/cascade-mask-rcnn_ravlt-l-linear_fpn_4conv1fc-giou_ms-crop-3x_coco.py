_base_ = "./cascade-mask-rcnn_ravlt-l_fpn_4conv1fc-giou_ms-crop-3x_coco.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

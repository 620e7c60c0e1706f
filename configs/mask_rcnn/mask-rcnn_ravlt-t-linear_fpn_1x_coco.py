_base_ = "./mask-rcnn_ravlt-t_fpn_1x_coco.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

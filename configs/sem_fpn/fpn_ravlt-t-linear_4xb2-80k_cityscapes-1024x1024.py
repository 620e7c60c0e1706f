_base_ = "./fpn_ravlt-t_4xb2-80k_cityscapes-1024x1024.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

_base_ = "./rtmdet_l_ravlt-t_4xb32-100e_coco.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

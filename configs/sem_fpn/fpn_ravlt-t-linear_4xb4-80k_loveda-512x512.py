_base_ = "./fpn_ravlt-t_4xb4-80k_loveda-512x512.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

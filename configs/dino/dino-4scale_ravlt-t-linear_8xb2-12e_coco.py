_base_ = "./dino-4scale_ravlt-t_8xb2-12e_coco.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

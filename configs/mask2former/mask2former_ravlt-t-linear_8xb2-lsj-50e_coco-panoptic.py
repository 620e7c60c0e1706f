_base_ = "./mask2former_ravlt-t_8xb2-lsj-50e_coco-panoptic.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

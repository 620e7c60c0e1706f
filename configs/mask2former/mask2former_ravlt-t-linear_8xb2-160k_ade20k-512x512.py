_base_ = "./mask2former_ravlt-t_8xb2-160k_ade20k-512x512.py"

# The published weights have softmax in stages 3 and 4: a start, not an equal.
model = dict(backbone=dict(attn_types="rala"))

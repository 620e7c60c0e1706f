# Norms, biases and layer scales do not decay. A deviation: the paper's runs decay biases
# and layer scales, those of RetinaNet also norms, those of Semantic FPN everything.
# Decay pulls layer scales, and with them whole residual branches, towards zero.
no_decay = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    custom_keys=dict(gamma_1=dict(decay_mult=0.0), gamma_2=dict(decay_mult=0.0)),
)

# The backbone learns at a tenth of the rate; its norms and layer scales do not decay.
# Of the names that fit a parameter mmengine takes the longest, and of equally long ones
# the first in the alphabet: ".gamma_1" goes before "backbone".
slow_backbone = dict(backbone=dict(lr_mult=0.1)) | {
    name: dict(lr_mult=0.1, decay_mult=0.0)
    for name in (
        ".gamma_1",
        ".gamma_2",
        ".norm1.norm",
        ".norm2.norm",
        "downsample.norm",
        "extra_norms",
        "patch_embed.proj.1",
        "patch_embed.proj.4",
        "patch_embed.proj.7",
    )
}

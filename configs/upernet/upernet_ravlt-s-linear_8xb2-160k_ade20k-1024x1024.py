# Crops of twice the usual side, which only linear attention makes practical.
_base_ = "./upernet_ravlt-s-linear_8xb2-160k_ade20k-512x512.py"

crop_size = (1024, 1024)
scale = (4096, 1024)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
# The host's factors are of images as they are, whose short side is about 512.
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type="Resize", scale_factor=2 * ratio, keep_ratio=True)
    for ratio in _base_.img_ratios
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

model = dict(data_preprocessor=dict(size=crop_size))

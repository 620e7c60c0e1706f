_base_ = [
    "../_base_/models/upernet_ravlt-t.py",
    "mmseg::_base_/datasets/cityscapes_1024x1024.py",
    "../_base_/schedules/upernet_160k.py",
    "mmseg::_base_/default_runtime.py",
]

model = dict(data_preprocessor=dict(size=_base_.crop_size))

auto_scale_lr = dict(enable=False, base_batch_size=8)

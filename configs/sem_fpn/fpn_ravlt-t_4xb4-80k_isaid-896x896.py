_base_ = [
    "../_base_/models/fpn_ravlt-t.py",
    "mmseg::_base_/datasets/isaid.py",
    "../_base_/schedules/fpn_80k.py",
    "mmseg::_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=16),
)

auto_scale_lr = dict(enable=False, base_batch_size=16)

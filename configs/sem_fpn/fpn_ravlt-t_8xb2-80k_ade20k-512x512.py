_base_ = [
    "../_base_/models/fpn_ravlt-t.py",
    "../_base_/datasets/ade20k_8xb2.py",
    "../_base_/schedules/fpn_80k.py",
    "mmseg::_base_/default_runtime.py",
]

model = dict(data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=150))

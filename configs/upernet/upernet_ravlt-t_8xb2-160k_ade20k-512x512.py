_base_ = [
    "../_base_/models/upernet_ravlt-t.py",
    "../_base_/datasets/ade20k_8xb2.py",
    "../_base_/schedules/upernet_160k.py",
    "mmseg::_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)

_base_ = ["mmseg::_base_/models/upernet_r50.py", "./ravlt_t.py"]

custom_imports = dict(imports=["ravlt"])

model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **_base_.ravlt_t),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)

# MMSegmentation's ADE20K has 4 images a GPU and records no total batch size; RAVLT's
# learning rates are for 8 GPUs x 2 images.
_base_ = "mmseg::_base_/datasets/ade20k.py"

train_dataloader = dict(batch_size=2)
auto_scale_lr = dict(enable=False, base_batch_size=16)

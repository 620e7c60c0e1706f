# Twice the usual resolution, which only linear attention makes practical.
_base_ = "./mask-rcnn_ravlt-t-linear_fpn_1x_coco.py"

scale = (2666, 1600)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

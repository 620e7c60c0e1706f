# RAVLT-T with its ImageNet-1k weights, to stand in place of another backbone.
ravlt_t = dict(
    type="RAVLT",
    arch="t",
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    init_cfg=dict(
        type="Pretrained",
        checkpoint="https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_T.pth",
    ),
)

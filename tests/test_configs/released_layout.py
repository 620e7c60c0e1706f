"""Names and shapes inside the paper's files, written down apart from our models.

The backbone's are the released code's; necks and heads are as MMDetection 2 and
MMSegmentation 0 named them.
"""

Shapes = dict[str, tuple[int, ...]]

SIZES = {
    "t": ((64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8)),
    "s": ((64, 128, 320, 512), (3, 5, 9, 3), (1, 2, 5, 8)),
    "b": ((96, 192, 384, 512), (4, 6, 12, 6), (1, 2, 6, 8)),
    "l": ((96, 192, 448, 640), (4, 7, 19, 8), (1, 2, 7, 10)),
}


def released_shapes(method: str, size: str) -> Shapes:
    """What the file of a row holds; methods go by the names of our configs."""
    dims = SIZES[size][0]
    return _inside("backbone", backbone(size)) | dict(
        retinanet=_retinanet, fpn=_semantic_fpn, upernet=_upernet
    ).get(method, lambda dims: _mask_rcnn(dims, "cascade" in method))(dims)


def backbone(size: str) -> Shapes:
    dims, depths, heads = SIZES[size]
    half = dims[0] // 2
    shapes = {}
    stem = [(half, 3), (half, half), (half, half), (dims[0], half)]
    for i, (out, into) in enumerate(stem):
        shapes |= _conv(f"patch_embed.proj.{3 * i}", out, into, 3)
        shapes |= _batch_norm(f"patch_embed.proj.{3 * i + 1}", out)
    for i, (c, depth, h) in enumerate(zip(dims, depths, heads, strict=True)):
        shapes[f"layers.{i}.RoPE.angle"] = (c // h // 2,)
        for b in range(depth):
            shapes |= _inside(f"layers.{i}.blocks.{b}", _block(c))
        if i < 3:
            shapes |= _conv(f"layers.{i}.downsample.reduction", dims[i + 1], c, 3)
            shapes |= _batch_norm(f"layers.{i}.downsample.norm", dims[i + 1])
        shapes |= _affine(f"extra_norms.{i}.norm", c)
    return shapes


def _block(c: int) -> Shapes:
    hidden = int(3.5 * c)
    return (
        {"gamma_1": (1, c, 1, 1), "gamma_2": (1, c, 1, 1)}
        | _affine("norm1.norm", c)
        | _affine("norm2.norm", c)
        | _conv("attn.qkvo", 4 * c, c, 1)
        | _conv("attn.lepe", c, 1, 5)
        | _conv("attn.proj", c, c, 1)
        | _conv("ffn.fc1", hidden, c, 1)
        | _conv("ffn.dwconv", hidden, 1, 3)
        | _conv("ffn.fc2", c, hidden, 1)
        | _conv("pos", c, 1, 3)
    )


def _fpn(dims: tuple[int, ...]) -> Shapes:
    shapes = {}
    for i, dim in enumerate(dims):
        shapes |= _conv(f"neck.lateral_convs.{i}.conv", 256, dim, 1)
        shapes |= _conv(f"neck.fpn_convs.{i}.conv", 256, 256, 3)
    return shapes


def _retinanet(dims: tuple[int, ...]) -> Shapes:
    shapes = _fpn(dims[1:])
    shapes |= _conv("neck.fpn_convs.3.conv", 256, dims[3], 3)
    shapes |= _conv("neck.fpn_convs.4.conv", 256, 256, 3)
    for i in range(4):
        for branch in ("cls", "reg"):
            shapes |= _conv(f"bbox_head.{branch}_convs.{i}.conv", 256, 256, 3)
    shapes |= _conv("bbox_head.retina_cls", 9 * 80, 256, 3)
    return shapes | _conv("bbox_head.retina_reg", 9 * 4, 256, 3)


def _mask_rcnn(dims: tuple[int, ...], cascade: bool) -> Shapes:
    shapes = _fpn(dims) | _conv("rpn_head.rpn_conv", 256, 256, 3)
    shapes |= _conv("rpn_head.rpn_cls", 3, 256, 1)
    shapes |= _conv("rpn_head.rpn_reg", 3 * 4, 256, 1)
    box = _linear("fc_cls", 81, 1024) | _linear("fc_reg", 80 * 4, 1024)
    box |= _linear("shared_fcs.0", 1024, 256 * 7 * 7)
    if cascade:
        for i in range(4):
            box |= _conv_norm(f"shared_convs.{i}", 256, 256, 3)
    else:
        box |= _linear("shared_fcs.1", 1024, 1024)
    mask = _conv("upsample", 256, 256, 2) | _conv("conv_logits", 80, 256, 1)
    for i in range(4):
        mask |= _conv(f"convs.{i}.conv", 256, 256, 3)
    for stage in (".0", ".1", ".2") if cascade else ("",):
        shapes |= _inside(f"roi_head.bbox_head{stage}", box)
        shapes |= _inside(f"roi_head.mask_head{stage}", mask)
    return shapes


def _semantic_fpn(dims: tuple[int, ...]) -> Shapes:
    shapes = _fpn(dims) | _conv("decode_head.conv_seg", 150, 128, 1)
    for level, convs in enumerate((1, 1, 2, 3)):
        for i in range(convs):  # enlarging steps, without weights, are in between
            name = f"decode_head.scale_heads.{level}.{2 * i}"
            shapes |= _conv_norm(name, 128, 128 if i else 256, 3)
    return shapes


def _upernet(dims: tuple[int, ...]) -> Shapes:
    head = _conv("conv_seg", 150, 512, 1)
    for i in range(4):
        head |= _conv_norm(f"psp_modules.{i}.1", 512, dims[3], 1)
    head |= _conv_norm("bottleneck", 512, dims[3] + 4 * 512, 3)
    for i in range(3):
        head |= _conv_norm(f"lateral_convs.{i}", 512, dims[i], 1)
        head |= _conv_norm(f"fpn_convs.{i}", 512, 512, 3)
    head |= _conv_norm("fpn_bottleneck", 512, 4 * 512, 3)
    auxiliary = _conv_norm("convs.0", 256, dims[2], 3) | _conv("conv_seg", 150, 256, 1)
    return _inside("decode_head", head) | _inside("auxiliary_head", auxiliary)


def _inside(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _conv(name: str, out: int, into: int, side: int) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _affine(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _batch_norm(name: str, dim: int) -> Shapes:
    running = {f"{name}.running_{what}": (dim,) for what in ("mean", "var")}
    return _affine(name, dim) | running | {f"{name}.num_batches_tracked": ()}


def _conv_norm(name: str, out: int, into: int, side: int) -> Shapes:
    weight = {f"{name}.conv.weight": (out, into, side, side)}
    return weight | _batch_norm(f"{name}.bn", out)

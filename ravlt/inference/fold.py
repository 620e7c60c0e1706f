"""Exact folds: fewer passes over the tokens at inference, with the same results."""

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.errors import RAVLTError
from ravlt.models.attention import (
    FocusedAttention,
    GLAAttention,
    PlainAttention,
    VicinityAttention,
)
from ravlt.models.classifier import RAVLTClassifier
from ravlt.models.layers import ChannelLayerNorm, PointwiseConv, batch_norm_affine
from ravlt.models.ravlt import Block, ConvFFN, GatedAttention, RAVLTEncoder
from ravlt.ops.precision import at_least_float32

# Layers that end with the product ``proj``, into which the layer scale can be folded.
_END_WITH_PROJ = (
    GatedAttention,
    PlainAttention,
    FocusedAttention,
    VicinityAttention,
    GLAAttention,
)


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Fold every RAVLT of a model for inference, in place.

    Batch norms are folded into convolutions, scale and shift of layer norms into the
    next product, layer scales into the last one, and in attention what a mechanism can
    fold. Folded weights are computed in float32 or wider and rounded once. The state
    dict afterwards lacks the batch norms, and holds ones and zeros for what was folded.
    Calling this again changes nothing; training afterwards is an error.

    Args:
        model: A detector, a segmentor, or anything else that holds a RAVLT, such as
            the ``model`` of an mmengine inferencer.

    Returns:
        The model itself, in eval mode.

    Raises:
        RAVLTError: If there is no RAVLT in it.

    Example:
        >>> inferencer = DetInferencer('my_config.py', 'weights.pth')
        >>> switch_to_deploy(inferencer.model)
    """
    encoders = [part for part in model.modules() if isinstance(part, RAVLTEncoder)]
    if not encoders:
        raise RAVLTError(
            f"{type(model).__name__} holds no RAVLT to fold; leave --deploy or "
            f"switch_to_deploy() away."
        )
    model.eval()
    for encoder in encoders:
        encoder.switch_to_deploy()
    return model


@torch.no_grad()
def fold(encoder: RAVLTEncoder) -> RAVLTEncoder:
    """Fold one network; see :func:`switch_to_deploy`."""
    encoder.eval()
    if encoder.deployed:
        return encoder
    stem = encoder.patch_embed.proj
    for i, layer in enumerate(stem):
        if isinstance(layer, _BatchNorm):
            stem[i] = _fold_batch_norm(stem[i - 1], layer)
    for stage in encoder.layers:
        for block in stage.blocks:
            _fold_block(block)
        step = stage.downsample
        if step is not None:
            step.norm = _fold_batch_norm(step.reduction, step.norm)
    # Pruned classifiers have no norm there.
    if isinstance(encoder, RAVLTClassifier) and isinstance(encoder.norm, _BatchNorm):
        encoder.norm = _fold_batch_norm(encoder.proj, encoder.norm)
    encoder.deployed = True
    return encoder


def _fold_block(block: Block) -> None:
    if type(block) is not Block:  # its forward pass may use them otherwise
        return
    fold_attention(block.norm1, block.attn)
    if type(block.attn) in _END_WITH_PROJ:
        _fold_scale(block.gamma_1, block.attn.proj)
    if type(block.ffn) is ConvFFN:
        _fold_layer_norm(block.norm2, block.ffn.fc1)
        _fold_scale(block.gamma_2, block.ffn.fc2)


@torch.no_grad()
def fold_attention(norm: nn.Module, attn: nn.Module) -> None:
    """Fold the norm before an attention layer, and what the layer itself can fold."""
    # A core that reads the layer's input needs scale and shift where they are.
    if type(attn) is GatedAttention and not attn.core.needs_input:
        _fold_layer_norm(norm, attn.qkvo)
    for part in list(attn.modules()):
        if hasattr(part, "switch_to_deploy"):
            part.switch_to_deploy()


def _fold_layer_norm(layer: nn.Module, conv: nn.Module) -> None:
    """Fold scale s and shift t of a norm into the product after it, W (s x + t) + b.

    They stay as ones and zeros: without them PyTorch takes a slower kernel on CPUs. A
    norm or product of another type, such as an adapter, is left alone.
    """
    if type(layer) is not ChannelLayerNorm or type(conv) is not PointwiseConv:
        return
    norm = layer.norm
    weight = at_least_float32(conv.weight).flatten(1)
    conv.bias.copy_(conv.bias + weight @ at_least_float32(norm.bias))
    conv.weight.copy_((weight * norm.weight).view_as(conv.weight))
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)


def _fold_scale(scale: Tensor, conv: nn.Module) -> None:
    """Fold a scale of each output channel into a product; leave ones in its place."""
    if type(conv) is not PointwiseConv:
        return
    factor = at_least_float32(scale).flatten()
    conv.weight.copy_(conv.weight * factor.view(-1, 1, 1, 1))
    if conv.bias is not None:
        conv.bias.copy_(conv.bias * factor)
    nn.init.ones_(scale)


def _fold_batch_norm(conv: nn.Conv2d, norm: _BatchNorm) -> nn.Identity:
    """Fold a batch norm into the convolution before it, by its running statistics.

    Returns:
        The module for the norm's place.
    """
    scale, shift = batch_norm_affine(norm)
    conv.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
    conv.bias.copy_(conv.bias * scale + shift)
    return nn.Identity().eval()


@HOOKS.register_module()
class DeployHook(Hook):
    """A hook that folds RAVLT before a test: ``dict(type='DeployHook')``.

    The weights are loaded by then. Training with this hook is not affected.
    """

    def before_test(self, runner) -> None:
        """Fold the model of the runner, and the average that an EMAHook keeps of it.

        That hook exchanges their parameters by position before the first image.
        """
        switch_to_deploy(runner.model)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                switch_to_deploy(hook.ema_model)

"""Times of operators, of their plain and compiled forms, and of softmax attention."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ravlt.analysis.speed.gpu import floors
from ravlt.errors import RAVLTError
from ravlt.models.attention.base import split_heads
from ravlt.ops import plain_forms
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.gpu import runs_as_kernel
from ravlt.ops.rala import rala
from ravlt.ops.rotary import rotate_queries_and_keys

from .journal import Case
from .timing import copy_rate, kernel_times, time_form

Size = tuple[int, int]
DTYPE = torch.bfloat16
FLASH, CUDNN = "SDPA (flash)", "SDPA (cuDNN)"
_BACKENDS = {FLASH: SDPBackend.FLASH_ATTENTION, CUDNN: SDPBackend.CUDNN_ATTENTION}
# Forms of each implementation. Compiled forms take long, so op_cases() adds them last.
_FORMS = {
    "kernels": ("eager", "graph"),
    FLASH: ("eager", "graph"),
    CUDNN: ("eager",),
    "plain": ("eager",),
}
_PASSES = ("forward", "forward + backward")
_CONVOLUTION_PASSES = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True)
class Sizes:
    """Sizes at which operators are measured.

    Args:
        copied: Bytes of the copy that measures the bandwidth.
        grids: Height and width in tokens.
        heads: Pairs of batch size and number of heads, for head dimension 64.
        wide_heads: Pairs for head dimension 96.
        linear: Grids for plain linear attention.
        compiled: Grids for the compiled plain form.
        profiled: Grids at which each kernel is timed.
        maps: Batch, height, width, channels and kernel size of depthwise convolutions.
        max_elements: Limit of batch x heads x tokens x head dimension.
        max_products: Limit of softmax attention's multiply-adds in the forward pass.
    """

    copied: int
    grids: tuple[Size, ...]
    heads: tuple[tuple[int, int], ...]
    wide_heads: tuple[tuple[int, int], ...]
    linear: tuple[Size, ...]
    compiled: tuple[Size, ...]
    profiled: tuple[Size, ...]
    maps: tuple[tuple[int, int, int, int, int], ...]
    max_elements: int
    max_products: float


# 200 x 336 are the tokens of 800 x 1344 pixels. One head with 64 channels is stage 1 of
# RAVLT-T; 224 channels are in the middle of its feed-forward network.
FULL = Sizes(
    copied=1 << 30,
    grids=(
        *((32, 32), (32, 64), (64, 64), (128, 128)),
        *((200, 336), (512, 512), (1024, 1024)),
    ),
    heads=((8, 1), (1, 1), (16, 8)),
    wide_heads=((8, 1),),
    linear=((64, 64), (200, 336), (512, 512)),
    compiled=((64, 64), (200, 336), (512, 512)),
    profiled=((200, 336), (512, 512)),
    maps=(
        *((8, 200, 336, 64, 3), (8, 200, 336, 224, 3), (8, 200, 336, 64, 5)),
        *((8, 50, 84, 896, 3), (8, 50, 84, 256, 5)),
        *((1, 200, 336, 64, 3), (1, 200, 336, 224, 3), (1, 200, 336, 64, 5)),
    ),
    max_elements=600_000_000,
    max_products=1e13,
)
QUICK = Sizes(
    copied=1 << 10,
    grids=((2, 3),),
    heads=((2, 1),),
    wide_heads=(),
    linear=((2, 3),),
    compiled=(),
    profiled=((2, 3),),
    maps=((1, 3, 4, 8, 3),),
    max_elements=1 << 20,
    max_products=1e9,
)


def op_cases(device: torch.device, sizes: Sizes) -> Iterator[Case]:
    """Yield all measurements of operators, the most important ones first."""
    yield Case({"operator": "copy"}, lambda: copy_rate(device, sizes.copied))
    bench = _Operators(device, sizes)
    for heads in sizes.heads:
        for hw in sizes.grids:
            yield from bench.attention("rala", (*heads, hw, 64), _FORMS)
    for hw in sizes.profiled:
        yield from bench.profile((*sizes.heads[0], hw, 64))
    for shape in sizes.maps:
        yield from bench.depthwise(shape)
    for hw in sizes.linear:
        yield from bench.rotation((*sizes.heads[0], hw, 64))
    forms = {name: _FORMS[name] for name in ("kernels", "plain")}
    for hw in sizes.linear:
        yield from bench.attention("linear", (*sizes.heads[0], hw, 64), forms)
    for heads in sizes.wide_heads:
        for hw in sizes.grids:
            yield from bench.attention("rala", (*heads, hw, 96), _FORMS)
    for hw in sizes.compiled:
        shape = (*sizes.heads[0], hw, 64)
        yield from bench.attention("rala", shape, {"plain": ("compiled",)})


@dataclass(frozen=True)
class _Operators:
    """Cases of the operators on one device."""

    device: torch.device
    sizes: Sizes

    def attention(
        self, kind: str, shape: tuple[int, int, Size, int], forms: dict
    ) -> Iterator[Case]:
        """Yield all forms of an attention at one size, if it is within the limits."""
        batch, heads, hw, dim = shape
        tokens = hw[0] * hw[1]
        if batch * heads * tokens * dim > self.sizes.max_elements:
            return
        products = 2 * batch * heads * tokens**2 * dim
        for implementation, names in forms.items():
            if implementation in _BACKENDS and products > self.sizes.max_products:
                continue
            for part in _PASSES:
                for form in names:
                    labels = _labels(kind, implementation, form, part, *shape)
                    yield Case(labels, lambda given=labels: self._attend(given, hw))

    def _attend(self, labels: dict, hw: Size) -> dict:
        kind, implementation = labels["operator"], labels["implementation"]
        backward = labels["pass"] != "forward"
        q, k, v = self._draw_heads(labels, hw, backward)
        if implementation in _BACKENDS:
            kind, call = "softmax", F.scaled_dot_product_attention
        else:
            call = _linear_attention(kind, hw)
        if labels["form"] == "compiled":
            torch.compiler.reset()  # shapes count towards the limit of recompilations
            call = torch.compile(call, dynamic=False)
        step = _with_gradients(call, q, k, v) if backward else lambda: call(q, k, v)
        tensors = floors.attention_tensors(kind, backward)
        with _implementation(implementation, q, k, v):
            times = time_form(step, labels["form"], self.device)
        return times | {"bytes": tensors * q.nbytes}

    def profile(self, shape: tuple[int, int, Size, int]) -> Iterator[Case]:
        """Yield the case that times each kernel of RALA."""
        labels = _labels("rala", "kernels", "profile", _PASSES[1], *shape)
        yield Case(labels, lambda: self._profile(labels, shape[2]))

    def _profile(self, labels: dict, hw: Size) -> dict:
        tensors = self._draw_heads(labels, hw, backward=True)
        step = _with_gradients(_linear_attention("rala", hw), *tensors)
        with _implementation("kernels", *tensors):
            seconds = kernel_times(step, self.device)
        counts = floors.RALA_FORWARD | floors.RALA_BACKWARD
        traffic = {name: n * tensors[0].nbytes for name, n in counts.items()}
        return {"kernel_seconds": seconds, "kernel_bytes": traffic}

    def rotation(self, shape: tuple[int, int, Size, int]) -> Iterator[Case]:
        """Yield the cases of the rotation of queries and keys."""
        for implementation in ("kernels", "plain"):
            for form in ("eager", "graph"):
                labels = _labels("rotation", implementation, form, "forward", *shape)
                yield Case(labels, lambda given=labels: self._rotate(given, shape[2]))

    def _rotate(self, labels: dict, hw: Size) -> dict:
        q, k, _ = self._draw_heads(labels, hw, backward=False)
        with _implementation(labels["implementation"], q, k):
            times = time_form(
                lambda: rotate_queries_and_keys(q, k, hw), labels["form"], self.device
            )
        return times | {"bytes": floors.ROTATION * q.nbytes}

    def depthwise(self, shape: tuple[int, int, int, int, int]) -> Iterator[Case]:
        """Yield the cases of a depthwise convolution."""
        batch, height, width, channels, size = shape
        operator = f"depthwise {size} x {size}"
        for part in _CONVOLUTION_PASSES:
            for implementation in ("kernels", "plain"):
                for form in ("eager", "graph"):
                    labels = _labels(
                        *(operator, implementation, form, part),
                        *(batch, 1, (height, width), channels),
                    )
                    yield Case(
                        labels, lambda given=labels: self._convolve(given, shape)
                    )

    def _convolve(self, labels: dict, shape: tuple[int, int, int, int, int]) -> dict:
        *tokens, channels, size = shape
        # (B, H, W, C) tokens have the memory layout of channels-last maps in cuDNN.
        x = self._draw(*tokens, channels).requires_grad_()
        weight = self._draw(channels, 1, size, size).requires_grad_()
        grad = self._draw(*tokens, channels)
        part = labels["pass"]
        torch.backends.cudnn.benchmark = True
        with _implementation(labels["implementation"], x, weight):
            if part == "forward":
                with torch.no_grad():
                    times = time_form(
                        lambda: depthwise_conv(x, weight), labels["form"], self.device
                    )
            else:
                source = x if part == "input gradient" else weight
                y = depthwise_conv(x, weight)
                times = time_form(
                    lambda: torch.autograd.grad(y, source, grad, retain_graph=True),
                    labels["form"],
                    self.device,
                )
        return times | {"bytes": floors.DEPTHWISE * x.nbytes}

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=DTYPE)

    def _draw_heads(self, labels: dict, hw: Size, backward: bool) -> list[Tensor]:
        """Draw the output of a qkvo layer; return q, k and v as views of it."""
        heads = labels["heads"]
        qkvo = self._draw(labels["batch"], *hw, 4 * heads * labels["dim"])
        parts = qkvo.chunk(4, dim=-1)[:3]
        return [split_heads(part, heads).requires_grad_(backward) for part in parts]


def _labels(
    operator: str,
    implementation: str,
    form: str,
    part: str,
    batch: int,
    heads: int,
    hw: Size,
    dim: int,
) -> dict:
    return {
        "operator": operator,
        "implementation": implementation,
        "form": form,
        "pass": part,
        "batch": batch,
        "heads": heads,
        "size": f"{hw[0]}x{hw[1]}",
        "tokens": hw[0] * hw[1],
        "dim": dim,
    }


def _linear_attention(kind: str, hw: Size) -> Callable[..., Tensor]:
    is_rala = kind == "rala"
    return lambda q, k, v: rala(q, k, v, hw, rope=is_rala, reweight=is_rala)


def _with_gradients(
    call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor
) -> Callable[[], object]:
    """Return a call that backpropagates a random gradient to q, k and v."""
    grad = torch.randn_like(v)
    return lambda: torch.autograd.grad(call(q, k, v), (q, k, v), grad)


@contextlib.contextmanager
def _implementation(name: str, *tensors: Tensor) -> Iterator[None]:
    """Return a context that selects an implementation.

    Raises:
        RAVLTError: If the kernels are selected, and would not run on the tensors.
    """
    if name in _BACKENDS:
        with sdpa_kernel(_BACKENDS[name]):
            yield
    elif name == "plain":
        with plain_forms():
            yield
    elif runs_as_kernel(*tensors):
        yield
    else:
        raise RAVLTError("The Triton kernels do not run on this device.")

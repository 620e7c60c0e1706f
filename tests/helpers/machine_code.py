"""Compile every Triton kernel for a GPU that is not there, and print what it uses.

``python -m helpers.machine_code 90`` prints one JSON object for each variant of a
kernel. It runs in a process of its own, since the tests use Triton's interpreter.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.knobs import nvidia

from ravlt.ops.depthwise import kernels as depthwise
from ravlt.ops.depthwise.triton import GRADIENT_TILE, convolution_tile
from ravlt.ops.launch import LAUNCH_OPTIONS, MAX_SPLITS
from ravlt.ops.rala import kernels as rala
from ravlt.ops.rala.triton import MERGED, has_products, tile_options
from ravlt.ops.rotary import kernels as rotary

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Whatever else a kernel points to is float32.
_TOKENS = ("q", "k", "v", "x", "y", "grad", "q_grad", "k_grad", "v_grad")
_OPTIONS = ("num_warps", "num_stages")
LOAD = r"ld\.global|cp\.async\.c[ag]"
WIDE = r"ld\.global\S*\.v4|cp\.async\.cg"  # 16 bytes


def variants(
    dtype: torch.dtype, dim: int, capability: int, flag: bool
) -> Iterator[tuple]:
    """List the kernels with their constants and options, all flags set or none."""
    padded = triton.next_power_of_2(dim)
    common = dict(ROPE=flag, REWEIGHT=flag, MAX_SPLITS=MAX_SPLITS, D=dim, DP=padded)
    products = (
        rala.query_sums,
        rala.key_value_sums,
        rala.outputs,
        rala.state_gradients,
        rala.key_value_gradients,
        rala.query_gradients,
    )
    version = divmod(capability, 10)
    for kernel in products if has_products(dtype, version) else ():
        yield kernel, common | tile_options(kernel, padded, dtype, version)
    yield rala.merge_states, common | MERGED
    yield rotary.rotate_tiles, common | dict(BLOCK=32, INVERSE=True)
    yield rotary.rotary_table, dict(COUNT=dim // 4, PADDED=padded // 4, BLOCK=16)
    for size in (3, 5):
        constants = dict(
            C=dim,
            SIZE=size,
            PADDED=triton.next_power_of_2(size),
            FLIP=flag,
            RESIDUAL=flag,
        )
        yield depthwise.convolution, constants | convolution_tile(dtype)
        yield depthwise.weight_gradients, constants | GRADIENT_TILE


def compiled(kernel, given: dict, dtype: torch.dtype, capability: int):
    """Compile a kernel as a launch on tensors from a projection would."""
    signature, constants, attributes = {}, {}, {}
    aligned = [["tt.divisibility", 16]]
    for i, name in enumerate(kernel.arg_names):
        if name in given:
            signature[name], constants[name] = "constexpr", given[name]
        elif name.endswith("_strides"):  # channels are contiguous
            signature[name] = ("i32", "i32", "i32", "constexpr")
            constants[(i, 3)] = 1
            attributes |= {(i, j): aligned for j in range(3)}
        elif name.endswith("_ptr"):
            is_tokens = name.removesuffix("_ptr") in _TOKENS
            signature[name] = f"*{DTYPES[dtype] if is_tokens else 'fp32'}"
            attributes[(i,)] = aligned
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: given[name] for name in _OPTIONS if name in given} | LAUNCH_OPTIONS
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=options)


def usage(cubin: bytes) -> tuple[int, int]:
    """Return registers of a thread, and bytes of its stack: registers spill there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        line = [nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", done.stdout)
    return int(registers), int(stack)


def main(capability: int) -> None:
    # The other targets differ little in what the flags add.
    flags = (True, False) if capability == 90 else (True,)
    for dtype, dim, flag in itertools.product(DTYPES, (64, 96), flags):
        for kernel, given in variants(dtype, dim, capability, flag):
            code = compiled(kernel, given, dtype, capability)
            ptx = code.asm["ptx"]
            registers, stack = usage(code.asm["cubin"])
            result = dict(
                kernel=kernel.fn.__name__,
                dtype=DTYPES[dtype],
                dim=dim,
                flag=flag,
                shared=code.metadata.shared,
                registers=registers,
                stack=stack,
                wide_loads=len(re.findall(WIDE, ptx)),
                loads=len(re.findall(LOAD, ptx)),
                multiplies="tt.dot" in code.asm["ttir"],
                tensor_cores="mma" in ptx,
            )
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

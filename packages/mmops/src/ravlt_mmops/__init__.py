"""mmcv's operators by torchvision's compiled kernels and by plain PyTorch.

mmcv-lite has all of ``mmcv.ops`` except the compiled module ``mmcv._ext``. This
package installs a Python module of that name, so ``mmcv.ops`` works without a
compiler, on CPUs and GPUs. Import ``mmcv.ops`` as always; nothing here is called
directly.
"""

__version__ = "0.1.0"

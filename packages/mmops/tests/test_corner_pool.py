"""Corner pooling, which mmcv writes in Python."""

import mmcv.ops
import pytest
import torch


@pytest.mark.parametrize("mode", ["top", "bottom", "left", "right"])
def test_corner_pool(ours, mode):
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    result = mmcv.ops.CornerPool(mode)(image)
    for y in range(4):
        for x in range(5):
            line = {
                "top": image[..., y:, x],
                "bottom": image[..., : y + 1, x],
                "left": image[..., y, x:],
                "right": image[..., y, : x + 1],
            }[mode]
            torch.testing.assert_close(result[..., y, x], line.amax(-1))
    torch.autograd.gradcheck(mmcv.ops.CornerPool(mode), image)

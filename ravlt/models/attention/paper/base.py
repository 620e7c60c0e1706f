"""What layers have in common that come with a paper's own auxiliaries."""

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from ...tiling import Region, Workspace
from ..cores import AttentionCore


class PaperAttention(nn.Module):
    """A layer around a core; its last product is ``proj``.

    Args:
        core: The mechanism.
        num_heads: Number of heads.
    """

    proj: nn.Module

    def __init__(self, core: AttentionCore, num_heads: int) -> None:
        super().__init__()
        self.core = core
        self.num_heads = num_heads

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Mixes the tokens of a grid.

        Args:
            x: Normalised tokens of shape (B, H, W, C).

        Returns:
            A tensor of the same shape.
        """

    def tiles(
        self, x: Tensor, norm: nn.Module, workspace: Workspace
    ) -> Iterator[tuple[Region, Tensor]]:
        """Computes ``self(norm(x))``: all of the grid is one tile.

        Args:
            x: Tokens of shape (B, H, W, C).
            norm: The norm before this layer.
            workspace: Not used.

        Yields:
            The index of the whole, and the result.
        """
        yield (slice(None),) * 3, self(norm(x))

    def switch_to_deploy(self, norm: nn.LayerNorm) -> None:
        """Folds the core; the norm before this layer stays as it is."""
        self.core.switch_to_deploy()

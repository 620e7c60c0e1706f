"""A pipeline step that finds broken images before a loader turns them into grey."""

import io
import logging
import warnings
from collections.abc import Mapping, Sequence

from mmengine.fileio import get
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image, UnidentifiedImageError

from ravlt.errors import RAVLTError

BAD_IMAGE_ACTIONS = ("error", "skip")


@TRANSFORMS.register_module()
class VerifyImages:
    """Decodes the files of a sample once, in small, and names the broken one.

    OpenCV before 5 decodes a truncated JPEG without a word and fills the rest with
    grey; Pillow notices. Put it in front of the loading transforms.

    Args:
        on_error: ``'error'`` stops; ``'skip'`` logs a warning and returns None, so
            that a training set draws another sample.
        keys: Keys of the sample that hold paths, if present.
        backend_args: As in the host's loading transforms.

    Raises:
        RAVLTError: If ``on_error`` is unknown.
    """

    def __init__(
        self,
        on_error: str = "error",
        keys: Sequence[str] = ("img_path", "seg_map_path"),
        backend_args: dict | None = None,
    ) -> None:
        if on_error not in BAD_IMAGE_ACTIONS:
            raise RAVLTError(
                f"bad_images='{on_error}' is unknown; use one of {BAD_IMAGE_ACTIONS}."
            )
        self.on_error = on_error
        self.keys = tuple(keys)
        self.backend_args = backend_args

    def __call__(self, results: dict) -> dict | None:
        """Passes a good sample on.

        Args:
            results: A sample with the paths of its files. What the hosts' inferencers
                put in front of a pipeline (a path, pixels) passes; they load it.

        Returns:
            The same dict, or None for a broken sample in ``'skip'`` mode.

        Raises:
            RAVLTError: For a broken sample in ``'error'`` mode; names the file.
        """
        if not isinstance(results, Mapping):
            return results
        for key in self.keys:
            path = results.get(key)
            reason = path and self._broken(path)
            if not reason:
                continue
            if self.on_error == "error":
                raise RAVLTError(
                    f"Cannot decode '{path}' ({reason}); restore or remove the file, "
                    f"or train without such files by bad_images='skip'."
                )
            print_log(
                f"Skipped a sample: cannot decode '{path}' ({reason}).",
                logger="current",
                level=logging.WARNING,
            )
            return None
        return results

    def _broken(self, path: str) -> str | None:
        """Gives the reason why a file cannot be decoded, or None."""
        try:
            data = get(path, backend_args=self.backend_args)
            with warnings.catch_warnings():
                # Not about the pixels: EXIF oddities, palettes, huge images.
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data)) as image:
                    # JPEG can be decoded at an eighth of its size, which is cheaper.
                    eighth = max(image.width // 8, 1), max(image.height // 8, 1)
                    image.draft(image.mode, eighth)
                    image.load()
        except Image.DecompressionBombError:
            return None
        except FileNotFoundError:
            return "it does not exist"
        except UnidentifiedImageError:  # whose message is an address in memory
            return "it is no image" if data else "it is empty"
        except (OSError, SyntaxError, ValueError) as error:
            return str(error).replace("\n", " ") or type(error).__name__
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on_error={self.on_error!r}, keys={self.keys})"

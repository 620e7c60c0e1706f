"""A pipeline step that finds bad samples before a loader makes something of them."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from ravlt.errors import RAVLTError

from .image_file import BadFile
from .samples import Sample, check_image, check_label_map

BAD_IMAGE_ACTIONS = ("error", "skip")


@TRANSFORMS.register_module()
class VerifyImages:
    """Looks at the files of a sample before they are loaded, and names the bad one.

    Images are decoded once, in small, because OpenCV before 5 decodes a truncated
    JPEG without a word and fills the rest with grey. Their size, upright by EXIF as
    the loader turns them, must be what the annotations say, and that of label maps.
    The values in MMSegmentation's label maps must stand for classes. Put it in front
    of the loading transforms.

    Args:
        on_error: ``'error'`` stops; ``'skip'`` logs a warning that counts, and returns
            None, so that a training set draws another sample.
        backend_args: As in the host's loading transforms.
        num_classes: Of the segmentor; None leaves labels' values unchecked.
        color_type: As in the host's ``LoadImageFromFile``.
        imdecode_backend: As there.

    Raises:
        RAVLTError: If ``on_error`` is unknown.
    """

    def __init__(
        self,
        on_error: str = "error",
        backend_args: dict | None = None,
        num_classes: int | None = None,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
    ) -> None:
        if on_error not in BAD_IMAGE_ACTIONS:
            raise RAVLTError(
                f"bad_images='{on_error}' is unknown; use one of {BAD_IMAGE_ACTIONS}."
            )
        self.on_error = on_error
        self.reading = dict(
            num_classes=num_classes,
            color_type=color_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        self.skipped = 0

    def __call__(self, results: dict) -> dict | None:
        """Passes a good sample on.

        Args:
            results: A sample with the paths of its files. What the hosts' inferencers
                put in front of a pipeline (a path, pixels) passes; they load it.

        Returns:
            The same dict, or None for a bad sample in ``'skip'`` mode.

        Raises:
            RAVLTError: For a bad sample in ``'error'`` mode; names the file.
        """
        if not isinstance(results, Mapping):
            return results
        sample = Sample.of(results, **self.reading)
        path, size = sample.image, None
        try:
            if path:
                _, size = check_image(sample)
            path = sample.labels
            if path:
                check_label_map(sample, size)
        except BadFile as error:
            return self._refuse(path, str(error))
        return results

    def _refuse(self, path: str, reason: str) -> None:
        if self.on_error == "error":
            raise RAVLTError(
                f"Cannot use '{path}' ({reason}); restore or remove the file, or "
                f"train without such files by bad_images='skip'."
            )
        self.skipped += 1
        print_log(
            f"Skipped a sample: cannot use '{path}' ({reason}); {self.skipped} so far.",
            logger="current",
            level=logging.WARNING,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(on_error={self.on_error!r})"

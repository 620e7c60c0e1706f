"""Pipeline step that detects bad files before they are loaded."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from ravlt.errors import RAVLTError

from .image_file import BadFile
from .passed import PassedChecks, file_state, fingerprint
from .samples import Sample, check_image, check_label_map


@TRANSFORMS.register_module()
class VerifyImages:
    """Pipeline step that checks the files of a sample before they are loaded.

    Each image is decoded once more, at reduced resolution, because OpenCV before 5
    decodes a truncated JPEG without an error and fills the rest with grey. The size of
    the image, after the EXIF rotation if the loader applies it, must be that of the
    annotations and of the label map. The values in MMSegmentation's label maps must be
    classes.

    A sample whose files passed is not read again until a file or a setting changes.

    Args:
        on_error: ``'error'`` raises; ``'skip'`` logs a warning with a count and returns
            None, so that a training set draws another sample.
        backend_args: As in the host's loading transforms.
        num_classes: Number of classes of the segmentor; None leaves the values of
            labels unchecked.
        color_type: As in the host's ``LoadImageFromFile``.
        imdecode_backend: As in the host's ``LoadImageFromFile``.
        passed: File that records which samples passed, see :class:`PassedChecks`; None
            keeps the record in each process only.
    """

    def __init__(
        self,
        on_error: str = "error",
        backend_args: dict | None = None,
        num_classes: int | None = None,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        passed: str | None = None,
    ) -> None:
        self.on_error = on_error
        self.reading = dict(
            num_classes=num_classes,
            color_type=color_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )
        self.passed = PassedChecks(passed)
        self.skipped = 0

    def __call__(self, results: dict) -> dict | None:
        """Return a good sample unchanged.

        Args:
            results: Sample with the paths of its files. Paths and arrays, which the
                hosts' inferencers put into a pipeline, are returned unchecked.

        Returns:
            The argument, or None for a bad sample in ``'skip'`` mode.

        Raises:
            RAVLTError: If the sample is bad in ``'error'`` mode; names the file.
        """
        if not isinstance(results, Mapping):
            return results
        sample = Sample.of(results, **self.reading)
        # Before reading, so that a file that is written meanwhile is checked again.
        states = file_state(sample.image), file_state(sample.labels)
        key = fingerprint(sample, *states)
        if self.passed.find(key) is not None:
            return results
        path, size = sample.image, None
        try:
            if path:
                _, size = check_image(sample)
            path = sample.labels
            if path:
                check_label_map(sample, size)
        except BadFile as error:
            return self._refuse(path, str(error))
        self.passed.add(key)
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

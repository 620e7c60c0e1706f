"""Download files over HTTPS or by their sha-256, and store them atomically."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from filelock import FileLock  # of torch's own requirements
from mmengine.logging import print_log

from ravlt.errors import RAVLTError

# torch.hub and OpenMMLab put the first digits of the sha-256 into file names. Eight
# digits that start with 19 or 20 are taken for a date.
_HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$")
_CHUNK_BYTES = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def fetch(address: str) -> str:
    """Download a file into torch's cache, unless the cache has it.

    Processes that want the same file wait for the one that downloads it.

    The file name may contain the first digits of the sha-256, as in
    ``name-1234abcd.pth``, or the address may end in all of them, as in
    ``https://host/name.pth#sha256=...``. The file must then match, also if it comes
    from the cache. An address with plain ``http://`` must end in the sha-256.

    Args:
        address: Web address of the file.

    Returns:
        Path of the file in the cache.

    Raises:
        RAVLTError: If the address is neither encrypted nor followed by the sha-256, the
            download fails, or the file does not match its sha-256. The cache then has
            no new file.
    """
    url, _, fragment = address.partition("#")
    expected = fragment.removeprefix("sha256=").lower()
    name = os.path.basename(urlsplit(url).path)
    if fragment and not re.fullmatch("[0-9a-f]{64}", expected):
        raise RAVLTError(
            f"'{address}' must end in #sha256= and 64 hexadecimal digits; correct the "
            f"address."
        )
    if not expected:
        _check_encrypted(url, url)
        found = _HASH_IN_NAME.search(name)
        expected = found.group(1) if found else ""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, name)
    if _is_cached(path, expected):
        return path
    os.makedirs(folder, exist_ok=True)
    with _locked(os.path.join(folder, f".{name}.lock")):
        if not _is_cached(path, expected):
            _download(address, url, expected, path)
    return path


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock, which the system releases if the process dies.

    Some network file systems have no locks. Processes then download at the same time,
    and each replaces the file atomically.
    """
    lock = FileLock(path)
    try:
        lock.acquire()
    except OSError:
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _is_cached(path: str, expected: str) -> bool:
    """Return whether a file exists and has the sha-256 that it must have, if any."""
    return os.path.isfile(path) and (not expected or _sha256(path).startswith(expected))


def _download(address: str, url: str, expected: str, path: str) -> None:
    folder, name = os.path.split(path)
    print_log(f"Downloading '{url}' to '{path}'.", logger="current")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        partial = os.path.join(scratch, name)
        try:
            _copy(url, partial, any_server=len(expected) == 64)
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            raise RAVLTError(
                f"Cannot download '{address}' ({error}); download the file by other "
                f"means and give its path (--cfg-options "
                f"model.backbone.init_cfg.checkpoint=PATH), or train from scratch "
                f"(model.backbone.init_cfg=None)."
            ) from error
        if expected:
            digest = _sha256(partial)
            if not digest.startswith(expected):
                raise RAVLTError(
                    f"'{url}' has the sha-256 {digest} instead of {expected}: it is "
                    f"damaged or a different file; ask its publisher for the right "
                    f"one."
                )
        os.replace(partial, path)


def _copy(url: str, path: str, any_server: bool) -> None:
    """Download a file.

    Args:
        url: Web address.
        path: New file.
        any_server: Whether redirects may lead to an unencrypted address.
    """
    request = Request(url, headers={"User-Agent": "ravlt"})
    with urlopen(request, timeout=_TIMEOUT) as response, open(path, "wb") as file:
        if not any_server:
            _check_encrypted(response.url, url)
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
        expected = response.headers.get("Content-Length")
        # http.client reports a broken connection as the end of the file.
        if expected is not None and file.tell() != int(expected):
            raise ConnectionError(f"got {file.tell()} of {expected} bytes")


def _check_encrypted(used: str, url: str) -> None:
    if not used.startswith("https://"):
        raise RAVLTError(
            f"Refused '{url}', which is served from '{used}': anyone on the network "
            f"could change the file; use https://, or add #sha256= and the file's 64 "
            f"digits to the address."
        )


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

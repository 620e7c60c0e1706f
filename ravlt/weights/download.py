"""Downloads that are encrypted or known by their sha-256, and whole or absent."""

import hashlib
import os
import re
import tempfile
from http.client import HTTPException
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from mmengine.logging import print_log

from ravlt.errors import RAVLTError

# As torch.hub and OpenMMLab name files; eight digits may also be a date.
_HASH_IN_NAME = re.compile(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$")
_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


def fetch(address: str) -> str:
    """Downloads a file into torch's cache, unless it is there.

    The first digits of the sha-256 may be part of the name, ``name-1234abcd.pth``, or
    all of it follow the address, ``https://host/name.pth#sha256=...``; the file must
    then match, in the cache as well. Plain ``http://`` needs all of it.

    Args:
        address: Where the file is.

    Returns:
        Its path.

    Raises:
        RAVLTError: If the address is not to be trusted, the file cannot be had, or it
            is not what it should be. Nothing is left of it then.
    """
    url, _, fragment = address.partition("#")
    given = fragment.removeprefix("sha256=").lower()
    name = os.path.basename(urlsplit(url).path)
    if fragment and not re.fullmatch("[0-9a-f]{64}", given):
        raise RAVLTError(f"'{address}' must end in #sha256= and 64 digits; correct it.")
    if not given:
        _check_encrypted(url, url)
        found = _HASH_IN_NAME.search(name)
        given = found.group(1) if found else ""
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, name)
    if os.path.isfile(path) and _sha256(path).startswith(given):
        return path
    os.makedirs(folder, exist_ok=True)
    print_log(f"Downloading '{url}' to '{path}'.", logger="current")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        partial = os.path.join(scratch, name)
        try:
            _copy(url, partial, any_server=len(given) == 64)
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            raise RAVLTError(
                f"Cannot download '{address}' ({error}); fetch that file by other "
                f"means and give its path (--cfg-options "
                f"model.backbone.init_cfg.checkpoint=PATH), or train from scratch "
                f"(model.backbone.init_cfg=None)."
            ) from error
        digest = _sha256(partial)
        if not digest.startswith(given):
            raise RAVLTError(
                f"'{url}' has the sha-256 {digest}, but should have {given}: it is "
                f"broken or another file; ask for it where it was published."
            )
        os.replace(partial, path)
    return path


def _copy(url: str, path: str, any_server: bool) -> None:
    request = Request(url, headers={"User-Agent": "ravlt"})
    with urlopen(request, timeout=_TIMEOUT) as response, open(path, "wb") as file:
        if not any_server:
            _check_encrypted(response.url, url)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
        expected = response.headers.get("Content-Length")
        # http.client takes a connection that breaks for the end.
        if expected is not None and file.tell() != int(expected):
            raise ConnectionError(f"got {file.tell()} of {expected} bytes")


def _check_encrypted(used: str, url: str) -> None:
    if not used.startswith("https://"):
        raise RAVLTError(
            f"Refused '{url}', which is read from '{used}': anyone on the way could "
            f"change the file; use https://, or add #sha256= and its 64 digits."
        )


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

"""Downloads from a local server: verified, and stored completely or not at all."""

import errno
import hashlib
import http.server
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from ravlt.errors import RAVLTError
from ravlt.weights import download
from ravlt.weights.checkpoint import read_checkpoint
from ravlt.weights.download import fetch

BUFFER = io.BytesIO()
torch.save({"w": torch.arange(3.0)}, BUFFER)
CONTENT = BUFFER.getvalue()
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve the content; the path of the address selects a failure."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.path.startswith("/slow"):
            time.sleep(0.5)
        if self.path == "/gone.pth":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        cut = self.path.startswith("/cut")
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if cut else CONTENT)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub/checkpoints"


def left(cache: Path) -> list[str]:
    """Return the files in the cache, apart from empty locks."""
    names = sorted(path.name for path in cache.glob("*"))
    return [n for n in names if not (n.endswith(".lock") and n.startswith("."))]


def test_a_file_known_by_its_sum(server, cache):
    address = f"{server}/a.pth#sha256={SHA}"
    assert read_checkpoint(address)["w"].tolist() == [0, 1, 2]
    assert (cache / "a.pth").read_bytes() == CONTENT
    asked = Handler.asked
    assert fetch(address) == str(cache / "a.pth")
    assert Handler.asked == asked  # the cache has the file
    (cache / "a.pth").write_bytes(CONTENT[:-1])
    assert Path(fetch(address)).read_bytes() == CONTENT  # the cached file is damaged
    assert Handler.asked == asked + 1
    assert left(cache) == ["a.pth"]
    assert (cache / "a.pth").stat().st_mode & 0o022 == 0  # only the owner may write it


def fetch_by_eight(address: str) -> list:
    """Fetch like the processes of a machine, and return paths or messages."""

    def fetch_or_say(_) -> str:
        try:
            return fetch(address)
        except RAVLTError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(fetch_or_say, range(8)))


def test_eight_processes_download_once(server, cache):
    """A lock holds among threads as among processes: each opens the file anew."""
    asked = Handler.asked
    paths = fetch_by_eight(f"{server}/slow.pth#sha256={SHA}")
    assert paths == [str(cache / "slow.pth")] * 8
    assert Handler.asked == asked + 1


def test_all_say_the_same_when_a_download_fails(server, cache):
    address = f"{server}/gone.pth#sha256={SHA}"
    (message,) = set(fetch_by_eight(address))
    assert message.startswith(f"Cannot download '{address}' (HTTP Error 404")
    assert left(cache) == []


def test_another_file_is_refused(server, cache):
    with pytest.raises(RAVLTError) as refused:
        fetch(f"{server}/a.pth#sha256={'0' * 64}")
    assert str(refused.value) == (
        f"'{server}/a.pth' has the sha-256 {SHA} instead of {'0' * 64}: it is "
        f"damaged or a different file; ask its publisher for the right one."
    )
    assert left(cache) == []


@pytest.mark.parametrize("name", ["cut.pth", "gone.pth"])
def test_nothing_is_left_of_what_failed(server, cache, name):
    address = f"{server}/{name}#sha256={SHA}"
    with pytest.raises(RAVLTError) as refused:
        read_checkpoint(address)
    reason = "got " if name == "cut.pth" else "HTTP Error 404"
    assert str(refused.value).startswith(f"Cannot download '{address}' ({reason}")
    assert left(cache) == []


def test_plain_http_is_refused_before_anything_is_asked(server, cache):
    asked = Handler.asked
    for name in ("a.pth", f"a-{SHA[:8]}.pth"):
        with pytest.raises(RAVLTError, match=r"^Refused 'http:.*use https://, or add"):
            fetch(f"{server}/{name}")
    assert Handler.asked == asked


@pytest.mark.parametrize("fragment", ["sha256=12", "md5=1", f"sha256={'g' * 64}"])
def test_wrong_sums(cache, fragment):
    with pytest.raises(RAVLTError, match="must end in #sha256= and 64 hexadecimal"):
        fetch(f"https://host/a.pth#{fragment}")


@pytest.fixture
def secure(monkeypatch):
    """Answer every https request with the content; `moved` is its final address."""

    def set_moved(moved: str | None) -> None:
        def answer(request, timeout):
            response = io.BytesIO(CONTENT)
            response.url = moved or request.full_url
            response.headers = Message()
            return response

        monkeypatch.setattr(download, "urlopen", answer)

    return set_moved


def test_sums_in_names(secure, cache):
    secure(None)
    good = f"ravlt_t-{SHA[:8]}.pth"
    # A sha-256, none, a date, and fewer digits than a sha-256 has.
    for name in (good, "a.pth", "a-20251125.pth", "a-1234567.pth"):
        assert Path(fetch(f"https://host/x/{name}?y=1")).name == name
    with pytest.raises(RAVLTError, match=f"has the sha-256 {SHA} instead of 0123"):
        fetch("https://host/a-01234567.pth")
    assert good in left(cache) and "a-01234567.pth" not in left(cache)


def test_moved_to_a_plain_address(secure, cache):
    secure("http://elsewhere/a.pth")
    with pytest.raises(RAVLTError, match="'https://host/a.pth', which is served from"):
        fetch("https://host/a.pth")
    assert left(cache) == []
    assert fetch(
        f"https://host/a.pth#sha256={SHA}"
    )  # the sha-256 makes the server irrelevant


def test_only_an_expected_sum_is_computed(secure, cache, monkeypatch):
    secure(None)
    hashed = []
    monkeypatch.setattr(download, "_sha256", lambda path: hashed.append(path) or SHA)
    for _ in range(2):  # downloaded, then cached
        fetch("https://host/a.pth")
    assert hashed == []
    for _ in range(2):
        fetch(f"https://host/a-{SHA[:8]}.pth")
    assert len(hashed) == 2


@pytest.mark.integration
def test_a_kill_leaves_no_file_of_the_name(secure, cache, monkeypatch):
    secure(None)

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        fetch("https://host/a.pth")
    assert left(cache) == []


def test_disks_without_locks(secure, cache, monkeypatch):
    """As some network file systems are."""

    def refuse(self) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    secure(None)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert Path(fetch("https://host/name.pth")).read_bytes()

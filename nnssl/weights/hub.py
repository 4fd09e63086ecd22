"""Weight files by name: from a URL or the Hugging Face hub into a local cache, checked by their SHA-256."""

import hashlib
import logging
import os
import re
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnssl.paths import atomic_write

# A path object turns "hf://a/b" into "hf:/a/b"; both are understood.
NAME = re.compile(r"(hf|https?):/{1,2}([^#]+?)(?:#sha256=([0-9a-fA-F]{64}))?")
HUB_NAME = re.compile(r"([^/]+/[^/]+)/([^@]+?)(?:@([^@]+))?")
HUB_FORM = "hf://ORG/REPO/FILE@REVISION, optionally followed by #sha256=64 hexadecimal digits"
BLOCK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without an answer
REACH = 10  # the same for whether a host is there at all


@dataclass(frozen=True)
class RemoteName:
    """A weight file that is not on this machine."""

    scheme: str  # "hf", "https", "http"
    rest: str  # after the slashes
    sha256: str | None  # as the user demands it

    @property
    def text(self) -> str:
        """The name without the checksum."""
        return f"{self.scheme}://{self.rest}"


def fetch(name: Path | str) -> Path:
    """The local file of a name: a path as it is; a URL or hub file from the cache, else downloaded into it.

    Hub files live in Hugging Face's own cache, files of URLs in `cache_folder()`. A name may demand a checksum:
    https://host/weights.pth#sha256=<64 digits>.

    Raises:
        FileNotFoundError: not in the cache and not to be had: offline, no such file, no access.
        ValueError: the name is malformed, or the file has another SHA-256 than demanded.
    """
    remote = remote_name(name)
    if remote is None:
        return Path(name)
    path = _from_hub(remote) if remote.scheme == "hf" else _from_url(remote)
    found = sha256(path) if remote.sha256 else None
    if found != remote.sha256:
        if remote.scheme != "hf":
            path.unlink()
        raise ValueError(
            f"fetching {remote.text}: its SHA-256 is {found}, not {remote.sha256} as demanded; do not use it"
        )
    return path


def remote_name(name: Path | str) -> RemoteName | None:
    """A URL or hub name taken apart; None for a path."""
    match = NAME.fullmatch(str(name))
    if match is None:
        return None
    scheme, rest, digest = match.groups()
    return RemoteName(scheme, rest, digest.lower() if digest else None)


def cache_folder() -> Path:
    """Where files of URLs are kept: $XDG_CACHE_HOME/nnssl/weights, by default ~/.cache/nnssl/weights."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnssl" / "weights"


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _from_hub(remote: RemoteName) -> Path:
    match = HUB_NAME.fullmatch(remote.rest)
    if match is None:
        raise ValueError(f"weights {remote.text!r}: expected {HUB_FORM}")
    repository, file, revision = match.groups()
    try:
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
    except ImportError as error:
        raise ValueError(f"fetching {remote.text}: install huggingface_hub (pip install huggingface_hub)") from error
    try:
        cached = isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
        if not cached and not constants.HF_HUB_OFFLINE:
            _check_reachable(constants.ENDPOINT)
        with _quiet("huggingface_hub"):
            return Path(hf_hub_download(repository, file, revision=revision))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"fetching {remote.text}: access is restricted; accept the licence at https://huggingface.co/{repository} "
            "with your account, log in (hf auth login), and try again"
        ) from error
    except HfHubHTTPError as error:
        raise _failed(remote, f"no such repository, file or revision, or no access ({_short(error)})") from error
    except (OSError, ValueError) as error:  # offline is a FileNotFoundError of the hub's
        raise _failed(remote, _short(error)) from error


def _check_reachable(address: str) -> None:
    """Raise an OSError where nothing answers: the hub's own library tries for 40 seconds and more."""
    try:
        urllib.request.urlopen(address, timeout=REACH).close()
    except urllib.error.HTTPError:
        return  # an answer


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a package's warnings about attempts; what finally failed is said in one line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _from_url(remote: RemoteName) -> Path:
    """One file per URL; an interrupted download leaves nothing."""
    base = re.sub(r"[^\w.-]", "_", remote.rest.partition("?")[0].rpartition("/")[2]) or "weights"
    path = cache_folder() / f"{hashlib.sha256(remote.text.encode()).hexdigest()[:16]}-{base[-80:]}"
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(remote.text, timeout=TIMEOUT) as answer, atomic_write(path) as temporary:
            _copy(answer, temporary)
    except (OSError, ValueError) as error:
        raise _failed(remote, _short(error)) from error
    return path


def _copy(answer: "urllib.response.addinfourl", path: Path) -> None:  # type: ignore[name-defined]
    expected, received = answer.headers.get("Content-Length"), 0
    with path.open("wb") as file:
        while block := answer.read(BLOCK):
            file.write(block)
            received += len(block)
    if expected is not None and received != int(expected):
        raise ValueError(f"the connection ended after {received} of {expected} bytes")


def _failed(remote: RemoteName, reason: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"fetching {remote.text}: it is not in the local cache and cannot be downloaded ({reason}); "
        "check name and network, or download it elsewhere and give the path of the file"
    )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(text, 200, placeholder=" ...").rstrip(". ")

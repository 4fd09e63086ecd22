"""Names of remote files become local ones, once; what cannot be had is one line."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from nnssl.weights.encoder_file import read_weights
from nnssl.weights.hub import cache_folder, fetch, remote_name
from tests.weights.toy_files import rule_state, toy_vit

REVISION = "0123456789012345678901234567890123456789"


class Server(BaseHTTPRequestHandler):
    """Serves `content` under /weights.pth, and half of it under /cut.pth."""

    content = b""
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path not in ("/weights.pth", "/cut.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // (2 if self.path == "/cut.pth" else 1)])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.save(rule_state(toy_vit(), chunk=0), tmp_path / "weights.pth")
    Server.content, Server.requests = (tmp_path / "weights.pth").read_bytes(), 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _digest() -> str:
    return hashlib.sha256(Server.content).hexdigest()


def test_a_path_stays_a_path(tmp_path: Path) -> None:
    for path in (tmp_path / "a.pth", Path("relative/hf/file"), "C:\\data\\a.pth"):
        assert fetch(path) == Path(path)


def test_a_name_that_became_a_path_is_still_a_name() -> None:
    for name in ("hf://ORG/REPO/FILE@main", Path("hf://ORG/REPO/FILE@main")):
        remote = remote_name(name)
        assert remote is not None and remote.text == "hf://ORG/REPO/FILE@main"


def test_a_url_is_read_once_and_then_from_the_cache(site: str) -> None:
    name = f"{site}/weights.pth#sha256={_digest()}"
    assert len(read_weights(name).tensors) == 63
    assert fetch(name).parent == cache_folder() and Server.requests == 1


def test_another_checksum_is_refused_and_the_file_is_not_kept(site: str) -> None:
    with pytest.raises(ValueError, match=f"its SHA-256 is {_digest()}, not {'0' * 64} as demanded"):
        fetch(f"{site}/weights.pth#sha256={'0' * 64}")
    assert list(cache_folder().iterdir()) == []


@pytest.mark.parametrize(("path", "reason"), [("/absent.pth", "404"), ("/cut.pth", "ended after|IncompleteRead")])
def test_a_file_that_does_not_arrive_whole_leaves_nothing(site: str, path: str, reason: str) -> None:
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        fetch(site + path)
    assert "\n" not in str(caught.value) and not list(cache_folder().glob("*"))


def test_a_host_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="it is not in the local cache and cannot be downloaded") as caught:
        fetch("http://127.0.0.1:9/weights.pth")
    assert "\n" not in str(caught.value)


class Hub(Server):
    """What the hub answers: one file under one repository, another repository with restricted access."""

    def do_HEAD(self) -> None:
        found = self.path == "/ORG/REPO/resolve/v1/weights.pth"
        self.send_response(200 if found else 403 if "/GATED/" in self.path else 404)
        if found:
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", REVISION)
        else:
            self.send_header("X-Error-Code", "GatedRepo" if "/GATED/" in self.path else "EntryNotFound")
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == "/ORG/REPO/resolve/v1/weights.pth":
            self.wfile.write(self.content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    constants = pytest.importorskip("huggingface_hub.constants")
    torch.save(rule_state(toy_vit(), chunk=0), tmp_path / "weights.pth")
    Server.content = (tmp_path / "weights.pth").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    yield
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub_is_downloaded_at_its_revision(hub: None) -> None:
    name = f"hf://ORG/REPO/weights.pth@v1#sha256={_digest()}"
    assert len(read_weights(name).tensors) == 63
    assert REVISION in str(fetch(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf://ORG/REPO/absent.pth@v1", "no such repository, file or revision"),
        ("hf://ORG/GATED/weights.pth", "accept the licence at https://huggingface.co/ORG/GATED with your account"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: None, name: str, reason: str) -> None:
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Hugging Face's with one file of one repository, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--ORG--REPO"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION / "folder"
    snapshot.mkdir(parents=True)
    torch.save(rule_state(toy_vit(), chunk=0), snapshot / "weights.pth")
    return snapshot / "weights.pth"


def test_a_file_of_the_hub_is_found_in_its_cache_offline(hub_cache: Path) -> None:
    digest = hashlib.sha256(hub_cache.read_bytes()).hexdigest()
    for name in ("", f"@{REVISION}", f"@main#sha256={digest}"):
        assert len(read_weights(f"hf://ORG/REPO/folder/weights.pth{name}").tensors) == 63
    with pytest.raises(ValueError, match="as demanded"):
        fetch(f"hf://ORG/REPO/folder/weights.pth#sha256={'0' * 64}")
    assert hub_cache.is_file()


def test_a_file_of_the_hub_that_is_not_cached_is_one_line_offline(hub_cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"REPO/other\.pth: it is not in the local") as caught:
        fetch("hf://ORG/REPO/other.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["hf://ORG/REPO", "hf://FILE", "hf://ORG/REPO/FILE@a@b"])
def test_a_malformed_name_of_the_hub_is_explained(name: str) -> None:
    with pytest.raises(ValueError, match="expected hf://ORG/REPO/FILE@REVISION"):
        fetch(name)

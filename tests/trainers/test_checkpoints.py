"""Checkpoints are whole or absent, and reading one runs no code."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnssl.trainers.checkpoints import load_checkpoint, save_checkpoint, write_state

SMALL = {"steps_done": 3, "task": {"weight": torch.arange(4.0)}, "recipe": {"lr": 0.1, "crop": [1, 2, 3], "name": "a"}}


def test_tensors_and_plain_values_come_back_equal(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", SMALL)
    state = load_checkpoint(tmp_path / "c.pt")
    assert state["steps_done"] == 3 and state["recipe"] == SMALL["recipe"]
    assert torch.equal(state["task"]["weight"], torch.arange(4.0))


def test_a_full_disk_is_reported_as_such() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    for size in (10, 1_000_000):
        with pytest.raises(OSError) as error, full.open("wb") as stream:
            write_state({"weight": torch.zeros(size)}, stream)
        assert error.value.errno == errno.ENOSPC


def test_a_write_that_fails_half_way_leaves_the_earlier_checkpoint_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, SMALL)
    code = (
        "import sys, torch; from pathlib import Path; from nnssl.trainers.checkpoints import save_checkpoint\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), {'weight': torch.zeros(1_000_000)})\n"
        "except OSError as error:\n    print('OSError', error.errno, sys.argv[1] in str(error))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        check=True,
    )
    assert found.stdout.split() == ["OSError", str(errno.EFBIG), "True"]
    assert load_checkpoint(path)["steps_done"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


class Trap:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.write_text, (Path("trap_was_sprung"), "x")


def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 1, "task": Trap()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt") as error:
        load_checkpoint(tmp_path / "evil.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "trap_was_sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, SMALL)
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r"c\.pt: it is damaged or foreign") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"version": 99}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="version 99, expected 2"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"c\.pt: no such file"):
        load_checkpoint(tmp_path / "c.pt")

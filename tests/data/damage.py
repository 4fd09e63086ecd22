"""Every kind of damage that the intake is tested with: what leaves it in a folder, and words of the reason."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from tests.data.scan_files import scan, write, write_dicom

Damage = Callable[[Path], Any]


def _text(name: str) -> Damage:
    return lambda folder: (folder / name).write_text("these are notes and no image\n" * 40)


def _empty(name: str) -> Damage:
    return lambda folder: (folder / name).touch()


def _cut(name: str, share: float = 0.5) -> Damage:
    def damage(folder: Path) -> None:
        whole = write(folder / name, scan(7)).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def _renamed(written: str, name: str) -> Damage:
    return lambda folder: write(folder / written, scan(7)).rename(folder / name)


def _flipped(folder: Path) -> None:
    path = write(folder / "bad.nii.gz", scan(7))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _header(at: int, value: bytes) -> Damage:
    """A NIfTI whose header has other bytes at a place."""

    def damage(folder: Path) -> None:
        path = write(folder / "bad.nii", scan(7))
        content = bytearray(path.read_bytes())
        content[at : at + len(value)] = value
        path.write_bytes(content)

    return damage


def _values(name: str, value: float, everywhere: bool = False) -> Damage:
    def damage(folder: Path) -> None:
        image = scan(7, kind=np.float32)
        array = SimpleITK.GetArrayFromImage(image)
        array[(...,) if everywhere else (0, 0, 0)] = value
        write(folder / name, SimpleITK.GetImageFromArray(array))

    return damage


def _gzip_of_nothing(folder: Path) -> None:
    (folder / "bad.nii.gz").write_bytes(gzip.compress(b""))


def _only_a_header(folder: Path) -> None:
    content = gzip.decompress(write(folder / "bad.nii.gz", scan(7)).read_bytes())
    (folder / "bad.nii.gz").write_bytes(gzip.compress(content[:352]))


def _trailing(folder: Path) -> None:
    """Two transfers into one file: the second gzip member is cut."""
    whole = write(folder / "bad.nii.gz", scan(7)).read_bytes()
    (folder / "bad.nii.gz").write_bytes(whole + whole[:60])


def _detached(name: str, keep: int | None) -> Damage:
    """A header whose voxel file is gone (None) or cut."""

    def damage(folder: Path) -> None:
        write(folder / name, scan(7))
        voxels = next(
            path for path in folder.iterdir() if path.suffix in (".raw", ".zraw") or path.name == "bad.raw.gz"
        )
        content = voxels.read_bytes()
        voxels.unlink()
        if keep is not None:
            voxels.write_bytes(content[:keep])

    return damage


def _nrrd_without_sizes(folder: Path) -> None:
    content = write(folder / "bad.nrrd", scan(7)).read_bytes()
    (folder / "bad.nrrd").write_bytes(b"\n".join(line for line in content.split(b"\n") if b"sizes:" not in line))


def _nrrd_of_more(folder: Path) -> None:
    content = write(folder / "bad.nrrd", scan(7)).read_bytes()
    (folder / "bad.nrrd").write_bytes(content.replace(b"sizes: 12 10 8", b"sizes: 12 10 9"))


def _dangling(folder: Path) -> None:
    (folder / "bad.nii.gz").symlink_to(folder / "nowhere.nii.gz")


def _series(folder: Path) -> str:
    """A series of its own for every folder."""
    return f"1.2.3.{zlib.crc32(str(folder).encode())}"


def _dicom(change: Callable[[list[Path]], Any]) -> Damage:
    return lambda folder: change(write_dicom(folder / "bad", scan(7), series=_series(folder)))


def _cut_file(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def _incomplete_times(folder: Path) -> None:
    write_dicom(folder / "bad", scan(7), series=_series(folder))
    write_dicom(folder / "bad", scan(8), series=_series(folder), start=100)[3].unlink()


def _one_bad_time(folder: Path) -> None:
    array = SimpleITK.GetArrayFromImage(scan(7, (12, 10, 8, 3), np.float32))
    array[1] = 0
    write(folder / "bad.nii.gz", SimpleITK.GetImageFromArray(array, isVector=False))


def _random_bytes(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(np.random.default_rng(3).bytes(4000))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty .nii.gz": (_empty("bad.nii.gz"), "empty file"),
    "empty .nii": (_empty("bad.nii"), "empty file"),
    "empty .nrrd": (_empty("bad.nrrd"), "empty file"),
    "empty .mha": (_empty("bad.mha"), "empty file"),
    "empty .dcm": (_empty("bad.dcm"), "empty file"),
    "text named .nii.gz": (_text("bad.nii.gz"), "not a NIfTI"),
    "text named .nii": (_text("bad.nii"), "not a NIfTI"),
    "text named .nrrd": (_text("bad.nrrd"), "cannot be read"),
    "text named .mha": (_text("bad.mha"), "cannot be read"),
    "text named .dcm": (_text("bad.dcm"), "cannot be read as DICOM"),
    "random bytes named .nii.gz": (_random_bytes("bad.nii.gz"), "not a NIfTI"),
    "random bytes named .mhd": (_random_bytes("bad.mhd"), "cannot be read"),
    "half a .nii.gz": (_cut("bad.nii.gz"), "truncated"),
    "a .nii.gz without its last bytes": (_cut("bad.nii.gz", 0.99), "truncated"),
    "half a .nii": (_cut("bad.nii"), "truncated"),
    "half a .nrrd": (_cut("bad.nrrd"), "cannot be read"),
    "half a .mha": (_cut("bad.mha"), "incomplete"),
    "a flipped byte in .nii.gz": (_flipped, "corrupt"),
    "gzip of nothing": (_gzip_of_nothing, "not a NIfTI"),
    "only a header": (_only_a_header, "truncated"),
    "a second, cut gzip member": (_trailing, "truncated or corrupt"),
    "gzip named .nii": (_renamed("x.nii.gz", "bad.nii"), "not a NIfTI"),
    "plain NIfTI named .nii.gz": (_renamed("x.nii", "bad.nii.gz"), "not a NIfTI"),
    "NRRD named .nii.gz": (_renamed("x.nrrd", "bad.nii.gz"), "not a NIfTI"),
    "MHA named .nrrd": (_renamed("x.mha", "bad.nrrd"), "cannot be read"),
    "PNG named .mha": (
        lambda folder: write(folder / "x.png", scan(7, kind=np.uint8)[:, :, 0]).rename(folder / "bad.mha"),
        "cannot be read",
    ),
    "NaN in .nii.gz": (_values("bad.nii.gz", np.nan), "1 NaN or Inf"),
    "Inf in .nrrd": (_values("bad.nrrd", np.inf), "1 NaN or Inf"),
    "only NaN in .mha": (_values("bad.mha", np.nan, True), "960 NaN or Inf"),
    "constant image": (_values("bad.nii.gz", 3.0, True), "constant"),
    "zero slices": (_header(40, struct.pack("<4h", 3, 12, 10, 0)), "12x10x0"),
    "negative side": (_header(40, struct.pack("<4h", 3, 12, -10, 8)), "12x-10x8"),
    "more voxels promised than stored": (_header(40, struct.pack("<4h", 3, 120, 100, 80)), "truncated"),
    "unknown data type": (_header(70, struct.pack("<h", 999)), "999"),
    "broken magic": (_header(344, b"xx1\0"), "NIfTI"),
    "zero spacing": (_header(80, struct.pack("<3f", 0.0, 0.75, 2.0)), "spacing (0, 0.75, 2)"),
    "NaN spacing": (_header(80, struct.pack("<3f", np.nan, 0.75, 2.0)), "spacing (nan, 0.75, 2)"),
    "NRRD without sizes": (_nrrd_without_sizes, "cannot be read"),
    "NRRD with a slice too few": (_nrrd_of_more, "cannot be read"),
    ".mhd without voxels": (_detached("bad.mhd", None), "incomplete"),
    ".mhd with half of its voxels": (_detached("bad.mhd", 700), "incomplete"),
    ".nhdr without voxels": (_detached("bad.nhdr", None), "cannot be read"),
    "link that leads nowhere": (_dangling, "no such file"),
    "one constant time of a 4D file": (_one_bad_time, "constant"),
    "DICOM with a missing slice": (_dicom(lambda files: files[3].unlink()), "slices missing"),
    "DICOM times of different lengths": (_incomplete_times, "slices missing"),
    "DICOM slice cut in its header": (_dicom(lambda files: _cut_file(files[3], 200)), "cannot be read as DICOM"),
    "DICOM slice without voxels": (
        _dicom(lambda files: _cut_file(files[3], files[3].stat().st_size - 150)),
        "cannot be read as DICOM",
    ),
}  # fmt: skip

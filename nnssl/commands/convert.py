"""`nnssl_convert`: public data sets to nnU-Net raw folders, and a check that lists every problem of a raw folder."""

import argparse
import ast
import importlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import nnssl.dataset_conversion
from nnssl.commands import command_line
from nnssl.dataset_conversion.raw_dataset import check_raw_dataset, list_cases, load_dataset_json
from nnssl.paths import dataset_id, raw_folder

EXAMPLES = """  nnssl_convert --list
  nnssl_convert decathlon -i Task04_Hippocampus           writes $nnUNet_raw/Dataset004_Hippocampus
  nnssl_convert decathlon -i Task04_Hippocampus -d 504    writes $nnUNet_raw/Dataset504_Hippocampus
  nnssl_convert --check 4                                 or --check FOLDER
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_line.parser("nnssl_convert", __doc__ or "", EXAMPLES)
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument("converter", nargs="?", help="which data set; --list shows the known ones")
    parser.add_argument("-i", metavar="FOLDER", help="the downloaded and unpacked data set")
    parser.add_argument("-d", type=int, metavar="NUMBER", help="[OPTIONAL] number of the new data set, 1 to 999")
    parser.add_argument("-np", type=int, default=workers, help=f"[OPTIONAL] worker processes; default {workers}")
    parser.add_argument("--list", action="store_true", help="list the known data sets")
    parser.add_argument(
        "--check", metavar="DATASET", help="list every problem of a raw data set (number, name, folder)"
    )
    return command_line.run(_work, parser, argv)


def _work(arguments: argparse.Namespace) -> int:
    if arguments.np < 1:
        raise ValueError(f"-np {arguments.np}: give the number of worker processes, 1 or more")
    if arguments.list:
        return _list()
    if arguments.check:
        return _check(raw_dataset_folder(arguments.check), arguments.np)
    if not arguments.converter:
        raise ValueError("nothing to do: give a data set to convert, --list, or --check DATASET (see --help)")
    if not arguments.i:
        raise ValueError(f"converting {arguments.converter}: give the folder of the downloaded data with -i FOLDER")
    return _convert(converter(arguments.converter), Path(arguments.i), number=arguments.d, workers=arguments.np)


def converters() -> dict[str, Path]:
    """Name -> file of every converter, found by file name: DatasetNNN_Name.py is called name."""
    folder = Path(str(nnssl.dataset_conversion.__file__)).parent
    return {path.stem[11:].lower(): path for path in sorted(folder.glob("Dataset[0-9][0-9][0-9]_*.py"))}


def converter(name: str) -> ModuleType:
    """The module of a converter.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    known = converters()
    if name.lower() not in known:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(known)}")
    return importlib.import_module(f"nnssl.dataset_conversion.{known[name.lower()].stem}")


def raw_dataset_folder(text: str) -> Path:
    """The raw folder meant by a path, a folder name in $nnUNet_raw, a name without number, or a number.

    Raises:
        FileNotFoundError, ValueError: none or several fit.
    """
    if Path(text).is_dir() and not text.isdigit():
        return Path(text)
    raw = raw_folder()
    folders = [path for path in sorted(raw.glob("Dataset[0-9][0-9][0-9]_*")) if path.is_dir()]
    start = f"Dataset{int(text):03d}_" if text.isdigit() else None
    found = [
        path for path in folders if (path.name.startswith(start) if start else text in (path.name, path.name[11:]))
    ]
    if not found:
        raise FileNotFoundError(
            f"data set {text!r}: neither a folder nor a data set in {raw}; give a path, a number or a name"
        )
    if len(found) > 1:
        raise ValueError(
            f"data set {text!r} is ambiguous: {', '.join(path.name for path in found)}; give the full name"
        )
    return found[0]


def _list() -> int:
    for name, path in converters().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"{name}: {text.splitlines()[0] if text else ''}")
    return 0


def _check(folder: Path, workers: int) -> int:
    started = time.monotonic()
    problems = check_raw_dataset(folder, workers, progress=True)
    seconds = time.monotonic() - started
    if problems:
        print(f"{folder.name}: {len(problems)} problem(s) ({seconds:.1f} s)")
        print("\n".join(f"  {problem}" for problem in problems))
        return 1
    cases = list_cases(folder, load_dataset_json(folder))
    labelled = sum(case.label is not None for case in cases)
    print(f"{folder.name}: no problem in {len(cases)} training cases, {labelled} labelled ({seconds:.1f} s)")
    return 0


def _convert(module: ModuleType, source: Path, *, number: int | None, workers: int) -> int:
    """Convert beside the target and move into place at the end: a stopped conversion leaves no half data set."""
    if not source.is_dir():
        raise FileNotFoundError(f"converting {source}: no such folder; give the unpacked data set with -i FOLDER")
    proposed, name = module.identity(source)
    number = proposed if number is None else number
    if not 1 <= number <= 999:
        raise ValueError(f"-d {number}: the number of a data set must lie in 1 to 999")
    target = raw_folder() / f"Dataset{number:03d}_{name}"
    _refuse_existing(target)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        problems = module.convert(source, partial, workers=workers)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    cases = len(list_cases(target, load_dataset_json(target)))
    print(f"wrote {target}: {cases} training cases; check it with: nnssl_convert --check {target.name}")
    if problems:
        print(f"{len(problems)} case(s) left out:\n" + "\n".join(f"  {problem}" for problem in problems))
    return 1 if problems else 0


def _refuse_existing(target: Path) -> None:
    """A number belongs to one data set: refuse where it is taken."""
    taken = [path for path in target.parent.glob(f"{target.name[:11]}*") if path.is_dir() and any(path.iterdir())]
    if taken:
        raise ValueError(
            f"data set {dataset_id(target.name)} exists already: {taken[0]}; "
            "choose another number with -d, or remove it first"
        )

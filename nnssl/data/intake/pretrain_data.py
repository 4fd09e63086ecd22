"""MIC-DKFZ's pretrain_data.json: read as a Collection and written from one, each mask in its own place."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnssl.data.intake.collection import Collection, Source
from nnssl.paths import load_json, save_json

MASKS = {"anonymization": "anonymization_mask", "anatomy": "anatomy_mask"}  # ours -> theirs
FOLDER_VARIABLES = ("nnssl_raw", "nnUNet_raw")  # a path below one of these folders is written as $VARIABLE/...


def read_pretrain_data(path: Path) -> Collection:
    """Images of all data sets, subjects and sessions; `$VAR/` in paths is replaced from the environment.

    Raises:
        ValueError: not such a file, an entry without image_path, or a variable that is not set; names the entry.
    """
    values = load_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("datasets"), dict):
        raise ValueError(f"{path}: no 'datasets' in it; expected MIC-DKFZ's pretrain_data.json")
    sources = [_source(path, words, image) for words, image in _images(path, values["datasets"])]
    return Collection("pretrain_data.json", tuple(sources))


def write_pretrain_data(sources: Sequence[Source], path: Path, *, number: int, name: str) -> None:
    """Write single-file images as data set `number` of collection `name`; upstream's loader accepts exactly these keys.

    Raises:
        ValueError: an image of several files, or two images of the same name in one session.
    """
    subjects: dict[str, Any] = {}
    for source in sources:
        if len(source.images[0]) != 1:
            raise ValueError(f"writing {path}: {source.place} is not a single file; import it into a raw folder first")
        subject = subjects.setdefault(
            source.subject, {"subject_id": source.subject, "subject_info": None, "sessions": {}}
        )
        key = source.session or "ses-1"
        session = subject["sessions"].setdefault(key, {"session_id": key, "session_info": None, "images": []})
        for (file,) in source.images:
            if any(image["name"] == file.name for image in session["images"]):
                raise ValueError(f"writing {path}: {source.subject} {key} has two images named {file.name}")
            session["images"].append(_entry(file, source))
    index = str(number)
    dataset = {"dataset_index": index, "name": name, "dataset_info": None, "subjects": subjects}
    save_json({"collection_index": index, "collection_name": name, "datasets": {index: dataset}}, path)


def _entry(file: Path, source: Source) -> dict[str, Any]:
    masks = {theirs: _shorten(source.masks[ours]) if ours in source.masks else None for ours, theirs in MASKS.items()}
    return {
        "name": file.name,
        "image_path": _shorten(file),
        "modality": source.modality or "unknown",
        "image_info": {},
        "associated_masks": masks if source.masks else None,
    }


def _images(path: Path, datasets: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], dict[str, Any]]]:
    """((data set, subject, session), image) of every image."""
    try:
        for dataset_key, dataset in datasets.items():
            for subject_key, subject in dataset["subjects"].items():
                for session_key, session in subject["sessions"].items():
                    for image in session["images"]:
                        yield (dataset_key, subject_key, session_key), image
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected datasets > subjects > sessions > images as in MIC-DKFZ's pretrain_data.json, "
            f"failed at {error}"
        ) from error


def _source(path: Path, words: tuple[str, str, str], image: Any) -> Source:
    where = "/".join(words)
    if not isinstance(image, dict) or not isinstance(image.get("image_path"), str):
        raise ValueError(f"{path}: an image of {where} has no 'image_path'")
    masks = image.get("associated_masks") or {}
    file, modality = _expand(path, image["image_path"]), str(image.get("modality") or "")
    return Source(
        images=((file,),),
        place=f"{where}/{image.get('name') or file.name}",
        subject="/".join(words[:2]),
        session=words[2],
        modality=modality if modality.casefold() != "unknown" else "",
        masks={ours: _expand(path, masks[theirs]) for ours, theirs in MASKS.items() if masks.get(theirs)},
    )


def _expand(path: Path, text: str) -> Path:
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise ValueError(f"{path}: {text}: this environment variable is not set; export it and import again")
    return path.parent / expanded


def _shorten(file: Path) -> str:
    """`$VARIABLE/...` where the file lies below that folder, compared by whole folder names."""
    for variable in FOLDER_VARIABLES:
        folder = os.environ.get(variable)
        if folder and file.is_relative_to(folder):
            return f"${variable}/{file.relative_to(folder).as_posix()}"
    return str(file)

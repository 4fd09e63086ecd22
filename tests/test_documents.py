"""The documents name what exists: every line of the tables, links that lead somewhere, known files and settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from nnssl.encoders import ENCODERS
from nnssl.networks import DECODERS
from nnssl.pretext import TASKS
from nnssl.recipe import RECIPES, FineTuneRecipe, PretrainRecipe
from nnssl.trainers.finetune_network import NetworkSettings
from nnssl.weights.formats import LAYOUTS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = (FineTuneRecipe, PretrainRecipe, NetworkSettings, *(task.Config for task in TASKS.values()))


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ("README.md", [*ENCODERS, *DECODERS, *TASKS]),
        ("docs/pretraining.md", list(TASKS)),
        ("docs/networks.md", [*DECODERS, *RECIPES]),
        ("docs/weights.md", list(LAYOUTS)),
    ],
)
def test_every_line_of_a_table_is_documented(document: str, names: list[str]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = document.parent / name if name else document
        assert file.is_file(), target
        titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in anchors, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_settings_named_in_the_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    files = re.findall(
        r"`((?:nnssl|planners|trainers|tests|benchmarks|dataset_conversion|docs)/[\w/.]+\.(?:py|sh|md))`", text
    )
    placeholder = re.compile("NAME|TASK|NNN")
    assert [file for file in files if not placeholder.search(file) and not (ROOT / file).is_file()] == []
    known = {field.name for config in SETTINGS for field in dataclasses.fields(config)} | {"merge_order", "heads"}
    given = re.findall(r"--set '?(\w+)=", text)
    assert [key for key in given if key not in known | {"key", "KEY"}] == []

"""Every pretext task of the table on a tiny ViT and a tiny Swin, and a new one that is added here."""

import ast
from pathlib import Path

import pytest

import nnssl.pretext
from nnssl.encoders import encoder_spec
from nnssl.pretext import TASKS, build_task
from tests.pretext.contracts import CONTRACTS, TRAINING, Contract
from tests.pretext.tenth_task import Brightness
from tests.pretext.toys import ENCODERS, RECIPE, toy_task

EVERY_CONTRACT_IN_EVERY_FAMILY = pytest.mark.parametrize(
    ("family", "contract"),
    [
        pytest.param(
            family,
            contract,
            id=f"{family}-{contract.__name__}",
            marks=[pytest.mark.slow] if family != "vit" and contract in TRAINING else [],
        )
        for family in ENCODERS
        for contract in CONTRACTS
    ],
)
FOLDER = Path(nnssl.pretext.__file__).parent
SHARED = {
    "__init__",
    "base",
    "claims",
    "crop_task",
    "self_distillation",
    "teacher",
    "two_views",
}  # no task of their own
TASK_FILES = sorted(file for file in FOLDER.glob("*.py") if file.stem not in SHARED)


@EVERY_CONTRACT_IN_EVERY_FAMILY
@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_every_contract(name: str, family: str, contract: Contract) -> None:
    contract(name, family)


@EVERY_CONTRACT_IN_EVERY_FAMILY
def test_a_new_task_is_one_file_and_one_line_of_the_table(
    family: str, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "brightness", Brightness)
    contract("brightness", family)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="pretext task 'jigsaw' is unknown; known tasks: threedino, "):
        toy_task("jigsaw")


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.MASKS])
def test_a_task_that_hides_tokens_refuses_an_encoder_that_cannot(name: str) -> None:
    with pytest.raises(ValueError, match=r"hides tokens, which encoder 'resenc_l' cannot; take a ViT"):
        build_task(name, encoder_spec("resenc_l", (64, 64, 64)), RECIPE)


@pytest.mark.parametrize("file", TASK_FILES, ids=lambda file: file.stem)
def test_a_task_is_a_short_file(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 150


def test_no_two_tasks_share_six_lines() -> None:
    owner: dict[tuple[str, ...], str] = {}
    for file in TASK_FILES:
        lines = _code_lines(file)
        for start in range(len(lines) - 5):
            block = tuple(lines[start : start + 6])
            assert owner.setdefault(block, file.stem) == file.stem, "\n".join((owner[block], file.stem, *block))


def _code_lines(file: Path) -> list[str]:
    """Lines that do something: no imports, no docstrings, no blank lines, no comments."""
    text = file.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        said = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if said or isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    numbered = enumerate(text.splitlines(), start=1)
    lines = [line.split("  # ")[0].strip() for number, line in numbered if number not in skipped]
    return [line for line in lines if line and not line.startswith("#")]

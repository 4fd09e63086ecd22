"""The plan of the house: floors, torch-only rooms, short modules, no star imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nnssl", "planners", "trainers", "dataset_conversion")
FLOORS = {
    "config": 0, "paths": 0, "geometry": 0,
    "layers": 1, "losses": 1, "transforms": 1, "recipe": 1,
    "encoders": 2, "dataset_conversion": 2,
    "weights": 3, "networks": 3, "pretext": 3, "data": 3, "visualization": 3,
    "planners": 4, "inference": 4, "evaluation": 4,
    "trainers": 5,
    "commands": 6,
}  # fmt: skip
TORCH_ONLY = {
    "config",
    "paths",
    "geometry",
    "recipe",
    "layers",
    "losses",
    "transforms",
    "encoders",
    "pretext",
    "networks",
}
NNUNET = {
    "nnunetv2",
    "batchgenerators",
    "batchgeneratorsv2",
    "acvl_utils",
    "dynamic_network_architectures",
    "SimpleITK",
}


def _modules() -> list[Path]:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return [file for file in files if not any(parent.is_symlink() for parent in file.parents)]


def _room(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return (parts[1] if parts[0] == "nnssl" else parts[0]).removesuffix(".py")


def _imports(tree: ast.AST) -> list[str]:
    """Dotted names of all imports, also those inside functions; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


@pytest.fixture(params=_modules(), ids=lambda file: file.relative_to(ROOT).as_posix())
def module(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_module_imports_only_from_lower_floors_or_its_own_room(module: Path) -> None:
    room = _room(module)
    if room == "__init__":
        return
    assert room in FLOORS, f"{room} is on no floor"
    for name in _imports(ast.parse(module.read_text(encoding="utf-8"))):
        parts = name.split(".")
        if parts[0] == "nnssl" and len(parts) > 1 and parts[1] not in ("__version__", room):
            assert parts[1] in FLOORS, f"{name} is on no floor"
            assert FLOORS[parts[1]] < FLOORS[room], f"{name} lies on the same or a higher floor than {room}"
        assert not name.startswith("."), f"relative import {name}"
        assert parts[0] not in FOLDERS[1:], f"bare import {name}: say nnssl.{name}"


def test_rooms_for_bare_gpu_machines_need_only_torch_and_numpy(module: Path) -> None:
    if _room(module) in TORCH_ONLY:
        names = {name.split(".")[0] for name in _imports(ast.parse(module.read_text(encoding="utf-8")))}
        assert not names & NNUNET


def test_a_module_is_short_explains_itself_and_imports_no_star(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= 300
    assert not any(name.endswith(".*") for name in _imports(tree))
    if module.name != "__init__.py" or text.strip():
        assert ast.get_docstring(tree), "the first line says the one idea of the file"


def test_functions_stay_readable(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or node.lineno) - node.lineno < 45, f"{node.name} is too long"


def test_links_lead_to_the_folders_beside_the_package() -> None:
    for folder in FOLDERS[1:]:
        link = ROOT / "nnssl" / folder
        assert link.is_symlink() and link.resolve() == ROOT / folder

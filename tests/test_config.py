"""Configuration dataclasses: overrides, JSON, and errors that list what is known."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nnssl.config import flattened, from_dict, knows, override, to_dict
from nnssl.paths import load_json, save_json
from nnssl.recipe import FineTuneRecipe, PretrainRecipe


@dataclass(frozen=True)
class Toy:
    """One field of each kind that the configurations use."""

    count: int = 1
    rate: float = 0.5
    name: str = "a"
    flag: bool = False
    crop: tuple[int, int, int] = (1, 2, 3)
    limit: float | None = None
    inner: FineTuneRecipe = field(default_factory=FineTuneRecipe)


def test_overrides_are_read_by_the_type_of_the_field() -> None:
    toy = override(Toy(), ["count=3", "rate=2", "name=7up", "flag=true", "crop=[4,5,6]", "limit=1e-3"])
    assert toy == Toy(3, 2.0, "7up", True, (4, 5, 6), 0.001)
    assert override(toy, ["limit=None"]).limit is None


def test_a_config_survives_json() -> None:
    recipe = PretrainRecipe(global_crop=(32, 48, 64), steps=7)
    assert from_dict(PretrainRecipe, to_dict(recipe)) == recipe
    assert from_dict(Toy, to_dict(Toy(count=9))) == Toy(count=9)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("coutn=3", "known settings: count, rate"),
        ("count=many", "expected int, got 'many'"),
        ("count=true", "expected int"),
        ("crop=[1,2]", "expected 3 values"),
        ("crop=96", "expected a list"),
        ("crop=64,64,64", "expected a list"),
        ("count", "expected key=value"),
    ],
)
def test_a_wrong_override_says_what_is_allowed(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        override(Toy(), [assignment])


def test_a_recipe_refuses_impossible_values() -> None:
    with pytest.raises(ValueError, match=r"FineTuneRecipe\.lr=-1.0: must be above 0"):
        override(FineTuneRecipe(), ["lr=-1"])
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        override(PretrainRecipe(), ["warmup_fraction=2"])


def test_the_owner_of_a_key_is_found() -> None:
    assert knows(PretrainRecipe, "steps=4") and not knows(FineTuneRecipe, "steps=4")


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    save_json({"a": [1, 2]}, tmp_path / "good.json")
    assert load_json(tmp_path / "good.json") == {"a": [1, 2]}
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"bad\.json: not valid JSON"):
        load_json(tmp_path / "bad.json")


def test_nested_settings_flatten_to_dotted_keys() -> None:
    assert flattened({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}

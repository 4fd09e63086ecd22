"""Whether a pretraining run has collapsed: it looks dead for many steps in a row."""

from collections.abc import Mapping

from nnssl.recipe import PretrainRecipe

FEWEST_VOLUMES = 4  # in a batch; with fewer the effective rank is low by itself


class CollapseWatch:
    """Counts for how many steps in a row each symptom has been seen."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.first_step = round(recipe.steps * recipe.warmup_fraction)
        self.streaks: dict[str, int] = {}

    @property
    def suspicious(self) -> bool:
        """Whether the last step looked collapsed; its state is not worth keeping as the last good one."""
        return bool(self.streaks)

    def see(self, step: int, values: Mapping[str, float]) -> str | None:
        """Take note of the logged numbers of a step; returns what is wrong once it has lasted `collapse_steps`."""
        if step < self.first_step or not self.recipe.collapse_steps:
            return None
        found = symptoms(values, self.recipe)
        self.streaks = {name: self.streaks.get(name, 0) + 1 for name in found}
        for name, streak in self.streaks.items():
            if streak >= self.recipe.collapse_steps:
                return f"{found[name]} for {streak} steps"
        return None


def symptoms(values: Mapping[str, float], recipe: PretrainRecipe) -> dict[str, str]:
    """Name of a health number -> what it says; empty where all is well. Numbers that a task does not log are fine."""
    found = {}
    spread, rank, entropy = (values.get(name) for name in ("feature_std", "effective_rank", "teacher_entropy"))
    if spread is not None and spread < recipe.collapse_std:
        found["feature_std"] = f"feature_std={spread:.2g}, below {recipe.collapse_std:g}: all features are alike,"
    if rank is not None and rank < recipe.collapse_rank and recipe.batch_size >= FEWEST_VOLUMES:
        found["effective_rank"] = f"effective_rank={rank:.3g}, below {recipe.collapse_rank:g}: one direction is left,"
    if entropy is not None and not recipe.collapse_entropy <= entropy <= 1 - recipe.collapse_entropy:
        what = "uniform" if entropy > 0.5 else "one-hot"
        found["teacher_entropy"] = f"teacher_entropy={entropy:.4g}: all teacher targets are {what},"
    return found


def limits(recipe: PretrainRecipe) -> dict[str, list[float]]:
    """Health number -> the values beyond which it counts as a symptom."""
    return {
        "feature_std": [recipe.collapse_std],
        "effective_rank": [recipe.collapse_rank],
        "teacher_entropy": [recipe.collapse_entropy, 1 - recipe.collapse_entropy],
    }

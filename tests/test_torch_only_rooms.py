"""Encoders, pretext tasks and networks work on a machine that has only torch and numpy (and nnssl itself)."""

import subprocess
import sys

import pytest

HIDE = """
import importlib, importlib.abc, importlib.util, pkgutil, sys

HIDDEN = {
    "nnunetv2", "batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "acvl_utils", "SimpleITK",
    "nibabel", "blosc2", "scipy", "skimage", "sklearn", "pandas", "matplotlib", "monai", "seaborn",
}

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is hidden in this test", name=name)

sys.meta_path.insert(0, Hide())
look = importlib.util.find_spec  # asks without importing: absent packages have no spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in HIDDEN else look(name, *rest)

def import_room(name):
    room = importlib.import_module(f"nnssl.{name}")
    for module in pkgutil.iter_modules(getattr(room, "__path__", []), f"nnssl.{name}."):
        importlib.import_module(module.name)
"""

FORWARD = {
    "encoders": """
import torch
from nnssl.encoders import build_encoder
features = build_encoder("vit_tiny_8", native_crop=(16, 16, 16))(torch.rand(1, 1, 16, 24, 16))
assert features.maps[0].shape == (1, 192, 2, 3, 2) and torch.isfinite(features.summary).all()
features = build_encoder("swin_tiny")(torch.rand(1, 1, 32, 64, 32))
assert features.maps[4].shape == (1, 384, 1, 2, 1) and torch.isfinite(features.summary).all()
""",
    "pretext": """
import torch
from nnssl.config import knows
from nnssl.data.collation import collate
from nnssl.encoders import encoder_spec
from nnssl.pretext import TASKS, build_task
from nnssl.recipe import PretrainRecipe
recipe = PretrainRecipe(global_crop=(16, 16, 16), local_crop=(8, 8, 8), batch_size=2, steps=4)
spec = encoder_spec("vit_tiny_8", recipe.global_crop)
small = ["prototypes=32", "hidden=16", "bottleneck=8", "local_views=2"]
for name in TASKS:
    task = build_task(name, spec, recipe, [one for one in small if knows(TASKS[name].Config, one)])
    generator = torch.Generator().manual_seed(0)
    samples = [task.prepare(torch.rand(1, 24, 24, 24), generator) for _ in range(2)]
    batch = collate(samples)
    task.begin_step(0, 4)
    losses = task(task.augment(batch, generator))
    losses["loss"].backward()
    task.after_step(0, 4)
    assert torch.isfinite(losses["loss"])
""",
    "networks": """
import torch
from nnssl.encoders import encoder_spec
from nnssl.networks import decoders_for
from nnssl.networks.segmentor import EncoderSegmentor
for name, crop in (("vit_tiny_8", (16, 24, 16)), ("swin_tiny", (32, 64, 32))):
    for decoder in decoders_for(encoder_spec(name)):
        network = EncoderSegmentor(2, 3, name, decoder, adapter_width=32)
        logits = network(torch.rand(1, 2, *crop))
        assert logits.shape == (1, 3, *crop) and torch.isfinite(logits).all()
""",
}


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", HIDE + code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("room", FORWARD)
def test_a_room_imports_and_runs_without_nnunet(room: str) -> None:
    _run(f"import_room({room!r})\n{FORWARD[room]}")


def test_all_they_rest_on_and_the_training_loop_import_without_nnunet() -> None:
    rooms = ("config", "paths", "geometry", "recipe", "layers", "losses", "transforms", "weights")
    _run("".join(f"import_room({room!r})\n" for room in rooms) + "import nnssl.trainers.pretraining\n")


def test_the_hiding_itself_works() -> None:
    _run("try:\n    import nnunetv2\nexcept ModuleNotFoundError:\n    pass\nelse:\n    raise SystemExit(1)\n")

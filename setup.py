"""Packages, console scripts and the mapping of the three top-level folders into the package."""

from setuptools import find_packages, setup

TOP_LEVEL = ("planners", "trainers", "dataset_conversion")
COMMANDS = ("plan_and_preprocess", "pretrain", "train", "predict", "evaluate", "convert", "weights", "demo")
SCRIPTS = {name: name for name in COMMANDS} | {"import": "import_scans"}  # script -> module: `import` is a keyword

packages = ["nnssl"] + [f"nnssl.{name}" for name in find_packages("nnssl") if name.split(".")[0] not in TOP_LEVEL]
for folder in TOP_LEVEL:
    packages += [f"nnssl.{folder}"] + [f"nnssl.{folder}.{name}" for name in find_packages(folder)]
packages.append("nnssl.trainers.nnunet_plugin")  # a folder that nnU-Net scans: it holds one file and no __init__

setup(
    packages=packages,
    package_dir={"nnssl": "nnssl"} | {f"nnssl.{folder}": folder for folder in TOP_LEVEL},
    entry_points={"console_scripts": [f"nnssl_{name} = nnssl.commands.{file}:main" for name, file in SCRIPTS.items()]},
)

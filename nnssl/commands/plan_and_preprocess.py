"""nnssl_plan_and_preprocess: check, plan and preprocess raw data sets, labelled or not."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace

from nnssl.commands.command_line import add_device, device, parser, run
from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.data.parallel import default_processes
from nnssl.data.preprocess_run import Request, copy_labels, run_cases
from nnssl.data.preprocessing import NnsslPlansManager, NnsslPreprocessor
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec, IntensityRange
from nnssl.networks import DECODERS
from nnssl.paths import load_json, preprocessed_folder
from nnssl.planners.budgets import with_stored_views
from nnssl.planners.encoder_planner import (
    DEFAULT_ENCODER,
    RECIPE_ENCODERS,
    EncoderPlanner,
    Wishes,
    check_plans_name,
    default_plans_name,
    plan_together,
)
from nnssl.planners.estimate import estimates, keep_estimate
from nnssl.planners.explain import decision_table
from nnssl.planners.intensity import IntensityChoice, choose_intensity
from nnssl.planners.network import choose_decoder
from nnssl.planners.plan_page import write_plan_page
from nnssl.recipe import RECIPES
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.identify import identify

CONFIGURATIONS = ("3d_fullres", "pretrain")
EXAMPLES = """  nnssl_plan_and_preprocess -d 4
  nnssl_plan_and_preprocess -d 4 201 -e vit_small_8 -np 4
  nnssl_plan_and_preprocess -d 101 -e vit_base_16 -intensity window:-175,250 -plans_name nnsslPlansSoftTissue
  nnssl_plan_and_preprocess -d 101 --recipe smit_many -pretrained_weights smit.pt"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return run(plan_and_preprocess, command(), argv)


def command() -> argparse.ArgumentParser:
    """The command line."""
    words = parser("nnssl_plan_and_preprocess", "Check, plan and preprocess raw data sets, labelled or not.", EXAMPLES)
    add = words.add_argument
    datasets = "[REQUIRED] data sets by number or name; the pretrain configuration is planned once over all of them"
    add("-d", nargs="+", required=True, metavar="DATASET", help=datasets)
    add(
        "-e",
        metavar="ENCODER",
        help=f"[OPTIONAL] encoder; default what the weights hold, smit_96 for SMIT's recipes, else {DEFAULT_ENCODER}",
    )
    add("-pretrained_weights", metavar="FILE", help="[OPTIONAL] plan for these weights: encoder, crop and intensity")
    _add_network_words(words)
    add(
        "-intensity",
        metavar="RULE",
        help="[OPTIONAL] percentile, percentile:LOW,HIGH (percent of the whole image) or "
        "window:LOW,HIGH (raw values); default: the recipe's, what the weights say, the encoder's preset; a window of "
        "Hounsfield units becomes percentile:5,95 unless all channels are CT",
    )
    add("-gpu_memory_target", type=float, default=8.0, metavar="GB", help="[OPTIONAL] default 8")
    add(
        "-plans_name",
        metavar="NAME",
        help="[OPTIONAL] default nnsslPlans_<encoder>, with --recipe nnsslPlans_<encoder>_<recipe>",
    )
    add(
        "-overwrite_target_spacing",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="[OPTIONAL] spacing of 3d_fullres in mm, X Y Z of RAS (nnU-Net's own flag is Z Y X); default: the "
        "recipe's, what the encoder was made for, else nnU-Net's, refined until the tokens suffice",
    )
    _add_running_words(words)
    return words


def _add_network_words(words: argparse.ArgumentParser) -> None:
    words.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"[OPTIONAL] {', '.join(RECIPES)}: fine-tune as a paper did (decoder, norm, frozen or trained encoder, "
        "batch, crop, spacing, intensity, length, learning rate); default: the encoder's own crop and spacing, "
        "3DINO's length, encoder frozen",
    )
    words.add_argument(
        "-decoder",
        metavar="NAME",
        help=f"[OPTIONAL] {', '.join(DECODERS)}; default: the recipe's, else unet for ViT and ResEnc, swin_unetr for "
        "Swin, unetr for Primus",
    )
    words.add_argument(
        "-channels",
        metavar="RULE",
        help="[OPTIONAL] of several image channels: mix (one at a time, then mixed; default for ViT), replicate (all "
        "at once, patch weights replicated; default for others) or reinit (all at once, new patch weights)",
    )


def _add_running_words(words: argparse.ArgumentParser) -> None:
    add = words.add_argument
    add(
        "-c",
        nargs="+",
        choices=CONFIGURATIONS,
        metavar="CONFIGURATION",
        help="[OPTIONAL] what to preprocess: "
        "3d_fullres pretrain; default both, only pretrain for data sets without labels. Both are always planned",
    )
    cores = "[OPTIONAL] processes; default one per core. Fewer cases are in work at once where memory is short"
    add("-np", type=int, metavar="N", help=cores)
    add("-num_parts", type=int, default=1, metavar="N", help="[OPTIONAL] preprocess every N-th case only (array jobs)")
    add("-part_id", type=int, default=0, metavar="I", help="[OPTIONAL] which of the -num_parts, from 0")
    cluster = "[OPTIONAL] run on the workers of this Dask scheduler (package distributed), which share the folders"
    add("-scheduler", metavar="ADDRESS", help=f"{cluster}: tcp://host:8786")
    add("--fail_fast", action="store_true", help="[OPTIONAL] stop at the first case that fails")
    add(
        "-stored_views",
        nargs=2,
        type=int,
        metavar=("GLOBAL", "LOCAL"),
        help="[OPTIONAL] store for 3DINO's cubic views of these sides, in voxels (second stage: 112 64); default: the "
        "planned crops",
    )
    add("--no_pp", action="store_true", help="[OPTIONAL] check and plan only")
    told = (
        "[OPTIONAL] check and plan only, measure a few cases and training steps on -device, and say what the plan takes"
    )
    add("--estimate", action="store_true", help=f"{told} here: hours, disk, memory")
    add_device(words)
    add("--clean", action="store_true", help="[OPTIONAL] check the scans again although no file has changed")
    add("--verify_dataset_integrity", action="store_true", help="[OPTIONAL] accepted; every scan is always checked")


def plan_and_preprocess(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 if some cases could not be used; they are listed at the end."""
    processes = default_processes() if arguments.np is None else arguments.np
    _check_running_words(arguments, processes)
    raws = list({raw.name: raw for raw in map(open_dataset, arguments.d)}.values())
    channel_names = [name for raw in raws for name in raw.dataset_json["channel_names"].values()]
    spec, intensity = choose_encoder(arguments, channel_names)
    choose_decoder(spec, arguments.decoder, _wishes(arguments).preset)
    for raw in raws:
        check_plans_name(_plans_name(arguments, spec), raw.name)
    problems: list[str] = []
    for raw in raws:
        found = fingerprint(raw, processes=processes, clean=arguments.clean, scheduler=arguments.scheduler)
        problems += [line for lines in found.bad_cases.values() for line in lines]
    planners = _plan(arguments, raws, spec, intensity)
    if arguments.estimate:
        _print_estimates(planners, str(device(arguments)), processes)
    elif not arguments.no_pp and not (problems and arguments.fail_fast):
        problems += _preprocess(arguments, raws, spec, processes)
    if problems:
        print(f"\n{len(problems)} problem(s); these cases were left out:")
        print("\n".join(f"  {line}" for line in problems))
    return 1 if problems else 0


def choose_encoder(arguments: argparse.Namespace, channel_names: Sequence[str]) -> tuple[EncoderSpec, IntensityChoice]:
    """The encoder with the intensity range for these channels, and why that range."""
    spec, stated = _encoder_of(arguments)
    choice = choose_intensity(
        spec.intensity,
        channel_names,
        flag=read_intensity(arguments.intensity, spec.intensity) if arguments.intensity else None,
        recipe=_wishes(arguments).preset,
        weights=stated,
    )
    return replace(spec, intensity=choice.intensity), choice


def _encoder_of(arguments: argparse.Namespace) -> tuple[EncoderSpec, IntensityRange | None]:
    """The encoder that was asked for or that the weights hold, and the intensity that the weights state."""
    if not arguments.pretrained_weights:
        return encoder_spec(arguments.e or RECIPE_ENCODERS.get(arguments.recipe, DEFAULT_ENCODER)), None
    weights = read_weights(arguments.pretrained_weights)
    found = identify(weights, arguments.e)
    if arguments.e not in (None, found.encoder):
        raise ValueError(
            f"-e {arguments.e} does not fit -pretrained_weights, which hold {found.encoder}; leave -e out or correct it"
        )
    spec = found.spec()
    if spec.native_spacing and weights.header and weights.header.spacing_mm:
        spec = replace(spec, native_spacing=weights.header.spacing_mm)  # of the volumes it was pretrained on
    return spec, found.intensity


def read_intensity(text: str, preset: IntensityRange) -> IntensityRange:
    """`percentile`, `percentile:LOW,HIGH` or `window:LOW,HIGH`; the encoder's own range is kept."""
    kind, _, bounds = text.partition(":")
    if text == "percentile":
        default = IntensityRange()
        return replace(preset, kind="percentile", low=default.low, high=default.high)
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)"
    match = re.fullmatch(rf"({number}),({number})", bounds)
    if kind not in ("percentile", "window") or match is None:
        raise ValueError(f"-intensity {text!r}: give percentile, percentile:0.05,99.95 or window:-175,250")
    return replace(preset, kind=kind, low=float(match.group(1)), high=float(match.group(2)))


def _plan(
    arguments: argparse.Namespace, raws: list[RawDataset], spec: EncoderSpec, intensity: IntensityChoice
) -> list[EncoderPlanner]:
    spacing = arguments.overwrite_target_spacing
    planners = [
        EncoderPlanner(
            raw.name,
            arguments.gpu_memory_target,
            plans_name=_plans_name(arguments, spec),
            overwrite_target_spacing=None if spacing is None else spacing[::-1],
            spec=spec,
            wishes=_wishes(arguments),
        )
        for raw in raws
    ]
    together = with_stored_views(plan_together(planners), arguments.stored_views)
    for planner in planners:
        planner.intensity, planner.trained = intensity, bool(arguments.pretrained_weights)
        planner.pretrain_plan = together
        planner.plan_experiment()
        print(decision_table(f"\n{planner.raw.name}, encoder {spec.name}", planner.decisions))
        print(f"plans: {preprocessed_folder() / planner.raw.name / planner.plans_identifier}.json")
        print(f"in words and pictures: {write_plan_page(planner)}")
    return planners


def _print_estimates(planners: list[EncoderPlanner], device_name: str, processes: int) -> None:
    """Measure, print, and add what was measured to plans and pages."""
    for planner, rows in zip(planners, estimates(planners, device_name, processes), strict=True):
        print(decision_table(f"\n{planner.raw.name}, what the plan takes on this machine", rows), flush=True)
        keep_estimate(planner, rows)
        write_plan_page(planner, rows)


def _preprocess(arguments: argparse.Namespace, raws: list[RawDataset], spec: EncoderSpec, processes: int) -> list[str]:
    """Problems, one line each."""
    problems: list[str] = []
    part = (arguments.part_id, arguments.num_parts)
    for raw in raws:
        copy_labels(raw)
        configurations = tuple(arguments.c or (CONFIGURATIONS if raw.labelled else CONFIGURATIONS[1:]))
        request = Request(configurations, processes, part, arguments.scheduler, arguments.fail_fast)
        plans = load_json(preprocessed_folder() / raw.name / f"{_plans_name(arguments, spec)}.json")
        failures = run_cases(NnsslPreprocessor().store_case, raw, NnsslPlansManager(plans), request)
        problems += [f"{raw.name} case {case}: {text}" for case, text in failures.items()]
        if problems and arguments.fail_fast:
            break
    return problems


def _check_running_words(arguments: argparse.Namespace, processes: int) -> None:
    if processes < 1:
        raise ValueError(f"-np {processes}: give 1 or more processes")
    if not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(
            f"-part_id {arguments.part_id} of -num_parts {arguments.num_parts}: parts are numbered from 0 to N - 1; "
            "an array job gives its own number"
        )
    if arguments.stored_views and min(arguments.stored_views) < 1:
        raise ValueError(f"-stored_views {arguments.stored_views}: give two sides above 0 in voxels, such as 112 64")


def _wishes(arguments: argparse.Namespace) -> Wishes:
    return Wishes(arguments.recipe, arguments.decoder, arguments.channels)


def _plans_name(arguments: argparse.Namespace, spec: EncoderSpec) -> str:
    return arguments.plans_name or default_plans_name(spec.name, arguments.recipe)

"""`nnssl_weights`: what a weight file holds, whether it was loaded right, and the file for other packages."""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnssl.commands import command_line
from nnssl.config import to_dict
from nnssl.encoders import ENCODERS
from nnssl.encoders.base import Encoder, EncoderSpec
from nnssl.weights.encoder_file import Weights, read_weights
from nnssl.weights.export import TARGETS, export_encoder
from nnssl.weights.fingerprint import fingerprint
from nnssl.weights.header import EncoderHeader
from nnssl.weights.hub import fetch, sha256
from nnssl.weights.identify import identify
from nnssl.weights.load import SWITCHES, LoadReport, load_weights
from nnssl.weights.sources import CONVERTED_FROM, UNKNOWN, Source, origin_of, source_of
from nnssl.weights.unwrap import shown

LINE = 2000  # characters; a file's own words are not printed without end
log = logging.getLogger(__name__)

EXAMPLES = """  nnssl_weights inspect 3dino_vit_weights.pth
  nnssl_weights inspect hf://AICONSlab/3DINO-ViT/3dino_vit_weights.pth@main
  nnssl_weights verify encoder.safetensors -device cpu
  nnssl_weights convert model_swinvit.pt -o swin.safetensors --set merge_order=monai15
  nnssl_weights export encoder.safetensors -o encoder_nnunet.pth --format nnunet
"""


@dataclass(frozen=True)
class Opened:
    """A weight file and the encoder with its weights."""

    path: Path
    weights: Weights
    encoder: Encoder
    report: LoadReport


def main(argv: Sequence[str] | None = None) -> int:
    """Console script."""
    parser = command_line.parser("nnssl_weights", __doc__ or "", EXAMPLES)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add(actions, "inspect", _inspect, "what a file holds: format, encoder, intensity, spacing, origin, licence")
    verify = _add(actions, "verify", _verify, "features of a fixed volume as a fingerprint: equal weights, equal hash")
    command_line.add_device(verify)
    convert = _add(actions, "convert", _convert, "write the encoder as a file of nnssl (safetensors with a header)")
    export = _add(actions, "export", _export, "write the encoder for another package")
    for action in (convert, export):
        action.add_argument("-o", metavar="OUT", required=True, help="[REQUIRED] the new file")
        action.add_argument("--overwrite", action="store_true", help="[OPTIONAL] replace an existing file")
    export.add_argument("--format", choices=tuple(TARGETS), required=True, help="[REQUIRED] who shall read it")
    return command_line.run(lambda arguments: arguments.work(arguments), parser, argv)


def _add(actions: Any, name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    examples = "\n".join(line for line in EXAMPLES.splitlines() if f"nnssl_weights {name}" in line)
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="a weight file of any known format, a URL, or hf://ORG/REPO/FILE")
    parser.add_argument("-e", metavar="ENCODER", help="[OPTIONAL] encoder to take where several fit the tensors")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="[OPTIONAL] what no tensor shows: merge_order=monai15"
    )
    parser.add_argument("--allow_partial", action="store_true", help="[OPTIONAL] accept missing and extra tensors")
    parser.set_defaults(work=work)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    opened = _open(arguments, allow_partial=True)
    spec, header = opened.encoder.spec, _header(opened)
    parameters = sum(parameter.numel() for parameter in opened.encoder.parameters())
    low, high = spec.intensity.encoder_range
    crop = f"crop {_times(spec.native_crop)} (multiples of {spec.crop_multiple})"
    lines = {
        "file": f"{arguments.file}, {opened.path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(opened.path)}",
        "format": opened.weights.format_name,
        "encoder": f"{spec.name} ({spec.family}), channels {_list(spec.channels)} at strides {_list(spec.strides)}",
        "options": json.dumps(spec.options) if spec.options else "none",
        "switches": _switches(spec) or "none",
        "input": f"{spec.input_channels} channel(s), {crop} voxels",
        "intensity": f"{spec.intensity} -> [{low:g}, {high:g}]",
        "spacing": f"{_times(header.spacing_mm)} mm" if header.spacing_mm else "any: trained without resampling",
        "orientation": f"{header.orientation}, axes {header.axes}",
        "parameters": f"{parameters / 1e6:.3f} M",
        "tensors": opened.report.summary(),
        "provenance": _provenance(opened.weights),
        "licence": _licence(source_of(opened.weights)),
    }
    for key, text in lines.items():
        print(f"{key:12} {shown(text, LINE)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    device = command_line.device(arguments)
    opened = _open(arguments, allow_partial=arguments.allow_partial)
    found = fingerprint(opened.encoder, device)
    print(f"{opened.encoder.spec.name}: {opened.report.summary()}")
    print(f"features of the fixed volume of {_times(found.crop)} voxels in float32:")
    for one in found.maps:
        print(f"  {_times(one.shape):>18}  mean {one.mean:+.5f}  std {one.std:.5f}")
    print("  values " + " ".join(f"{value:+.3f}" for value in found.values))
    print(f"fingerprint {found.hash}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    arguments.format = "nnssl"
    return _export(arguments)


def _export(arguments: argparse.Namespace) -> int:
    target = Path(arguments.o)
    if target.exists() and not arguments.overwrite:
        raise ValueError(f"writing {target}: it exists; choose another name with -o, or --overwrite")
    opened = _open(arguments, allow_partial=arguments.allow_partial)
    usage = export_encoder(target, opened.encoder, _header(opened), target=arguments.format)
    print(f"{opened.encoder.spec.name}: {opened.report.summary()}")
    source = source_of(opened.weights)
    if source and not source.may_share:
        log.warning("warning: %s; keep %s to yourself", source.licence, target.name)
    print(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB); use it with: {usage}")
    return 0


def _open(arguments: argparse.Namespace, *, allow_partial: bool) -> Opened:
    path = fetch(arguments.file)
    weights = read_weights(path, _options(arguments.set))
    try:
        encoder = identify(weights, arguments.e).build()
        report = load_weights(encoder, weights, allow_partial=allow_partial)
    except ValueError as error:
        raise ValueError(f"reading weights {arguments.file}: {error}") from error
    return Opened(path, weights, encoder.eval(), report)


def _options(assignments: Sequence[str]) -> dict[str, Any]:
    options = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set {assignment!r}: expected key=value, such as merge_order=monai15")
        try:
            options[key] = json.loads(text)
        except json.JSONDecodeError:
            options[key] = text
    return options


def _header(opened: Opened) -> EncoderHeader:
    """The file's own header, or one that says where the weights come from."""
    spec = opened.encoder.spec
    if opened.weights.header is not None:
        return replace(opened.weights.header, encoder=spec.name, encoder_options=spec.options)
    source = source_of(opened.weights)
    plan = {CONVERTED_FROM: origin_of(opened.weights) or opened.weights.format_name} | (
        {"licence": source.licence} if source else {}
    )
    return EncoderHeader(
        spec.name,
        spec.native_crop,
        spec.intensity,
        spec.native_spacing,
        orientation=source.orientation if source else UNKNOWN,
        plan=plan,
        encoder_options=spec.options,
    )


def _switches(spec: EncoderSpec) -> str:
    """What no tensor shows, in full."""
    line = to_dict(ENCODERS[spec.name]) | spec.options
    return ", ".join(f"{key} {line[key]}" for key in SWITCHES if key in line)


def _provenance(weights: Weights) -> str:
    header = weights.header
    if header is None:
        origin = weights.facts.origin
        return f"fine-tuned with nnssl from format {origin}" if origin else "unknown: only files of nnssl say it"
    if CONVERTED_FROM in header.plan:
        return f"converted from a file of format {header.plan[CONVERTED_FROM]} by nnssl {header.package_version}"
    data = header.data
    cases = f"{data.cases} cases (data hash {data.data_hash})" if data else "cases not recorded"
    return f"task {header.task or 'unknown'}, {header.steps} steps, {cases}, nnssl {header.package_version}"


def _licence(source: Source | None) -> str:
    if source is None:
        return "trained with nnssl: yours to choose, within what the images allow"
    return source.licence + ("" if source.may_share else "; a converted file must not be passed on")


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _times(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)

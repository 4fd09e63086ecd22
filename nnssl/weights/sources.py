"""Whose weights a format holds: licence and paper."""

from dataclasses import dataclass

from nnssl.weights.encoder_file import Weights
from nnssl.weights.header import EncoderHeader

CONVERTED_FROM = "converted_from"  # key in the plan of a converted file's header

THREEDINO_PAPER = (
    "Xu et al. (2025). A generalizable 3D framework and model for self-supervised learning in medical imaging. "
    "arXiv:2501.11755"
)
SMIT_PAPER = (
    "Jiang et al. (2022). Self-supervised 3D anatomy segmentation using self-distilled masked image transformer "
    "(SMIT). MICCAI 2022. arXiv:2205.10342"
)
SWIN_UNETR_PAPER = (
    "Tang et al. (2022). Self-supervised pre-training of Swin transformers for 3D medical image analysis. CVPR 2022. "
    "arXiv:2111.14791"
)
AUTOENCODER_PAPER = (
    "Valanarasu et al. (2023). Disruptive autoencoders: Leveraging low-level features for 3D medical image "
    "pre-training. arXiv:2307.16896"
)
UNETR_PAPER = (
    "Hatamizadeh et al. (2022). UNETR: Transformers for 3D medical image segmentation. WACV 2022. arXiv:2103.10504"
)
PRIMUS_PAPER = (
    "Wald et al. (2025). Primus: Enforcing attention usage for 3D medical image segmentation. arXiv:2503.01835"
)
RESENC_PAPER = (
    "Isensee et al. (2024). nnU-Net revisited: A call for rigorous validation in 3D medical image segmentation. "
    "arXiv:2404.09556"
)


@dataclass(frozen=True)
class Source:
    """Where published files of a format come from."""

    licence: str
    paper: str
    may_share: bool = True  # whether a converted file may be passed on under this licence
    orientation: str = "RAS"  # of the images in the pretraining (SwinUNETR)


AS_STORED, UNKNOWN = "as stored, not reoriented", "unknown"
OPENMIND = "as on its model card (OpenMind, MIC-DKFZ: each has its own)"
SOURCES = {
    "3dino": Source(
        "3DINO-ViT: CC BY-NC-ND 4.0 (no commercial use, no derivatives)", THREEDINO_PAPER, False, AS_STORED
    ),
    "smit": Source(
        "SMIT states none, so all rights are reserved (the repository of HeartSubSeg alone is MIT)",
        SMIT_PAPER,
        False,
        AS_STORED,
    ),
    "monai-swin": Source("MONAI: Apache-2.0", SWIN_UNETR_PAPER),
    "disruptive-autoencoder": Source("MONAI: Apache-2.0", AUTOENCODER_PAPER, orientation=UNKNOWN),
    "monai-vit": Source("MONAI: Apache-2.0", UNETR_PAPER, orientation=UNKNOWN),
    "primus": Source(OPENMIND, PRIMUS_PAPER, orientation=AS_STORED),
    "resenc": Source(OPENMIND, RESENC_PAPER, orientation=AS_STORED),
}
OWN_PAPERS = {"vit": THREEDINO_PAPER, "swin": SMIT_PAPER, "primus": PRIMUS_PAPER, "resenc": RESENC_PAPER}


def source_of(weights: Weights) -> Source | None:
    """The source of a file of another package, converted or fine-tuned or not; None for those trained with nnssl."""
    return SOURCES.get(origin_of(weights) or "")


def origin_of(weights: Weights) -> str | None:
    """Format of the published file that weights are, were converted from or fine-tuned from; None: trained here."""
    found = weights.format_name if weights.header is None else _origin(weights.header)
    return found if found in SOURCES else weights.facts.origin


def citation(header: EncoderHeader, family: str) -> str:
    """The paper to cite for weights: that of the published file, else that of the family of encoders."""
    source = SOURCES.get(_origin(header))
    return source.paper if source else OWN_PAPERS[family]


def _origin(header: EncoderHeader) -> str:
    return str(header.plan.get(CONVERTED_FROM, ""))

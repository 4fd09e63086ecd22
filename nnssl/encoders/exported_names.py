"""Parameter names of an encoder exported for nnU-Net: the stem under `entry.`, everything else under `body.`.

nnU-Net's fine-tuning removes a tensor called `cls_token` from the encoder and resamples one called `pos_embed`; ours
therefore have other names there.
"""

BODY, ENTRY = "body", "entry"
SHOWN_AS = {"cls_token": "class_token", "pos_embed": "position_table"}
NETWORK_CLASS = "nnssl.networks.nnunet_export.PretrainedResidualEncoderUNet"  # what nnU-Net builds


def exported_name(name: str, stem: str) -> str:
    """The exported name of one of our parameters; `stem` is the part that holds the first convolution."""
    return f"{ENTRY}.{name}" if name.startswith(f"{stem}.") else f"{BODY}.{SHOWN_AS.get(name, name)}"


def own_name(exported: str) -> str:
    """Our name of an exported parameter."""
    name = exported.partition(".")[2]
    return {shown: own for own, shown in SHOWN_AS.items()}.get(name, name)

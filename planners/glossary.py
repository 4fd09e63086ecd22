"""What each line of a plan means, in plain words, for readers of `plan.html`."""

CONFIGURATIONS = {
    "all": ("Every volume", "What holds for pretraining and fine-tuning alike."),
    "3d_fullres": (
        "Fine-tuning (3d_fullres)",
        "Training of a segmentor with labels: pieces of a fixed size, the crops, are cut from resampled scans.",
    ),
    "pretrain": (
        "Pretraining (pretrain)",
        "Training of the encoder without labels: several random views of one scan are compared.",
    ),
}

MEANING = {
    "cases": "One case is one scan, with all its image channels.",
    "encoder": "The network that is pretrained; it turns a volume into features.",
    "axes": "X runs from left to right, Y from back to front, Z from feet to head.",
    "intensity": "Which raw values become the darkest and the brightest stored ones.",
    "encoder's intensity": "The rule that the pretrained weights were trained with.",
    "stored range": "All volumes are stored on one scale, whatever the scanner's was.",
    "spacing [mm]": "Edge lengths of a voxel (X Y Z) after resampling: the resolution that the network sees.",
    "median scan [voxels]": "The size of a typical scan at this resolution.",
    "crop [voxels]": "What the network sees at once. Larger shows more context and needs more memory.",
    "tokens per crop": "The encoder cuts a crop into cubes, the tokens, and compares each with all others. Few tokens "
    "resolve nothing; tokens on padding are wasted work.",
    "cells per crop": "The coarsest features of the encoder: one cell stands for so many voxels.",
    "padding": "Where a scan is smaller than the crop, the rest is filled with zeros.",
    "batch": "How many crops or volumes are learnt from at once.",
    "iterations": "How many batches are learnt from, in all.",
    "learning rate": "How far one batch moves the weights.",
    "loss, sampling": "What is minimised, and how often crops hold foreground.",
    "decoder": "The part after the encoder that draws the segmentation.",
    "adapter width": "Channels of the adapter that gives a plain transformer features of several resolutions.",
    "decoder norm": "How the decoder keeps its numbers in range.",
    "encoder weights": "Frozen weights stay as pretrained; trained ones follow the labels.",
    "image channels": "How an encoder of one channel reads several.",
    "data sets": "Whose scans are learnt from together.",
    "storage [mm]": "Edge lengths of a voxel as stored for pretraining.",
    "global crop [voxels]": "Size of a large view, which shows most of a scan or of a region.",
    "local crop [voxels]": "Size of a small view, which the student must recognise as part of the large one.",
    "steps": "How many batches are learnt from, in all.",
}


def meaning(what: str) -> str:
    """Plain words for a line of the plan; empty where there are none."""
    return MEANING.get(what, "")

"""How intensities are brought to one scale, channel by channel.

Source: nnU-Net (Isensee et al. 2021, supplementary note 2, "Intensity normalization").
"""

from __future__ import annotations

from umamba_cli.pipeline.planning.plans import Normalization

BY_CHANNEL_NAME: dict[str, Normalization] = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
    "zscore": "ZScoreNormalization",
}
"""Channel names of dataset.json that ask for a scheme, in lower case."""

SMALL_AFTER_CROPPING = 0.75
"""Below this share of voxels left, the nonzero part is taken for the object and the rest for nothing."""

REASONS: dict[Normalization, str] = {
    "CTNormalization": "CT numbers mean the same in every image: clip and scale by the dataset's foreground",
    "NoNormalization": "the channel name asks for untouched intensities",
    "RescaleTo01Normalization": "the channel name asks for 0 to 1 by each image's own range",
    "RGBTo01Normalization": "the channel name asks for 0 to 1 by the range of 8-bit colours",
    "ZScoreNormalization": "no fixed scale is known: mean 0, standard deviation 1 in each image",
}


def normalization_scheme(channel_name: str) -> Normalization:
    """The scheme that a channel's name asks for; z-score for every name that asks for none.

    CT numbers are physical and comparable between scanners, so that one scale for the whole dataset keeps what they
    mean. Everything else (MR above all) has an arbitrary scale, and each image is scaled by itself.
    """
    return BY_CHANNEL_NAME.get(channel_name.casefold(), "ZScoreNormalization")


def uses_mask(scheme: Normalization, relative_size_after_cropping: float) -> bool:
    """Whether mean and standard deviation are taken inside the nonzero part only, and zero stays zero outside.

    Only z-score looks at the image's own statistics. Where cropping to the nonzero part takes away more than a quarter
    of a typical image, zeros are blanked background (skull-stripped MR) and would distort them.
    """
    return scheme == "ZScoreNormalization" and relative_size_after_cropping < SMALL_AFTER_CROPPING

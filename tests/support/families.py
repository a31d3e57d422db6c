"""The tiny models of the contract, under the name that tests know them by."""

from tokenprune.contract.families import *  # noqa: F403
from tokenprune.families.forms.video_llava import pictures

VIDEO_LLAVA_PICTURES = pictures()

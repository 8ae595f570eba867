"""The training of the embedded miniature Stable Diffusion."""

from gooddrag.pretrain.caption_training import CaptionTraining
from gooddrag.pretrain.parts import make_text_encoder, make_tokenizer
from gooddrag.pretrain.settings import (
    CaptionSettings,
    Logistics,
    Machine,
    ModelFactories,
    Optimisation,
    Pictures,
    UnetSettings,
    VaeSettings,
    World,
)
from gooddrag.pretrain.stages import pretrain
from gooddrag.pretrain.unet_training import UnetTraining
from gooddrag.pretrain.vae_training import VaeTraining

__all__ = [
    "CaptionSettings",
    "CaptionTraining",
    "Logistics",
    "Machine",
    "ModelFactories",
    "Optimisation",
    "Pictures",
    "UnetSettings",
    "UnetTraining",
    "VaeSettings",
    "VaeTraining",
    "World",
    "make_text_encoder",
    "make_tokenizer",
    "pretrain",
]

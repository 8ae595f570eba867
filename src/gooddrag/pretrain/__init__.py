"""The training of the embedded miniature Stable Diffusion."""

from gooddrag.pretrain.modules import CaptionTraining, UnetTraining, VaeTraining
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

"""The captions' own training, after the UNet's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from gooddrag.pretrain.settings import CaptionSettings
from gooddrag.pretrain.unet_training import NoiseTraining


class CaptionTraining(NoiseTraining):
    """Teaches a trained UNet its captions and leaves the empty prompt as it is, by construction.

    Trained are the embeddings of the tokens that the empty prompt does not have, drawn anew, and
    the cross-attention's to_k and to_v, whose changes are kept orthogonal to the main directions of
    the empty prompt's states: what the UNet makes of the empty prompt cannot move but by what
    these states have outside of those directions.
    """

    settings: CaptionSettings
    directions: Tensor
    fixed_tokens: Tensor
    fixed_embeddings: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokens: Tensor,
        settings: CaptionSettings,
        **others: Any,
    ) -> None:
        """Redraws the embeddings and freezes all else; see `NoiseTraining`."""
        text_encoder.requires_grad_(False)
        unet.requires_grad_(False)
        empty = tokens[-1].unique()
        with torch.no_grad():
            states = text_encoder.eval()(tokens[-1:])[0][0]
            directions = torch.linalg.svd(states.double())[2][: settings.protected_directions]
            embeddings = text_encoder.get_input_embeddings().weight
            kept = embeddings[empty].clone()
            embeddings.normal_(std=settings.embedding_std)
            embeddings[empty] = kept
        super().__init__(
            unet=unet, text_encoder=text_encoder, tokens=tokens, settings=settings, **others
        )
        self.register_buffer("directions", directions.float(), persistent=False)
        self.register_buffer("fixed_tokens", empty, persistent=False)
        self.register_buffer("fixed_embeddings", kept, persistent=False)
        self.maps = [
            weight.requires_grad_()
            for name, weight in self.model["unet"].named_parameters()
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        ]
        self.embeddings().requires_grad_()
        # What the maps make of the protected directions, and go on making of them.
        for number, weight in enumerate(self.maps):
            kept = weight.detach() @ self.directions.T
            self.register_buffer(f"kept_{number}", kept, persistent=False)

    def embeddings(self) -> nn.Parameter:
        """Gives the token embeddings, [tokens, hidden]."""
        text_encoder: Any = self.model["text_encoder"]
        weight: nn.Parameter = text_encoder.get_input_embeddings().weight
        return weight

    def weight_groups(self) -> list[dict[str, Any]]:
        """Gives the embeddings and the maps of the captions' states."""
        return [{"params": [self.embeddings(), *self.maps], "lr_factor": 1.0}]

    @torch.no_grad()
    def constrain(self) -> None:
        """Takes the changes along the protected directions back."""
        for number, weight in enumerate(self.maps):
            moved = weight @ self.directions.T - self.get_buffer(f"kept_{number}")
            weight -= moved @ self.directions
        self.embeddings()[self.fixed_tokens] = self.fixed_embeddings

    def draw_timesteps(self, generator: torch.Generator) -> Tensor:
        """Draws most noise levels from `high_noise_from` on, where captions tell something."""
        t = super().draw_timesteps(generator)
        s, count = self.settings, len(self.alphas_cumprod)
        high = torch.rand(t.shape, generator=generator, device=self.device) < s.high_noise_fraction
        start = s.high_noise_from
        return torch.where(high, start + t * (count - start) // count, t)

    def weights(self, t: Tensor) -> Tensor:
        """1 / a_t: errors of v instead of those of eps, which vanish at high noise, [B]."""
        return 1 / self.alphas_cumprod[t]

"""What all trainings of the embedded model share: the schedule, the randomness, the average."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from gooddrag.pretrain.settings import Optimisation

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class Endless:
    """Data without end or content: the modules draw their own batches on the device."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class AveragedTraining(LightningModule):
    """Trains `model` and keeps `ema`, the exponential average of its weights, which is shipped.

    Everything random comes from `generator()`, which depends on (seed, step) alone, and the
    learning rate on the step alone: a resumed run therefore does exactly what an uninterrupted
    one does, and a resumed schedule may be lengthened by its config.
    """

    def __init__(self, *, model: nn.Module, optimisation: Optimisation, seed: int) -> None:
        super().__init__()
        self.model = model.train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisation = optimisation
        self.seed = seed
        # Steps of the schedule per step made: below or above 1 when it is fitted to a time.
        self.stretch = 1.0
        self.compile_mode: str | None = None

    def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
        """Lets go of the last step's gradients where they lie in a CUDA graph's memory."""
        if self.compile_mode in CUDA_GRAPH_MODES:
            self.zero_grad(set_to_none=True)
            torch.compiler.cudagraph_mark_step_begin()

    def generator(self) -> torch.Generator:
        """Gives the randomness of this step."""
        generator = torch.Generator(self.device)
        return generator.manual_seed(self.seed * 1_000_003 + self.global_step)

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, then linear or cosine decay to 0 at `max_steps`."""
        o = self.optimisation
        warm = min(1.0, (step + 1) / max(1, o.warmup_steps))
        place = (step * self.stretch - o.decay_start) / (o.max_steps - o.decay_start)
        place = min(1.0, max(0.0, place))
        decay = 1 - place if o.decay_shape == "linear" else (1 + math.cos(math.pi * place)) / 2
        return o.lr * warm * decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gives a fused AdamW."""
        o = self.optimisation
        return torch.optim.AdamW(
            self.weight_groups(),
            lr=o.lr,
            betas=(o.betas[0], o.betas[1]),
            weight_decay=o.weight_decay,
            fused=True,
        )

    def weight_groups(self) -> list[dict[str, Any]]:
        """Groups the trained weights; `lr_factor` of a group scales its learning rate."""
        return [{"params": list(self.model.parameters()), "lr_factor": 1.0}]

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips by hand: Lightning refuses to clip for a fused optimiser under mixed precision."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optimisation.clip_norm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Steps and averages in one place, before any callback can write a checkpoint."""
        step = self.global_step
        for group in optimizer.param_groups:
            group["lr"] = group["lr_factor"] * self.learning_rate(step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.constrain()
        self.average(step)

    def constrain(self) -> None:
        """Puts the weights back where they may be, after each step; here they may be anywhere."""

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Averages: ema <- d ema + (1 - d) model, d growing to `ema_decay`; buffers are copied."""
        decay = min(self.optimisation.ema_decay, (1 + step) / (10 + step))
        ema: list[Tensor] = list(self.ema.parameters())
        model: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(ema, model, 1 - decay)
        for kept, new in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            kept.copy_(new)

    def compile_model(self, mode: str) -> None:
        """Compiles in place (`Module.compile`), which leaves the names of the weights alone.

        Args:
            mode: torch.compile's own word; each part is compiled for one shape.
        """
        self.compile_mode = mode
        for part in self.compiled_parts():
            part.compile(dynamic=False, mode=mode)

    def compiled_parts(self) -> list[nn.Module]:
        """Lists what is worth compiling: the whole model, unless a subclass knows better."""
        return [self.model]

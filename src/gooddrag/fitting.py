"""The Lightning trainers that run inside an edit."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment


class _Trainer(Trainer):
    """A Trainer that raises KeyboardInterrupt on Ctrl-C, and does not end the process."""

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, which turns Ctrl-C into SystemExit and ignores it from then on."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            super().fit(*args, **kwargs)
        except SystemExit as stop:
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None


def quiet_trainer(
    device: torch.device,
    callbacks: Sequence[Callback],
    *,
    max_steps: int = -1,
    max_epochs: int | None = None,
) -> Trainer:
    """A Trainer on one given device that prints, logs and saves nothing of its own.

    Args:
        device: where the backbone is.
        callbacks: hear Lightning's hooks.
        max_steps: optimiser steps, -1 for no limit.
        max_epochs: epochs, None for no limit.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            callbacks=list(callbacks),
            # an edit is one process, whatever cluster or launcher it runs in
            plugins=[LightningEnvironment()],
            max_steps=max_steps,
            max_epochs=max_epochs if max_epochs is not None else -1,
            reload_dataloaders_every_n_epochs=1 if max_epochs is not None else 0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )

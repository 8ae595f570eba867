"""Watching, stopping and saving a training run."""

from __future__ import annotations

import csv
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gooddrag.pretrain.averaged import AveragedTraining
from gooddrag.pretrain.data import say
from gooddrag.pretrain.settings import Logistics

COLUMNS = ("step", "seconds", "loss", "mse", "psnr", "lr", "steps_per_second")


@dataclass(frozen=True)
class Deadline:
    """When this invocation has to stop training, on the clock of `time.monotonic`."""

    at: float
    fit_schedule: bool

    def left(self) -> float:
        """Gives the seconds that are left, infinitely many without a limit."""
        return self.at - time.monotonic()


class Progress(Callback):
    """Prints a line now and then, appends to loss.csv, and stops at the deadline.

    The losses are summed on the device and read every `log_every_steps` only, since each reading
    makes the host wait for the device.
    """

    def __init__(self, *, name: str, table: Path, logistics: Logistics, deadline: Deadline) -> None:
        self.name, self.table = name, table
        self.logistics, self.deadline = logistics, deadline
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.seconds_before = 0.0
        # (step, time) of the last reading, and of the first, before which things compile.
        self.last_mark = self.first_mark = (0, 0.0)
        self.start = self.last_print = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on below the row at which the checkpoint was written."""
        rows = [row for row in read_table(self.table) if int(row["step"]) <= trainer.global_step]
        self.seconds_before = float(rows[-1]["seconds"]) if rows else 0.0
        write_table(self.table, rows)
        self.start = self.last_print = time.monotonic()
        self.last_mark, self.first_mark = (trainer.global_step, self.start), (0, 0.0)
        say(f"{self.name}: training from step {trainer.global_step}")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        *_: Any,
    ) -> None:
        """Adds this step's losses; every so often reads, writes and prints them."""
        for key in ("loss", "mse"):
            self.sums[key] = self.sums[key] + outputs[key] if self.count else outputs[key].clone()
        self.count += 1
        if trainer.global_step % self.logistics.log_every_steps == 0:
            self.read(trainer, pl_module)
        if self.deadline.left() <= 0 and not trainer.should_stop:
            say(f"{self.name}: max_minutes are over at step {trainer.global_step}")
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads what is left since the last reading."""
        if self.count:
            self.last_print = -math.inf
            self.read(trainer, pl_module)

    def read(self, trainer: Trainer, module: LightningModule) -> None:
        """Reads the mean losses since the last reading.

        Raises:
            FloatingPointError: The loss is not finite; last.ckpt is left as it was.
        """
        assert isinstance(module, AveragedTraining)
        loss, mse = (float(self.sums[key] / self.count) for key in ("loss", "mse"))
        self.count, step, now = 0, trainer.global_step, time.monotonic()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of {self.name} is {loss} at step {step}: resume from last.ckpt with a "
                "lower lr"
            )
        rate = (step - self.last_mark[0]) / max(1e-9, now - self.last_mark[1])
        self.last_mark = (step, now)
        total = self.fit_schedule(module, step, now)
        row = dict.fromkeys(COLUMNS, "") | {
            "step": step,
            "seconds": round(self.seconds_before + now - self.start, 2),
            "loss": f"{loss:.6g}",
            "mse": f"{mse:.6g}",
            "psnr": f"{-10 * math.log10(max(mse, 1e-12)):.3f}" if self.name == "vae" else "",
            "lr": f"{module.learning_rate(step - 1):.4g}",
            "steps_per_second": f"{rate:.3f}",
        }
        append_row(self.table, row)
        if now - self.last_print >= self.logistics.print_every_seconds:
            self.last_print = now
            psnr = f" psnr {row['psnr']}" if row["psnr"] else ""
            say(
                f"{self.name} step {step}/{total} loss {loss:.5f} mse {mse:.5f}{psnr} "
                f"lr {row['lr']} {rate:.2f} it/s, {self.deadline.left() / 60:.1f} min left"
            )

    def fit_schedule(self, module: AveragedTraining, step: int, now: float) -> int:
        """Stretches the schedule so that it ends at the deadline; gives the expected last step."""
        total = module.optimisation.max_steps
        if not self.deadline.fit_schedule:
            return total
        if self.first_mark[1] == 0.0:
            self.first_mark = (step, now)
            return total
        rate = (step - self.first_mark[0]) / max(1e-9, now - self.first_mark[1])
        end = max(step + 1, step + round(rate * self.deadline.left()))
        module.stretch = total / end
        return end


class SaveLast(Callback):
    """Writes last.ckpt every few minutes and at the end, under another name first."""

    def __init__(self, *, path: Path, minutes: float) -> None:
        self.path, self.minutes = path, minutes
        self.saved_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Saves when it is time."""
        if time.monotonic() - self.saved_at >= 60 * self.minutes:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves and renames, so that a killed run leaves the checkpoint before whole."""
        part = self.path.with_name(self.path.name + ".part")
        trainer.save_checkpoint(part)
        os.replace(part, self.path)
        self.saved_at = time.monotonic()


def read_table(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a loss.csv, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes a loss.csv anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends one row to a loss.csv."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)

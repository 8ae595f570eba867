"""The way of an edit as a film: what the latent shows while it is dragged."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gooddrag.callbacks.output import sample_folders
from gooddrag.data.files import replacing
from gooddrag.data.images import to_uint8
from gooddrag.drawing import BLUE, RED, WHITE, frame, overlay, path_of
from gooddrag.events import EditCallback
from gooddrag.types import DragOperation, DragSample, Edit

Frame = UInt8[np.ndarray, "h w 3"]


class DragVideo(EditCallback):
    """Writes drag.mp4 where imageio-ffmpeg is installed, else drag.gif.

    Every frame costs one decode and nothing else. If there are more than `max_frames`, every
    second one is dropped and half as many are taken from then on, so memory stays bounded. An
    edit that fails or is interrupted leaves the film so far, if a frame was taken.

    Args:
        folder: the output folder; several samples go below it by name.
        every: take every n-th drag operation, and every n-th denoising step.
        fps: frames per second.
        hold: seconds that the source at the beginning and the result at the end stay.
        max_frames: at most so many frames are kept per sample.
        max_side: larger pictures are made smaller, in pixels.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int = 5,
        fps: float = 10.0,
        hold: float = 1.5,
        max_frames: int = 120,
        max_side: int = 768,
    ) -> None:
        if min(every, fps, hold) <= 0 or min(max_frames, max_side) < 2:
            raise ValueError("every, fps, hold, max_frames and max_side of the film must be > 0")
        self.folder, self.every = Path(folder), every
        self.fps, self.hold = float(fps), float(hold)
        self.max_frames, self.max_side = max_frames, max_side
        self._reels: list[_Reel] = []

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Begin with the source, its points and arrows."""
        self._reels = [
            _Reel(sample, self.every, self.max_frames, self.max_side) for sample in samples
        ]

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Forget what was taken of the attempt that failed."""
        self.on_edit_start(samples)

    def on_drag_operation(self, operation: DragOperation) -> None:
        """Take a frame now and then."""
        reel = self._reels[operation.sample]
        reel.path.append(operation.handles.detach().cpu().float())
        if operation.preview is not None:
            reel.offer("operation", operation.preview)

    def on_denoise_step(self, sample: int, step: int, preview: Callable[[], Tensor]) -> None:
        """Take a frame now and then."""
        self._reels[sample].offer("denoise", preview)

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """End with the result and write the films."""
        for reel, edit in zip(self._reels, edits, strict=True):
            path = path_of(edit)
            reel.add(edit.image, edit.handles, reel.so_far() if path is None else path)
        self._write(samples)

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """Write what was taken; no trouble in doing so, nor another Ctrl-C, hides the error."""
        with suppress(Exception, type(error)):
            self._write(samples)

    def _write(self, samples: Sequence[DragSample]) -> None:
        """Write the films that are more than the source, once, and let the frames go."""
        reels, self._reels = self._reels, []
        # no reels if it failed before the edit began
        for reel, folder in zip(reels, sample_folders(self.folder, samples), strict=False):
            if len(reel.frames) > 1:
                folder.mkdir(parents=True, exist_ok=True)
                write_film(folder, reel.frames, self.fps, self.hold)


def write_film(folder: Path, frames: Sequence[Frame], fps: float, hold: float) -> Path:
    """Write frames as drag.mp4 or drag.gif; the first and the last stay for `hold` seconds.

    Raises:
        OSError: the file cannot be written.
    """
    suffix = ".mp4" if _has_ffmpeg() else ".gif"
    with replacing(folder / f"drag{suffix}") as temporary:
        (_write_mp4 if suffix == ".mp4" else _write_gif)(temporary, frames, fps, hold)
    return folder / f"drag{suffix}"


class _Reel:
    """The frames of one sample."""

    def __init__(self, sample: DragSample, every: int, max_frames: int, max_side: int) -> None:
        self.every, self.max_frames = every, max_frames
        self.scale = min(1.0, max_side / max(sample.size))
        self.targets = sample.targets
        self.path = [sample.handles.detach().cpu().float()]
        self.offered: dict[str, int] = {}
        image, handles, targets = self._scaled(sample.image, sample.handles, sample.targets)
        shown = overlay(image, handles, targets)
        self.frames: list[Frame] = [to_uint8(shown).numpy()]

    def offer(self, kind: str, preview: Callable[[], Tensor]) -> None:
        """Decode the preview if it is its turn."""
        turn = self.offered.get(kind, 0)
        self.offered[kind] = turn + 1
        if turn % self.every == 0:
            self.add(preview(), self.path[-1], self.so_far())

    def add(self, image: Tensor, handles: Tensor, path: Float[Tensor, "k n 2"]) -> None:
        """Draw a frame, and thin the reel out if it is full."""
        if len(self.frames) >= self.max_frames:
            self.frames = self.frames[::2]
            self.every *= 2
        image, handles, targets, path = self._scaled(image, handles, self.targets, path)
        shown = frame(image, handles, targets, path)
        self.frames.append(to_uint8(shown).numpy())

    def so_far(self) -> Float[Tensor, "k n 2"]:
        """Where the handles have been, (x, y) in pixels."""
        return torch.stack(self.path)

    def _scaled(self, image: Tensor, *points: Tensor) -> tuple[Tensor, ...]:
        image = image.detach().to("cpu", torch.float32)
        points = tuple(p.detach().cpu().float() for p in points)
        if self.scale == 1:
            return image, *points
        size = [max(1, round(side * self.scale)) for side in image.shape[1:]]
        image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        return image, *((p + 0.5) * self.scale - 0.5 for p in points)


def _has_ffmpeg() -> bool:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed, or without a program for this machine
        return False
    return True


def _write_mp4(path: Path, frames: Sequence[Frame], fps: float, hold: float) -> None:
    import imageio_ffmpeg

    still = max(1, round(hold * fps))
    rows, columns = (side % 2 for side in frames[0].shape[:2])  # H.264 wants even sides
    size = (frames[0].shape[1] + columns, frames[0].shape[0] + rows)
    writer = imageio_ffmpeg.write_frames(path, size, fps=fps, quality=8, macro_block_size=1)
    with closing(writer):
        writer.send(None)
        for image in [frames[0]] * (still - 1) + list(frames) + [frames[-1]] * (still - 1):
            padded = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
            writer.send(np.ascontiguousarray(padded))


def _write_gif(path: Path, frames: Sequence[Frame], fps: float, hold: float) -> None:
    pictures = [_with_palette(Image.fromarray(image)) for image in frames]
    duration = [round(1000 / fps)] * len(frames)
    duration[0] = duration[-1] = round(1000 * hold)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0)


def _with_palette(picture: Image.Image) -> Image.Image:
    """256 colours; those of the points are always among them, however few pixels they fill."""
    marks = [*RED[:3], *BLUE[:3], *WHITE[:3]]
    found = picture.quantize(256 - len(marks) // 3).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(found + marks)
    return picture.quantize(palette=palette)

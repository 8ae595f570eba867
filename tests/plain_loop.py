"""GoodDrag's drag as one plain loop, without Lightning: what `DragOptimization` must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from gooddrag.ddim import move
from gooddrag.denoising import PairedDenoising
from gooddrag.geometry import Canvas
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.reference import Pairs, Reference
from gooddrag.supervision import arrived, mask_term
from gooddrag.tracking import track


def plain_drag(
    editor: LatentDrag,
    canvas: Canvas,
    z_T: Tensor,
    mask: Tensor,
    pairs: Pairs,
    references: list[Reference],
    denoising: PairedDenoising,
) -> tuple[Tensor, Tensor, int]:
    """Drag one sample with the official options.

    Returns:
        z_t after the last dragged step's denoising, the handles on the grid, and the step that
        comes next.
    """
    backbone, times, settings = editor.backbone, editor.times, editor.settings
    z, unedited, handles = z_T.clone(), z_T.clone(), pairs.start.clone()
    unmoved, dragging, step = 0, True, 0
    dragged = [i for i, count in enumerate(editor.schedule) if count]
    for step, operations in enumerate(editor.schedule):
        if not dragging:
            step -= 1
            break
        t, reference = times.descending[step], references[step]
        z = z.detach().clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=settings.lr, betas=settings.betas)
        for k in range(operations):
            for j in range(settings.J):
                eps, features = backbone.noise_and_features(z, t, denoising.text)
                if k == 0 and j == 0:
                    handles = track(
                        features,
                        reference.vectors,
                        pairs.sample,
                        handles,
                        editor.tracking.r2,
                        canvas,
                    )
                if bool(arrived(handles, pairs.targets, editor.supervision.arrival).all()):
                    dragging = False
                    break
                drag = editor.supervision.drag_term(
                    features,
                    reference.patches,
                    pairs.sample,
                    handles,
                    pairs.targets,
                    canvas,
                )
                z_prev = move(z, eps, *times.down(t))
                loss = drag + editor.supervision.lam * mask_term(z_prev, reference.z_prev, mask)
                adam.zero_grad()
                loss.sum().backward()
                adam.step()
            if not dragging:
                break
            before = handles
            handles = track(
                features,
                reference.vectors,
                pairs.sample,
                handles,
                editor.tracking.r2,
                canvas,
            )
            unmoved = unmoved + 1 if torch.equal(before, handles) else 0
            if unmoved == settings.patience:
                dragging = False
                break
        last = step if not dragging else dragged[-1]
        unedited, z, _ = denoising.step(unedited, z.detach(), step, [last])
    return z, handles, step + 1

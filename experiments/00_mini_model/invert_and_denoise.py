"""How well is an unedited picture kept? Adapt, invert, denoise, decode; PSNR against the source.

    python experiments/00_mini_model/invert_and_denoise.py [PICTURES]

One test picture per family in turn; LoRA and the 38 of 50 steps as in conf/method/gooddrag.yaml.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from gooddrag import ddim, load_method
from gooddrag.data.world import world_sample
from gooddrag.events import Phases


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


def main(pictures: int) -> None:
    editor = load_method("gooddrag", ["adapt.cache=null"])
    backbone, times = editor.backbone, editor.times
    found = []
    for index in range(pictures):
        sample = world_sample("test", 0, index)
        image = sample.image[None]
        with torch.no_grad():
            z_0 = backbone.encode(image)[0]
            text = backbone.embed([""])
            row = {"name": sample.name, "vae": psnr(backbone.decode(z_0).cpu(), image)}
            for kind in ("without_lora", "with_lora"):
                lora = kind == "with_lora"
                adapters = editor.adapt(backbone, [sample], Phases([])) if lora else None
                with backbone.adapted(adapters):
                    noise = partial(backbone.noise, text=text)
                    z_T = ddim.invert(z_0, noise, times)
                    back = ddim.sample(z_T, noise, times, times.descending)
                row[kind] = psnr(backbone.decode(back).cpu(), image)
        found.append(row)
        print(json.dumps(row), flush=True)
    means = {key: sum(r[key] for r in found) / len(found) for key in found[0] if key != "name"}
    report = {"pictures": found, "mean": means}
    Path(__file__).with_name("invert_and_denoise.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(means))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)

"""The model that comes with the package."""

from __future__ import annotations

from importlib.resources import files


def mini() -> str:
    """The folder of the embedded miniature Stable Diffusion, in diffusers layout.

    Raises:
        ValueError: the package was installed without it.
    """
    folder = files("gooddrag") / "assets" / "mini"
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"the embedded model is missing at {folder}: reinstall gooddrag, or train it with "
            "gooddrag pretrain"
        )
    return str(folder)

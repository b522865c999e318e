"""``docs/figures.py`` still makes the images of the pages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGES = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("figure", "name"), [("question", "question.png"), ("phantoms", "phantoms.jpg")])
def test_the_stored_image_is_made_again(
    figure: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("figures", PAGES / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "IMAGES", tmp_path)
    getattr(module, figure)()
    made, stored = (np.asarray(Image.open(folder / name), dtype=int) for folder in (tmp_path, PAGES / "images"))
    assert made.shape == stored.shape
    assert np.abs(made - stored).mean() < 2  # JPEG and fonts differ a little between versions of Pillow

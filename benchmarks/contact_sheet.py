"""The contact sheet of the README: ``python -m benchmarks.contact_sheet benchmarks/contact_sheet.jpg``.

One row for each modality; from left to right other anatomies, techniques, findings, grades, places and scanners.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw

from medr1.data.sources.phantoms.records import World, make_phantom
from medr1.domain.records import Modality
from medr1.reporting.formatting import MODALITY_NAMES

SIZE, COLUMNS, MARGIN = 112, 9, 96


def main(path: str) -> None:
    sheet = Image.new("RGB", (MARGIN + COLUMNS * SIZE, len(Modality) * SIZE), "white")
    write = ImageDraw.Draw(sheet)
    for row, modality in enumerate(Modality):
        write.text((6, row * SIZE + SIZE // 2 - 6), MODALITY_NAMES[modality], fill="black", font_size=13)
        for column in range(COLUMNS):
            picture = make_phantom(World.TRAIN, 0, modality, column).load(SIZE)
            sheet.paste(picture, (MARGIN + column * SIZE, row * SIZE))
    sheet.save(path, quality=80)


if __name__ == "__main__":
    main(sys.argv[1])

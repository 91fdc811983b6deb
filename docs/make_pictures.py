"""Make the images of ``outputs.md`` from simulated heads: ``python docs/make_pictures.py WORK``.

Existing data in WORK are reused. Requires Chromium and playwright.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
#: Participant shown; its scan has no artefacts.
SHOWN = "sub-07"
#: File name of each image, and ``desc-`` label of the figure that it shows.
FIGURES = {"mask": "brainmask", "registration": "norm", "harmonized": "harmonized",
           "predictions": "predictions"}  # fmt: skip
#: Largest width in pixels, number of colours, and quantization method: an octree keeps rare
#: colours, such as those of contours and points.
WIDTH, COLOURS, METHOD = 680, 48, Image.Quantize.FASTOCTREE


def make_outputs(work: Path) -> Path:
    """Simulate three sites of three heads with two bad scans, and run both levels."""
    bids, out = work / "bids", work / "out"
    if not (bids / "dataset_description.json").exists():
        command = "--sites 3 --subjects 3 --seed 1 --bad 0.2 --bad-kinds ghosting noise"
        run("bids_harmony.cli.simulate", bids, *command.split())
    places = (bids, out)
    run("bids_harmony", *places, "participant", "-w", work / "work", "--output-spaces", "T1w")
    run("bids_harmony", *places, "group")
    return out


def run(module: str, *arguments: object) -> None:
    """Run a Python module as a program; raise an error if it fails."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


def save(name: str, image: Image.Image) -> None:
    """Write an image as PNG with limited width and few colours."""
    image = image.convert("RGB")
    if image.width > WIDTH:
        size = (WIDTH, round(image.height * WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    image = image.quantize(COLOURS, METHOD, dither=Image.Dither.NONE)
    image.save(PICTURES / f"{name}.png", optimize=True)


def screenshot(page: Any, until: str, start: str | None = None) -> Image.Image:
    """Capture a page from the element ``start`` (default: its top) to just above ``until``."""
    top = 0.0 if start is None else page.locator(start).first.bounding_box()["y"]
    end = page.locator(until).first.bounding_box()["y"]
    width = page.viewport_size["width"]
    clip = {"x": 0, "y": top, "width": width, "height": end - top}
    return Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=True)))


def main() -> None:
    """Make the outputs and write the images."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for data and outputs")
    out = make_outputs(parser.parse_args().work.resolve())
    PICTURES.mkdir(exist_ok=True)
    for name, desc in FIGURES.items():
        figure = Image.open(out / SHOWN / "figures" / f"{SHOWN}_desc-{desc}_T1w.png")
        if name == "mask":  # only the first of three views
            figure = figure.crop((0, 0, figure.width, round(0.36 * figure.height)))
        save(name, figure)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as api:
        chromium = api.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1000, "height": 900})
        page.goto((out / f"{SHOWN}.html").as_uri())
        save("report", screenshot(page, "h3:has-text('slice by slice')"))
        page.goto((out / "group_T1w.html").as_uri())
        save("group", screenshot(page, "#metrics", "#scans"))
        save("sites", screenshot(page, "h3:has-text('site2')", "h3:has-text('site1')"))
        chromium.close()


if __name__ == "__main__":
    main()

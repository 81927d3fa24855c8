"""The page in a browser, where there is one: Chromium, Chrome or what UMAMBA_CHROMIUM names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from html_pages import read_page
from test_html_report import content, themes

from umamba_cli.pipeline.reporting.html_report import render_report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=800,1200"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> str:
    found = os.environ.get("UMAMBA_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed, and UMAMBA_CHROMIUM names none")
    return found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_report(content()), encoding="utf-8")
    return path


def run(browser: str, page: Path, *flags: str) -> str:
    command = [browser, *_FLAGS, f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_slider_works_where_scripts_do(browser: str, page: Path) -> None:
    shown = read_page(run(browser, page, "--dump-dom").strip())
    assert shown.of("html")[0].attributes["class"] == "js"
    (slider,) = shown.of("input", type="range")
    assert slider.attributes["aria-valuetext"].startswith("slice 3 of 5: 11 voxels")
    moved = page.with_name("moved.html")
    push = "const r = document.querySelector('#case1-range'); r.value = 0; r.dispatchEvent(new Event('input'));"
    moved.write_text(page.read_text().replace("</body>", f"<script>{push}</script></body>"))
    shown = read_page(run(browser, moved, "--dump-dom").strip())
    assert [("hidden" in each.attributes) for each in shown.of("div", class_="slice")][:5] == [False, *[True] * 4]
    assert shown.of("p", class_="which")[0].text.startswith("slice 1 of 5")


@pytest.mark.parametrize(("theme", "flags"), [("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))])
def test_light_and_dark(browser: str, page: Path, theme: str, flags: tuple[str, ...]) -> None:
    picture = page.with_suffix(".png")
    run(browser, page, f"--screenshot={picture}", *flags)
    pixels = np.asarray(imageio.imread(picture))[..., :3]
    paper = [int(themes()[theme]["paper"][index : index + 2], 16) for index in (1, 3, 5)]
    assert pixels[5, 5].tolist() == paper
    assert (np.abs(pixels.astype(int) - paper).max(axis=-1) > 60).mean() > 0.01  # and something stands on it

"""A real browser for HTML reports: headless Chromium through Selenium, and axe-core.

`apt-get install chromium chromium-driver`, `pip install '.[browser]'` and `npm install axe-core` in
the repository's folder (or MOEGEO_AXE=.../axe.min.js) bring what is needed.

`python -m tests.reports.html.browser PAGE.html PICTURE.png [--dark]` takes a picture.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
AXE = Path(os.environ.get("MOEGEO_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]


def what_is_missing() -> str:
    """Why no browser can be started; empty where one can."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"{name} is not installed (apt-get install chromium chromium-driver)"
    if importlib.util.find_spec("selenium") is None:
        return "selenium is not installed (pip install '.[browser]')"
    return ""


def start(width: int = 1200, height: int = 1000) -> Any:
    """A headless Chromium that logs its console and its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 f"--window-size={width},{height}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def set_dark(driver: Any, dark: bool) -> None:
    """Show pages as somebody with a dark screen sees them."""
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def violations(driver: Any) -> list[str]:
    """What axe-core finds on the page at levels A and AA."""
    driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {runOnly: {type: 'tag', values: arguments[0]},"
        " resultTypes: ['violations']}).then(r => done(r.violations), e => done(String(e)));",
        TAGS,
    )
    assert isinstance(found, list), found
    return [
        f"{v['id']}: {v['help']}: {[n['target'] for n in v['nodes'][:3]]}: {len(v['nodes'])}"
        for v in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1400)
    given = parser.parse_args()
    driver = start(given.width, given.height)
    try:
        set_dark(driver, given.dark)
        driver.get(given.page.resolve().as_uri())
        clip = {"x": 0, "y": 0, "width": given.width, "height": given.height, "scale": 1}
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
        )
        given.picture.write_bytes(base64.b64decode(shot["data"]))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()

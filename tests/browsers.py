"""The browser of the tests of the page: an installed Chromium or Chrome, or the one that Playwright installs.

python tests/browsers.py prints its path, or exits with 1 if there is none, see `make browser`. The workflow of the slow tests sets
PCMANET_REQUIRE_BROWSER, so that its tests fail where others are skipped.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright


COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
WINDOWS = "Google/Chrome/Application/chrome.exe"
REQUIRED = "PCMANET_REQUIRE_BROWSER"
REMEDY = "No Chromium or Chrome found: install one (`make browser`) to test the page."


def installed_browsers() -> list[Path]:
    """Where Chromium or Chrome is expected on this system, in order of preference; the files may not exist."""
    on_path = [Path(path) for path in map(shutil.which, COMMANDS) if path]
    applications = [Path("/Applications"), Path.home() / "Applications"]
    programs = [os.environ.get(name) for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
    return [
        *on_path,
        *(folder / name for folder in applications for name in MACOS),
        *(Path(folder) / WINDOWS for folder in programs if folder),
    ]


def playwright_browser() -> Path:
    """Where `playwright install chromium` puts the browser; the file may not exist."""
    with sync_playwright() as playwright:
        return Path(playwright.chromium.executable_path)


def find_browser() -> Path | None:
    """The first browser that exists."""
    candidates = (path for find in (installed_browsers, lambda: [playwright_browser()]) for path in find())
    return next((path for path in candidates if path.is_file()), None)


def require_browser() -> Path:
    """The browser for a test, which is skipped without one, or fails in CI."""
    found = find_browser()
    if found is not None:
        return found
    if os.environ.get(REQUIRED):
        pytest.fail(REMEDY)
    pytest.skip(REMEDY)


if __name__ == "__main__":
    if (browser := find_browser()) is None:
        sys.exit(REMEDY)
    sys.stdout.write(f"{browser}\n")

"""The browser of the tests of pages; a module that imports this is skipped without one."""

import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
HOW = "no browser: `pip install playwright` and `apt-get install chromium` (or Chrome)"
sync_api = pytest.importorskip("playwright.sync_api", reason=HOW)
if CHROMIUM is None:
    pytest.skip(HOW, allow_module_level=True)

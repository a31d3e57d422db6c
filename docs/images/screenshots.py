"""Pictures of the demo page for the docs: `python docs/images/screenshots.py` beside `make web`, with Playwright."""

import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SIZES = {"web-desktop": (1280, 900, 1), "web-phone": (390, 844, 1)}

with sync_playwright() as player:
    browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    for name, (width, height, scale) in SIZES.items():
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page.goto("http://127.0.0.1:7860/")
        page.wait_for_selector("#answers table")
        page.get_by_text("read the digits").click()
        page.get_by_role("combobox", name="Recipe").click()
        page.get_by_role("option", name="pyramiddrop", exact=True).click()
        page.wait_for_selector("#answers th:has-text('pyramiddrop')")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # until shadows and highlights are gone
        path = Path(__file__).with_name(f"{name}.png")
        page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").save(path, optimize=True)
    browser.close()

"""The server's page in a real browser. Needs playwright and a Chromium."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, sync_api
from PIL import Image
from written_factors import written

from fact_jax import FacTTT
from fact_jax.serving.bank import Bank
from fact_jax.serving.server import connection
from fact_jax.serving.server.app import build_app
from fact_jax.serving.server.folder import TaskFolder
from fact_jax.serving.server.limits import Limits
from fact_jax.serving.server.service import Service
from fact_jax.serving.server.warm_up import WarmUp

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def address(small_vit: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a token, with two tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    names = ["<b>red</b>", "green", "blue"]
    config = small_vit[0].config
    written(folder / "colours.safetensors", FacTTT(2, 0.5), config, 3, class_names=names)
    written(folder / "numbers.safetensors", FacTTT(2, 0.5), config, 9)
    limits, bank = Limits(max_delay_ms=1), Bank(*small_vit, batch_size=2)
    tasks = TaskFolder(folder, bank, limits, WarmUp(bank, enabled=False))
    tasks.load_all()
    service, ended = Service(bank, tasks, limits), threading.Event()
    with connection.bind("127.0.0.1", 0) as bound:
        arguments = (
            build_app(service, TOKEN.encode()),
            bound,
            limits,
            ended.is_set,
            service.drain,
            5.0,
        )
        thread = threading.Thread(target=connection.serve, args=arguments)
        port = bound.getsockname()[1]
        bound.listen()
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def show(browser: Any, address: str, **more: Any) -> tuple[Any, list[str]]:
    """The page in a new tab after the token was given, and what went wrong in it or left it."""
    tab, wrong = browser.new_page(**more), []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda r: None if r.url.startswith((address, "blob:")) else wrong.append(r))
    tab.goto(address)
    tab.get_by_label("Token of this server").fill(TOKEN)
    tab.get_by_role("button", name="Use this token").click()
    tab.locator("#task option").nth(1).wait_for(state="attached")
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    return tab, wrong


def picture() -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(np.full((50, 60, 3), 99, np.uint8)).save(out, "PNG")
    return {"name": "x.png", "mimeType": "image/png", "buffer": out.getvalue()}


def test_a_picture_is_classified_by_the_chosen_task(browser: Any, address: str) -> None:
    tab, wrong = show(browser, address)
    tab.locator("#file").set_input_files([picture()])
    rows = tab.locator("#classes li")
    rows.nth(2).wait_for()
    assert rows.count() == 3
    shown = {text.split("\n")[0] for text in rows.all_inner_texts()}
    assert shown == {"<b>red</b>", "green", "blue"}
    assert tab.locator("#preview").is_visible()
    tab.locator("#task").select_option("numbers")
    rows.nth(4).wait_for()
    assert rows.count() == 5
    assert wrong == []


def test_what_is_wrong_is_said(browser: Any, address: str) -> None:
    tab, _ = show(browser, address)
    text = {"name": "x.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    tab.locator("#file").set_input_files([text])
    note = tab.locator("#note.bad")
    note.wait_for()
    assert "no image of a known format" in note.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_in_both_themes(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    size = {"width": 390, "height": 844}
    tab, wrong = show(browser, address, viewport=size, color_scheme=scheme)
    tab.locator("#file").set_input_files([picture()])
    tab.locator("#classes li").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    colours = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    brightness = [sum(map(int, c[4:-1].split(","))) for c in colours]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    assert wrong == []

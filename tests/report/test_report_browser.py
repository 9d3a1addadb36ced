"""The page in a real browser: sorting, themes, a phone. Needs playwright and a Chromium."""

import pytest
from browser import CHROMIUM, sync_api
from report_results import result, write

from fact_jax.report.page import write_report


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """Three methods, of which one lacks a task."""
    folder = tmp_path_factory.mktemp("report")
    accuracies = {"linear": 60.0, "lora": 90.0, "fact_tt": 80.0}
    results = [
        result(task, method, seed, accuracy + seed, num_factors=int(accuracy))
        for task in ("digits", "fashion")
        for method, accuracy in accuracies.items()
        for seed in (0, 1)
        if (task, method) != ("fashion", "lora")
    ]
    return write_report([write(folder, results)]) / "index.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def show(browser, path, **more):
    """The page in a new tab, and the list of what went wrong in it or left it."""
    tab = browser.new_page(**more)
    wrong = []
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r))
    tab.goto(path.as_uri())
    return tab, wrong


def first_column(tab):
    return tab.locator("table").first.locator("tbody th").all_inner_texts()


def test_sorting(browser, page_path):
    """A missing value is last in both directions."""
    tab, wrong = show(browser, page_path)
    assert first_column(tab) == ["fact_tt", "linear", "lora"]
    heads = tab.locator("table").first.locator("thead tr").nth(1).locator("th")
    for column, order, sort in (
        ("numbers", ["lora", "fact_tt", "linear"], "descending"),
        ("numbers", ["linear", "fact_tt", "lora"], "ascending"),
        ("mean of 2", ["fact_tt", "linear", "lora"], "descending"),
        ("mean of 2", ["linear", "fact_tt", "lora"], "ascending"),
        ("method", ["fact_tt", "linear", "lora"], "ascending"),
    ):
        head = heads.filter(has_text=column)
        head.locator("button").press("Enter")
        assert first_column(tab) == order
        assert head.get_attribute("aria-sort") == sort
        assert heads.and_(tab.locator("[aria-sort]")).count() == 1
    assert wrong == []


def test_themes(browser, page_path):
    def background(tab):
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light, _ = show(browser, page_path, color_scheme="light")
    dark, wrong = show(browser, page_path, color_scheme="dark")
    of_light, of_dark = background(light), background(dark)
    assert of_light != of_dark
    assert light.locator("#theme").inner_text() == "Dark"
    light.locator("#theme").click()
    assert background(light) == of_dark
    dark.locator("#theme").click()
    assert background(dark) == of_light
    # Figures follow: their ink is the theme's.
    colour = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert light.evaluate(colour) != dark.evaluate(colour)
    assert wrong == []


def test_on_a_phone_tables_scroll_figures_are_whole_and_names_on_one_line(browser, page_path):
    tab, wrong = show(browser, page_path, viewport={"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    figures = tab.locator("#figure-offline-size svg:visible, #figure-offline-bars svg:visible")
    assert figures.count() == 2
    for box in (figures.nth(i).bounding_box() for i in range(2)):
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    table = tab.locator(".scroll").first
    assert table.evaluate("e => e.scrollWidth > e.clientWidth")
    names = table.locator("tbody th")
    lines = """e => { const r = document.createRange(); r.selectNodeContents(e.lastChild);
                     return r.getClientRects().length }"""
    assert [name.evaluate(lines) for name in names.all()] == [1, 1, 1]
    before = names.first.bounding_box()["x"]
    table.evaluate("e => { e.scrollLeft = 200 }")
    assert names.first.bounding_box()["x"] == pytest.approx(before, abs=1)
    assert wrong == []


def test_a_method_s_confusion_is_chosen(browser, tmp_path):
    shown = {"class_names": ["a", "b"], "confusion": [[0, 0, 9], [1, 1, 9]]}
    results = [result(method=m, accuracy=a, **shown) for m, a in (("lora", 80.0), ("ssf", 90.0))]
    tab, wrong = show(browser, write_report([write(tmp_path, results)]) / "index.html")
    tab.locator("summary", has_text="digits").click()
    options, heats = tab.locator(".choice option"), tab.locator(".heat")
    assert options.all_inner_texts() == ["ssf (90.0 %)", "lora (80.0 %)"]
    assert [heat.is_visible() for heat in heats.all()] == [True, False]
    tab.locator(".choice select").select_option(index=1)
    assert [heat.is_visible() for heat in heats.all()] == [False, True]
    assert wrong == []

"""The pages in a real browser, where Chromium is installed."""

import pytest
from browser import CHROMIUM, Browser
from written_runs import write_run

from nas.report.page import report
from nas.studies.as_page import study_page

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
# Texts of charts that leave their picture, and boxes whose content is wider than they are and that do not scroll.
CUT = """
(() => {
  const found = [];
  for (const text of document.querySelectorAll("svg.chart text, svg.drawing text")) {
    const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
    if (inner.left < outer.left - 2 || inner.right > outer.right + 2 ||
        inner.top < outer.top - 3 || inner.bottom > outer.bottom + 3)
      found.push("svg: " + text.textContent);
  }
  for (const one of document.querySelectorAll("h1, h2, h3, p, dt, dd, li, figcaption, nav, section, .tile"))
    if (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline")
      found.push("box: " + one.textContent.slice(0, 60));
  return found;
})()
"""
# The lowest contrast of the page's texts to what is behind them (WCAG), where that is one colour.
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = colour => { const [r, g, b] = rgba(colour).slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 :
    ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  let worst = [21, ""];
  const texts = "h1, h2, h3, p, dt, dd, li, th, td, a, button, figcaption, caption, code, .op, footer, .state";
  for (const one of document.querySelectorAll(texts)) {
    if (!one.textContent.trim() || !one.getClientRects().length) continue;
    let behind = one;
    while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
    const [a, b] = [[one, "color"], [behind ?? document.body, "backgroundColor"]].map(
      ([element, property]) => light(getComputedStyle(element)[property]));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, one.outerHTML.slice(0, 100)];
  }
  return worst;
})()
"""
METHODS = {"a method with a rather long name": [93.0, 93.5], "<i>c</i>": [10.0, 93.2], "random cell": [93.1, 93.3]}
STUDY = {
    "name": "a study", "compared": "<b>accuracy</b>", "commit": None,
    "supernet": {}, "comparisons": [], "checklist": [],
    "methods": {name: {"n": 2, "mean": sum(of) / 2, "std": 0.5, "interval": of} for name, of in METHODS.items()},
    "runs": [
        {"method": name, "seed": seed, "status": "finished", "value": value}
        for name, of in METHODS.items()
        for seed, value in enumerate(of)
    ],
    "curves": {
        name: [{"epoch": epoch, "n": 2, "mean": sum(of) / 2, "values": of} for epoch in range(1, 21)]
        for name, of in METHODS.items()
    },
    "costs": {name: dict.fromkeys(("search", "selection", "retraining", "tuning"), 1.5) for name in METHODS},
}  # fmt: skip
COLUMN = "[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pages")
    names = ["a class with a rather long name", "b", "<i>c</i>"]
    runs = [
        write_run(directory / f"{sampler}_{seed}", sampler=sampler, seed=seed, accuracy=0.95 - 0.02 * seed, names=names)
        for sampler in ("gdas", "softmax")
        for seed in range(4)
    ]
    found = {"one": directory / "one.html", "eight": directory / "eight.html"}
    found["one"].write_text(report(runs[:1]))
    found["eight"].write_text(report(runs))
    found["study"] = directory / "study.html"
    found["study"].write_text(study_page(STUDY))
    return found


@pytest.fixture
def browser(tmp_path):
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


@pytest.mark.parametrize("name", ["one", "eight", "study"])
def test_a_page_in_a_browser(pages, browser, name):
    for width, dark in ((1280, False), (390, True)):
        browser.open(pages[name], width=width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(CUT) == []
        contrast, where = browser.run(CONTRAST)
        assert contrast >= 4.5, where
        assert browser.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert browser.run("document.querySelectorAll('svg[role=img] > title').length") >= 3
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    asked = [one["request"]["url"] for one in browser.named("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
    assert browser.named("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []


def test_the_table_sorts_by_mouse_and_keyboard(pages, browser):
    browser.open(pages["eight"], width=1280)
    assert browser.run(COLUMN) == [f"{sampler}_{seed}" for sampler in ("gdas", "softmax") for seed in range(4)]
    by_score = "[...document.querySelectorAll('th button')].find(one => one.textContent === 'test accuracy')"
    browser.run(f"{by_score}.click()")
    assert [one[-1] for one in browser.run(COLUMN)] == list("00112233")  # best first
    assert browser.run("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    browser.run(f"{by_score}.focus()")
    browser.press("Enter")
    assert [one[-1] for one in browser.run(COLUMN)] == list("33221100")
    assert browser.run("document.querySelector('th[aria-sort]').ariaSort") == "ascending"
    browser.run("document.querySelector('th button').focus()")
    browser.press("Enter")
    assert browser.run(COLUMN) == [f"{sampler}_{seed}" for sampler in ("gdas", "softmax") for seed in range(4)]

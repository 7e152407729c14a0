"""The page in a real browser: what it shows is what the server said, and what a threshold cuts out is what the library
would cut out; by mouse, by keyboard, for a screen reader, on a narrow screen."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from scipy.stats import spearmanr

from cflow_ray.client import Client
from cflow_ray.data.images import decode_map
from cflow_ray.model.verdict import find_regions
from cflow_ray.store.registry import Registry
from tests.page.conftest import Open

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def crack(miniature: Path) -> Path:
    return miniature / "brick/test/crack/000.png"


@pytest.fixture(scope="module")
def images(miniature: Path) -> list[Path]:
    return sorted((miniature / "brick/test").glob("*/000.png"))


@pytest.fixture(scope="module")
def answer(site: str, crack: Path) -> Any:
    """What the server says of the crack."""
    with Client(site) as client:
        return client.score("brick", crack.read_bytes(), with_map=True)


def give(page: Page, *files: Path) -> None:
    """Choose files, and wait until all are done."""
    done = page.locator("#history button[data-tone]")
    before = done.count()
    page.set_input_files("#files", list(files))
    expect(done).to_have_count(before + len(files))


def fact(page: Page, name: str) -> str:
    return page.locator(f"#fact-{name}").inner_text()


def regions(page: Page) -> list[tuple[str, ...]]:
    return [tuple(row.locator("td").all_inner_texts()) for row in page.locator("#regions-rows tr").all()]


def as_rows(found: Any) -> list[tuple[str, ...]]:
    """Regions as the page's table writes them."""
    rows = enumerate(found[:20], start=1)
    return [(str(n), f"{r.peak:.3f}", f"{r.area + 1e-9:,.0f}", ", ".join(map(str, r.box))) for n, r in rows]


def test_an_image_gets_the_server_s_verdict(open_page: Open, site: str, crack: Path, answer: Any, artefacts: Path):
    page = open_page(site)
    give(page, crack)
    decision = "Anomaly" if answer.is_anomaly else "Normal"
    expect(page.locator("#decision-text")).to_have_text(decision)
    assert fact(page, "score") == f"{answer.score:.4f}"
    assert fact(page, "threshold") == f"{answer.threshold:.4f}"
    assert fact(page, "p-value") == f"{answer.p_value:.4f}"
    assert fact(page, "checkpoint") == answer.checkpoint
    assert fact(page, "size") == "96 × 96 px"
    assert regions(page) == as_rows(answer.regions)
    summary = page.locator("#canvas").get_attribute("aria-label")
    assert summary.startswith(f"000.png: {decision}, score {answer.score:.3f}")
    expect(page.locator("#announcer")).to_have_text(summary)
    page.screenshot(path=artefacts / "verdict.png", full_page=True)


def test_the_heat_map_lies_over_the_image_and_fades_with_the_slider(
    open_page: Open, site: str, crack: Path, answer: Any
):
    page = open_page(site)
    give(page, crack)
    map_HW = decode_map(answer.map_png)

    def excess_of_red() -> list[list[float]]:
        """How much redder than blue the middles of 8 x 8 fields of the canvas are; the image itself is grey."""
        return page.evaluate("""() => {
            const canvas = document.getElementById("canvas");
            const context = canvas.getContext("2d");
            const at = (part, side) => Math.floor((part + 0.5) * side / 8);
            const read = (x, y) => context.getImageData(at(x, canvas.width), at(y, canvas.height), 1, 1).data;
            const numbers = [...Array(8).keys()];
            return numbers.map((y) => numbers.map((x) => { const [r, , b] = read(x, y); return r - b; }));
        }""")

    page.locator("#threshold").fill("1")  # no outline is in the way
    page.locator("#opacity").fill("100")
    red = np.array(excess_of_red())
    assert red.max() > 60
    assert spearmanr(red.ravel(), map_HW[6::12, 6::12].ravel()).statistic > 0.98  # redder where the map is higher
    page.locator("#opacity").fill("0")
    assert max(map(max, excess_of_red())) <= 2


def test_a_threshold_of_one_s_own_decides_and_cuts_as_the_library_does(
    open_page: Open, site: str, crack: Path, answer: Any
):
    page = open_page(site)
    give(page, crack)
    map_HW = decode_map(answer.map_png)
    for threshold in (0.3, 0.5, 0.7, 0.9):
        page.locator("#threshold").fill(str(threshold))
        expect(page.locator("#fact-threshold")).to_have_text(f"{threshold:.4f} (your own)")
        expected = "Anomaly" if answer.score > threshold else "Normal"
        expect(page.locator("#decision-text")).to_have_text(expected)
        expect(page.locator("#history .said")).to_have_text(f"{expected} · {answer.score:.3f}")
        found = find_regions(map_HW, threshold, (0, 0, 96, 96))
        shown = regions(page)
        assert sorted(row[1:] for row in shown) == sorted(row[1:] for row in as_rows(found))
    page.locator("#threshold").fill("1")
    expect(page.locator("#decision-text")).to_have_text("Normal")
    expect(page.locator("#regions-hint")).to_contain_text("Nothing in the map is above the threshold")
    page.get_by_role("button", name="Checkpoint's (30 %)").click()
    assert fact(page, "threshold") == f"{answer.threshold:.4f}"
    assert regions(page) == as_rows(answer.regions)


def test_a_threshold_by_false_alarm_rate_is_the_server_s(open_page: Open, site: str, crack: Path):
    page = open_page(site)
    give(page, crack)
    with Client(site) as client:
        thresholds = client.category("brick").thresholds
    thresholds.pop("0.3")  # the checkpoint's own rate, which has another button
    assert None in thresholds.values()
    expect(page.locator("#rates-hint")).to_be_visible()
    for rate, threshold in thresholds.items():
        button = page.locator("#rates").get_by_role("button", name=f"{100 * float(rate):g} %", exact=True)
        if threshold is None:
            expect(button).to_have_count(0)
            continue
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        assert fact(page, "threshold") == f"{threshold:.4f} (your own)"


def test_the_session_keeps_what_was_said_of_every_image(open_page: Open, site: str, images: list[Path], tmp_path: Path):
    page = open_page(site)
    bad = tmp_path / "<img src=x onerror=alert(1)>.png"
    bad.write_bytes(b"no image at all")
    page.on("dialog", lambda dialog: pytest.fail("markup was run"))
    give(page, *images, bad)
    page.locator("#category").select_option("tile")
    give(page, images[0])
    with Client(site) as client:
        scores = [client.score("brick", image.read_bytes()).score for image in images]
    entries = page.locator("#history button")
    texts = entries.all_inner_texts()
    assert texts[0].splitlines()[:2] == ["000.png", "tile"]
    assert [text.rsplit(" ", 1)[1] for text in texts[1:-1]] == [f"{score:.3f}" for score in scores]
    assert texts[-1].splitlines() == [bad.name, "brick", "Not scored"]
    entries.nth(2).click()
    expect(page.locator("#fact-score")).to_have_text(f"{scores[1]:.4f}")
    expect(entries.nth(2)).to_have_attribute("aria-pressed", "true")
    entries.last.click()
    expect(page.locator("#decision-text")).to_have_text("Not scored")
    expect(page.locator("#decision-reason")).to_contain_text("no image of a known format")
    expect(page.locator("#regions-card")).to_be_hidden()
    page.get_by_role("button", name="Clear").click()
    expect(entries).to_have_count(0)
    expect(page.get_by_text("No image yet")).to_be_visible()


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_images_are_dropped_and_pasted(open_page: Open, site: str, crack: Path, answer: Any, way: str):
    page = open_page(site)
    expect(page.locator("#category option")).to_have_count(2)
    page.evaluate(
        """([way, content]) => {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "crack.png", { type: "image/png" }));
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(crack.read_bytes()).decode()],
    )
    expect(page.locator("#picture-name")).to_have_text("crack.png")
    assert fact(page, "score") == f"{answer.score:.4f}"


def test_what_passes_is_tried_again_and_what_stays_is_told(open_page: Open, site: str, crack: Path):
    page = open_page(site)
    expect(page.locator("#category option")).to_have_count(2)
    busy = ['{"type": "urn:cflow-ray:problem:overloaded", "status": 503, "title": "busy", "detail": "later"}'] * 2

    def first_busy(route: Any) -> None:
        if busy:
            route.fulfill(status=503, body=busy.pop(), headers={"Retry-After": "0.05"})
        else:
            route.continue_()

    page.route("**/v1/score/**", first_busy)
    give(page, crack)
    expect(page.locator("#decision-text")).to_have_text(re.compile("Anomaly|Normal"))
    assert busy == []
    page.unroute("**/v1/score/**")
    page.route("**/v1/score/**", lambda route: route.abort())
    give(page, crack)
    expect(page.locator("#decision-text")).to_have_text("Not scored")
    expect(page.locator("#decision-reason")).to_contain_text("cannot be reached")


def test_promotion_needs_an_administrator_s_token_and_is_rolled_back(
    open_page: Open, closed_site: str, own_registry: Registry, artefacts: Path
):
    first = own_registry.best("brick")
    page = open_page(f"{closed_site}/#registry")
    page.get_by_label("Token", exact=True).fill("for-users")
    page.get_by_role("button", name="Use token").click()
    card = page.get_by_role("article", name="brick")
    card.get_by_text("Versions and history").click()
    page.screenshot(path=artefacts / "registry.png", full_page=True)
    promote = card.get_by_role("button", name="Promote v2-abcdef")
    promote.click()
    page.locator("#confirm-no").click()
    assert own_registry.best("brick") == first

    promote.click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#token-reason")).to_contain_text("administrator's")
    expect(page.locator("#notice")).to_contain_text("may not move pointers")
    assert own_registry.best("brick") == first
    page.get_by_label("Token", exact=True).fill("for-admins")
    page.keyboard.press("Enter")
    promote.click()
    page.locator("#confirm-yes").click()
    expect(card.locator("> .version")).to_have_text("v2-abcdef")
    assert own_registry.best("brick") == "v2-abcdef"
    expect(page.locator("#notice")).to_be_hidden()

    card.get_by_role("button", name=f"Roll back to {first}").click()
    page.locator("#confirm-yes").click()
    expect(card.locator("> .version")).to_have_text(first)
    assert own_registry.best("brick") == first
    kept = page.evaluate("() => [Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    assert kept == [["for-admins"], [], ""]
    expect(page.get_by_role("button", name="Access token set")).to_be_visible()
    page.get_by_role("button", name="Access token set").click()
    page.get_by_role("button", name="Forget").click()
    assert page.evaluate("() => sessionStorage.length") == 0


def test_a_server_that_wants_a_token_is_given_one(open_page: Open, closed_site: str, crack: Path):
    page = open_page(closed_site)
    expect(page.locator("#token-reason")).to_contain_text("wants a token")
    page.get_by_label("Token", exact=True).fill("for-users")
    page.keyboard.press("Enter")
    expect(page.locator("#category option")).to_have_count(2)
    expect(page.locator("#notice")).to_be_hidden()
    give(page, crack)
    expect(page.locator("#decision-text")).to_have_text(re.compile("Anomaly|Normal"))
    assert page.evaluate("() => Object.values(sessionStorage)") == ["for-users"]


def test_the_keyboard_is_enough(open_page: Open, site: str, crack: Path):
    page = open_page(site)
    page.on("filechooser", lambda chooser: chooser.set_files(crack))
    expect(page.locator("#category option")).to_have_count(2)
    focused = page.locator(":focus")

    def tab_to(target: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("(target) => document.activeElement.matches(target)", target):
                return
        raise AssertionError(f"no Tab comes to {target}")

    page.keyboard.press("Tab")
    assert focused.inner_text() == "Skip to the content"
    page.keyboard.press("Enter")
    tab_to("#category")
    page.keyboard.press("ArrowDown")
    assert page.locator("#category").input_value() == "tile"
    tab_to("#files")
    ring = page.locator("label[for=files]").evaluate("(label) => getComputedStyle(label).outlineWidth")
    assert ring == "3px"  # the file chooser itself is not seen; its label shows where the focus is
    page.keyboard.press("Enter")
    expect(page.locator("#decision-text")).to_have_text(re.compile("Anomaly|Normal"))
    tab_to("#threshold")
    page.keyboard.press("Home")
    expect(page.locator("#decision-text")).to_have_text("Anomaly")
    expect(page.locator("#announcer")).to_contain_text("Anomaly")
    page.keyboard.press("End")
    expect(page.locator("#decision-text")).to_have_text("Normal")
    expect(page.locator("#announcer")).to_contain_text("Normal")
    page.keyboard.press("Home")
    tab_to("#regions-rows button")
    page.get_by_role("link", name="Registry").focus()
    page.keyboard.press("Enter")
    tab_to("details[data-category=brick] summary")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Promote v2-abcdef")).to_be_visible()
    tab_to("button[aria-label='Promote v2-abcdef']")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#confirm-dialog")).to_be_hidden()
    assert focused.get_attribute("aria-label") == "Promote v2-abcdef"  # where it was before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_state_is_accessible_and_fits(
    open_page: Open, site: str, images: list[Path], artefacts: Path, width: int, scheme: str
):
    page = open_page(site, width=width, scheme=scheme)
    expect(page.locator("#health-text")).to_have_text("Server ready")
    axe = Axe()

    def check(state: str) -> None:
        page.screenshot(path=artefacts / f"{state}.png", full_page=True)
        violations = axe.run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in violations] == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width

    check("empty")
    give(page, *images)
    check("verdict")
    page.locator("#threshold").fill("0.4")
    check("own-threshold")
    page.get_by_role("link", name="Registry").click()
    card = page.get_by_role("article", name="brick")
    card.get_by_text("Versions and history").click()
    card.get_by_text("More metrics").click()
    expect(card.get_by_role("button", name="Promote v2-abcdef")).to_be_visible()
    check("registry")
    page.get_by_role("button", name="Access token").click()
    check("token")

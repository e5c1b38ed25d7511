"""The pages in headless Chromium, on real data: what is drawn is what the files hold. Run by ``make test-browser``."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hssl.config import FinetuneConfig, NetworkConfig
from hssl.runs import Run
from hssl.store import CaseRecord, Store, aggregate, widest_slice
from hssl.training.finetune import finetune

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
TASK = "Task03_Cardiac"
SUBJECTS = 6
OUTPUT = Path(__file__).parents[2] / "build" / "browser"
# Software drawing, so that it needs no graphics card, and nothing that would ask a network.
FLAGS = [
    *("--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle", "--use-angle=swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDTHS = {"laptop": (1280, 800, "light"), "phone": (390, 844, "dark")}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium where there is one, else Playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def raw(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few subjects of a real challenge."""
    whole = real_data / TASK
    if not whole.is_dir():
        pytest.skip(f"no {TASK} in {real_data}")
    folder = tmp_path_factory.mktemp("raw") / TASK
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    described = json.loads((whole / "dataset.json").read_text())
    described["training"] = described["training"][: 2 * SUBJECTS]
    (folder / "dataset.json").write_text(json.dumps(described))
    for pair in described["training"]:
        for file in pair.values():
            shutil.copyfile(whole / file, folder / file)
    return folder


@pytest.fixture(scope="session")
def store(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return aggregate([raw], tmp_path_factory.mktemp("browser") / "store")


@pytest.fixture(scope="session")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fine-tuning of seconds: its masks are poor, and real."""
    config = FinetuneConfig(
        task=TASK,
        label_budget=2,
        validation=False,
        steps=30,
        warmup=5,
        patch_size=64,
        batch_size=4,
        log_every=2,
        network=NetworkConfig(features=(8, 16, 16)),
        accelerator="cpu",
        loggers=(),
    )
    return finetune(store, tmp_path_factory.mktemp("browser-runs") / "run", config=config)


@pytest.fixture(scope="session")
def address(store: Store, run: Run) -> Iterator[str]:
    """What ``hssl view`` prints."""
    command = [sys.executable, "-m", "hssl", "--quiet", "view", str(store.path), str(run.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        line = server.stdout.readline().strip()
        assert line.startswith("http://127.0.0.1:")
        yield line
        server.terminate()


@pytest.fixture(params=WIDTHS)
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page whose console stays free of errors and which asks nobody else for anything."""
    width, height, scheme = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if not local(asked.url) else None)
    aborted = "net::ERR_ABORTED"  # what was on its way when the page was left
    opened.on("requestfailed", lambda asked: said.append(asked.url) if asked.failure != aborted else None)
    yield opened
    OUTPUT.mkdir(parents=True, exist_ok=True)
    name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
    opened.screenshot(path=OUTPUT / f"{name}.png", full_page=True, timeout=120_000)
    wide = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert said == []
    assert wide == 0, "the page is wider than the screen"


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def open_case(page: Page, address: str, case: CaseRecord) -> None:
    page.goto(address)
    page.get_by_role("link", name="store", exact=True).click()
    page.get_by_role("link", name=case.task).first.click()
    page.get_by_role("link", name=case.id).click()
    page.wait_for_selector("[data-ready]", timeout=120_000)


def wait_for_pictures(page: Page) -> None:
    """Not by Playwright's own waiting, which evaluates text, as the page forbids."""
    for _ in range(600):
        if page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)"):
            return
        page.wait_for_timeout(100)
    raise AssertionError("a picture does not come")


def told(page: Page, name: str) -> Any:
    return json.loads(page.locator("[data-volume]").get_attribute(f"data-{name}") or "null")


def go(page: Page, place: tuple[int, ...]) -> None:
    for axis, value in enumerate(place):
        field = page.locator(f"[data-place='{axis}']")
        field.fill(str(value))
        field.press("Enter")


def test_home_and_store(page: Page, address: str, store: Store) -> None:
    page.goto(address)
    page.get_by_role("link", name="store", exact=True).click()
    sheet = page.get_by_alt_text("Slices of every task")
    sheet.scroll_into_view_if_needed()
    wait_for_pictures(page)
    page.get_by_role("link", name=TASK).first.click()
    assert page.locator("ul.cases li").count() == len(store.cases(TASK))
    page.get_by_label("Find a case").fill(store.cases(TASK)[-1].id)
    page.get_by_role("button", name="Find").click()
    assert page.locator("ul.cases li").count() == 1


def test_a_voxel_picked_in_the_page_equals_the_files(page: Page, address: str, store: Store, raw: Path) -> None:
    """Voxels of every label and of none: NiiVue's values against the store's array and against the raw file."""
    case = store.cases(TASK)[0]
    open_case(page, address, case)
    image, label = store.image(case), store.label(case)
    rng = np.random.default_rng(0)
    places = [tuple(map(int, rng.choice(np.argwhere(label == value)))) for value in (*store.tasks[TASK].labels, 0)]
    affine = store.tasks[TASK].preprocessing.stored_affine(case.geometry)
    mask = nib.load(raw / "labelsTr" / f"{case.id}.nii.gz")
    for place in [*places, (0, 0, 0), tuple(length - 1 for length in image.shape)]:
        go(page, place)
        assert told(page, "voxel") == list(place)
        assert told(page, "values") == [float(image[place]), int(label[place])]
        there = np.linalg.inv(case.geometry.affine) @ affine @ [*place, 1]
        nearest = tuple(np.clip(there[:3].round().astype(int), 0, np.array(mask.shape) - 1))
        if label[place] == 0 or place in places[:-1]:
            near = np.asarray(mask.dataobj)[tuple(slice(max(0, at - 1), at + 2) for at in nearest)]
            assert label[place] in near  # resampling in plane moves an edge by less than a pixel


def test_the_mask_is_drawn_where_it_is(page: Page, address: str, store: Store) -> None:
    """Each pixel of the canvas is asked for its voxel, and its colour must be that of the voxel's label."""
    case = store.cases(TASK)[0]
    open_case(page, address, case)
    label = store.label(case)
    number = widest_slice(label)
    page.get_by_label("axial").check()
    mask = page.locator("fieldset", has=page.locator("legend", has_text="mask"))
    opacity = mask.get_by_role("slider")
    opacity.fill("1")
    page.get_by_label("bright").fill("1")
    go(page, (number, 1, 1))  # the cross is out of the way
    page.wait_for_timeout(500)
    colours = {1: (0xD6, 0x27, 0x28), 2: (0x1F, 0x77, 0xB4), 3: (0x2C, 0xA0, 0x2C)}
    canvas = page.locator("canvas")
    shown = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
    box = canvas.bounding_box()
    assert box is not None
    rng = np.random.default_rng(1)
    checked = dict.fromkeys((0, *colours), 0)
    regions = [rng.permutation(interior(label[number] == value))[:4] for value in checked]
    found = []
    for row, column in np.concatenate(regions).tolist():
        go(page, (number, row, column))
        assert told(page, "voxel") == [number, row, column]
        found.append((row, column, told(page, "values")[1]))
    # Where on the canvas do they lie? Clicks on a coarse grid tell the line from pixels to voxels.
    points = []
    for down in np.linspace(0.3, 0.7, 4):
        for across in np.linspace(0.35, 0.65, 4):
            at = (across * box["width"], down * box["height"])
            canvas.click(position={"x": at[0], "y": at[1]})
            voxel = told(page, "voxel")
            assert voxel[0] == number
            points.append((*at, voxel[1], voxel[2]))
    x, y, rows, columns = np.array(points).T
    to_x, to_y = np.polyfit(columns, x, 1), np.polyfit(rows, y, 1)
    assert to_x[0] > 0  # columns to the right, rows downwards: upright as on a radiologist's screen
    assert to_y[0] > 0
    scale = shown.shape[1] / box["width"]
    for row, column, value in found:
        assert value == label[number, row, column]
        pixel = shown[round(np.polyval(to_y, row) * scale), round(np.polyval(to_x, column) * scale)]
        if value:
            assert np.abs(pixel - colours[value]).max() < 40, (row, column, value, pixel)
        else:
            assert np.ptp(pixel) < 12, (row, column, pixel)  # grey
        checked[value] += 1
    assert min(checked.values()) > 0
    mask.get_by_role("checkbox").uncheck()
    page.wait_for_timeout(300)
    without = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
    for row, column, value in found:
        if value:
            pixel = without[round(np.polyval(to_y, row) * scale), round(np.polyval(to_x, column) * scale)]
            assert np.ptp(pixel) < 12


def interior(region: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pixels of a slice whose neighbours two pixels away are of the region too."""
    kept = region.copy()
    for axis in (0, 1):
        for by in (-2, -1, 1, 2):
            kept &= np.roll(region, by, axis)
    kept[:4], kept[-4:], kept[:, :4], kept[:, -4:] = False, False, False, False
    return np.argwhere(kept)


def test_keys_move_the_cross_and_reach_every_tool(page: Page, address: str, store: Store) -> None:
    case = store.cases(TASK)[0]
    open_case(page, address, case)
    slices, rows, columns = case.shape
    here = (slices // 2, rows // 2, columns // 2)
    go(page, here)
    page.locator("canvas").focus()
    for key, axis, by in (("ArrowRight", 2, 1), ("ArrowDown", 1, 1), ("PageDown", 0, 1), ("ArrowLeft", 2, -1)):
        page.keyboard.press(key)
        here = tuple(value + by * (each == axis) for each, value in enumerate(here))
        assert told(page, "voxel") == list(here)
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.type ?? document.activeElement.tagName"))
    assert {"radio", "number", "range", "checkbox"} <= reached


def test_a_run(page: Page, address: str, store: Store, run: Run) -> None:
    page.goto(address)
    page.get_by_role("link", name="run", exact=True).click()
    page.wait_for_selector("[data-map] circle.near", timeout=120_000)
    page.wait_for_selector("[data-own] img")
    assert page.locator("[data-curves] svg").count() == len(run.metrics())
    assert f"step {run.config.steps} of {run.config.steps}, complete" in page.locator("[data-progress]").inner_text()
    dots, names = page.locator("[data-map] circle"), page.locator(".near .card b")
    first = names.first.inner_text()
    page.locator("[data-map] svg").focus()
    for number in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        assert dots.nth(number).get_attribute("class") == "chosen"
    dots.nth(0).scroll_into_view_if_needed()
    dots.nth(0).dispatch_event("pointerenter")
    assert names.first.inner_text() == first
    assert page.locator(".near .card img").count() == 7
    wait_for_pictures(page)


def test_predict_here(page: Page, address: str, raw: Path, tmp_path: Path) -> None:
    image = min((raw / "imagesTr").glob("*.nii.gz"))
    page.goto(f"{address}predict")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"this is no image")
    page.get_by_label("Drop a NIfTI file").set_input_files(bad)
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector("[data-state].warning")
    assert "bad.nii.gz" in page.locator("[data-state]").inner_text()
    page.get_by_label("Drop a NIfTI file").set_input_files(image)
    page.get_by_role("button", name="Predict").click()
    page.wait_for_selector("[data-ready]", timeout=300_000)
    with page.expect_download() as taken:
        page.get_by_role("link", name="Take the mask").click()
    assert taken.value.suggested_filename == image.name
    taken.value.save_as(tmp_path / image.name)
    mask, source = nib.load(tmp_path / image.name), nib.load(image)
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    voxels = np.asarray(source.dataobj)
    for place in ((5, 7, 2), tuple(length // 2 for length in source.shape)):
        go(page, place)
        value, label, doubt = told(page, "values")
        assert value == pytest.approx(float(voxels[place]), rel=1e-5)
        assert label == int(np.asarray(mask.dataobj)[place])
        assert 0 <= doubt <= 1
    page.locator("fieldset", has_text="uncertainty").get_by_role("checkbox").check()
    page.wait_for_timeout(300)


def test_another_page_cannot_ask(browser: Browser, address: str) -> None:
    """A page of another origin gets nothing, with the address and without."""
    context = browser.new_context()
    page = context.new_page()
    page.goto("data:text/html,<h1>Another page</h1>")
    answer = page.evaluate("(address) => fetch(address).then(() => 'answered', () => 'refused')", address)
    assert answer == "refused"
    response = page.goto(address.rsplit("/", 2)[0] + "/")
    assert response is not None
    assert response.status == 403
    context.close()

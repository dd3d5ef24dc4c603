"""Run a notebook in JupyterLab as a reader does: open the link, Run All, wait, save, take a picture.

Usage: browser.py LINK CELLS PICTURE SECONDS, with how many code cells there are and how long they may take.
"""

from __future__ import annotations

import shutil
import sys
import time
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The first three for root in a container; the others keep the browser from calling home.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
READY = "Python 3 (ipykernel) | Idle"  # in the status bar
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
CELLS = ".jp-WindowedPanel-outer"
WIDTH, HIGHER, MARGIN = 1400, 20_000, 100  # of pictures: pixels; no notebook is higher
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'


def run(page: Page, link: str, cells: int, picture: str, seconds: float) -> None:
    """Run all cells of the notebook that a link opens, and save it.

    Raises:
        SystemExit: a cell fails, or the last one has not ended in time.
    """
    page.goto(link)
    page.wait_for_selector(f"{PANEL} .jp-CodeCell", timeout=60_000)
    end = time.monotonic() + seconds
    wait_for_kernel(page, link, "idle", 60)
    page.get_by_text(READY).wait_for(timeout=60_000)
    for _ in range(3):  # what is asked of a kernel that is only just connected may get lost
        page.click('.lm-MenuBar-item:has-text("Run")')
        page.click('.lm-Menu-item[data-command="runmenu:run-all"]')
        if wait_for_kernel(page, link, "busy", 10):
            break
    last = page.locator(f"{PANEL} .jp-InputPrompt", has_text=f"[{cells}]:")
    while not last.count():
        failed = page.locator(f"{PANEL} {ERROR}")
        if failed.count() or time.monotonic() > end:
            page.screenshot(path=picture)
            sys.exit(failed.first.inner_text() if failed.count() else f"cell {cells} has not ended after {seconds} s")
        page.wait_for_timeout(500)
    page.keyboard.press("Control+S")
    page.wait_for_selector(".lm-TabBar-tab.jp-mod-current.jp-mod-dirty", state="detached", timeout=30_000)
    take(page, picture)


def take(page: Page, picture: str) -> None:
    """A picture of the whole notebook, from its first to its last cell."""
    show(page, HIGHER)  # cells are drawn, and their heights known, only where there is room for them
    last = page.locator(f"{PANEL} .jp-Cell").last.bounding_box()
    assert last is not None
    show(page, int(last["y"] + last["height"]) + MARGIN)
    page.screenshot(path=picture)


def show(page: Page, height: int) -> None:
    """The notebook from its top on, in a window of this height."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.locator(f"{PANEL} {CELLS}").evaluate("cells => { cells.scrollTop = 0 }")
    page.wait_for_timeout(3000)  # for what is drawn only now


def wait_for_kernel(page: Page, link: str, state: str, seconds: float) -> bool:
    """Whether the kernel of the link's notebook has that state, with a client, before so many seconds are over."""
    address = urlsplit(link)
    notebook = unquote(address.path).removeprefix("/lab/tree/")
    for _ in range(int(seconds * 5)):
        sessions = page.request.get(f"http://{address.netloc}/api/sessions?{address.query}").json()
        kernels = [session["kernel"] for session in sessions if session["path"] == notebook]
        if any(kernel["connections"] and kernel["execution_state"] == state for kernel in kernels):
            return True
        page.wait_for_timeout(200)
    return False


def main(link: str, cells: str, picture: str, seconds: str) -> None:
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=OPTIONS)
        page = chromium.new_page(viewport={"width": WIDTH, "height": 1600})
        run(page, link, int(cells), picture, float(seconds))
        chromium.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The app in a tab of a browser."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

ARTIFACTS = Path(__file__).parents[1] / "artifacts"


class Page:
    """The app in a tab."""

    def __init__(self, browser: Any, address: str, size: tuple[int, int] = (1280, 900)) -> None:
        self.browser = browser
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get_log("browser")
        browser.get(address)
        self.until(lambda: self.all("#draw"))

    def all(self, css: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", css))

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def until(self, sees: Any, seconds: float = 120) -> Any:
        """Waits for something to be true; what is not there yet is false."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = sees()
            except WebDriverException:
                found = None
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"not seen in {seconds} seconds; toasts: {self.toasts()}")

    def toasts(self) -> list[str]:
        return [each.text for each in self.all(".toast-body")]

    def write(self, css: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        box = self.find(f"{css} textarea, {css} input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text or Keys.DELETE)

    def value(self, css: str) -> str:
        return str(self.find(f"{css} textarea, {css} input").get_attribute("value"))

    def slide(self, css: str, value: float) -> None:
        self.browser.execute_script(
            "const i = document.querySelector(arguments[0] + ' input[type=range]');"
            "i.value = arguments[1]; i.dispatchEvent(new Event('input', {bubbles: true}));"
            "i.dispatchEvent(new Event('pointerup', {bubbles: true}));",
            css,
            str(value),
        )

    def draw(self, prompt: str) -> None:
        self.write("#prompt-text", prompt)
        old = self.picture() if self.all("#map img") else None
        self.find("#draw").click()
        self.until(lambda: self.all("#map img") and self.picture() != old)

    def tab(self, name: str) -> None:
        """Open a tab by its name."""
        tabs = [each for each in self.all("button[role=tab]") if each.text == name]
        tabs[0].click()

    def choose(self, css: str, name: str) -> None:
        """Choose an entry of a dropdown."""
        self.find(f"{css} input").click()
        self.until(lambda: self.all(f"{css} [role=option]"))
        entries = [each for each in self.all(f"{css} [role=option]") if name in each.text]
        entries[0].click()

    def words(self) -> list[Any]:
        return self.all("#words label")

    def picture(self, css: str = "#map img") -> bytes:
        """Return the pixels of an image as PNG."""
        url = self.browser.execute_async_script(
            "const [css, done] = arguments; const i = document.querySelector(css);"
            "const c = document.createElement('canvas');"
            "i.decode().then(() => { c.width = i.naturalWidth; c.height = i.naturalHeight;"
            "c.getContext('2d').drawImage(i, 0, 0); done(c.toDataURL('image/png')); },"
            "() => done(''))",
            css,
        )
        return base64.b64decode(url.partition(",")[2])

    def changed(self, before: bytes, css: str = "#map img") -> bytes:
        return bytes(self.until(lambda: (now := self.picture(css)) != before and now))

    def keep(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / ".gitignore").write_text("*\n")
        size = {
            key: self.browser.execute_script(f"return document.documentElement.scroll{key}")
            for key in ("Width", "Height")
        }
        shot = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {
                    "x": 0, "y": 0, "scale": 1, "width": size["Width"], "height": size["Height"],
                },
            },
        )  # fmt: skip
        (ARTIFACTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Return what the page wrote to its console."""
        said = [entry["message"] for entry in self.browser.get_log("browser")]
        # gradio's own, whenever a file was uploaded: it closes a stream that has no close()
        return [each for each in said if "Method not implemented." not in each]

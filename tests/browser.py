"""A real headless Chromium, driven through its debugging pipe: no other package is needed."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
# /dev/shm is small in containers; root, as in a container, has no sandbox.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
]


# Scripts that list elements of a page that are laid out badly.
OUTSIDE = """[...document.querySelectorAll("main *")].filter((node) => {
  const box = node.getBoundingClientRect();
  const inside = box.left >= -1 && box.right <= innerWidth + 1;
  return !node.closest(".scroll, svg, select") && box.width && !inside;
}).map((node) => node.outerHTML.slice(0, 90))"""

OVERLAPS = """(() => {
  const nodes = [...document.querySelectorAll(
    "h1, h2, p, .scroll, canvas, svg, img, li, dt, dd, figcaption, #details tr")]
    .filter((node) => !node.closest(".scroll *") && !node.closest(".bar"));
  const boxes = nodes.map((node) => node.getBoundingClientRect());
  const found = [];
  for (let i = 0; i < nodes.length; i++) for (let j = 0; j < i; j++) {
    if (nodes[i].contains(nodes[j]) || nodes[j].contains(nodes[i])) continue;
    const a = boxes[i], b = boxes[j];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    const told = nodes[j].outerHTML.slice(0, 60) + nodes[i].outerHTML.slice(0, 60);
    if (wide > 1 && high > 1) found.push(told);
  }
  return found;
})()"""

# Text on the page's own ground, by WCAG 2: 4.5 to 1.
FAINT = """(() => {
  const light = (colour) => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((x) => {
      const c = Number(x) / 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = "h1, h2, p, dt, dd, figcaption, b, small, output, label, footer";
  return [...document.querySelectorAll(texts)].filter((node) => {
      const ink = light(getComputedStyle(node).color);
      return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05) < 4.5;
    }).map((node) => node.outerHTML.slice(0, 90));
})()"""


class Browser:
    """One tab, with the messages of its console and its network requests."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        orders, self.write = os.pipe()
        self.read, answers = os.pipe()
        command = [sys.executable, "-c", LAUNCH, str(orders), str(answers), CHROMIUM, *FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={self.profile.name}"],
            pass_fds=(orders, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(orders)
        os.close(answers)
        self.number, self.buffer, self.session = 0, b"", None
        self.messages, self.requests, self.loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self.write)
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read)
        self.profile.cleanup()

    def call(self, method, **params):
        """Call a method of Chromium and return its answer; events before it are recorded."""
        self.number += 1
        order = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            order["sessionId"] = self.session
        os.write(self.write, json.dumps(order).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._record(message)

    def _next(self):
        while b"\0" not in self.buffer:
            got = os.read(self.read, 1 << 20)
            assert got, "Chromium has ended"
            self.buffer += got
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _record(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(x.get("value")) for x in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def open(self, path, width=1280, height=900, dark=False):
        """Show this file; earlier messages and requests are dropped."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.messages, self.requests, self.loaded = [], [], False
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not self.loaded:
            self._record(self._next())
        self.run("new Promise((done) => setTimeout(done, 50))")

    def run(self, script):
        """Evaluate an expression, and await it if it is a promise."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, *keys):
        """Press each key, as on a keyboard."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                code = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
                code |= {"Tab": 9, "Home": 36, "End": 35}
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=key,
                    code=key,
                    windowsVirtualKeyCode=code[key],
                )

    def click(self, x, y):
        """Press and release the left button there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path, whole=True):
        """A screenshot, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

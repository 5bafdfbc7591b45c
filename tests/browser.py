"""A browser for tests: Chromium without a window, steered through two pipes (DevTools protocol).

It says nothing to any network, takes any width, light or dark, screen or paper, and presses keys.
"""

import base64
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39, "ArrowDown": 40}
TEXT = {"Enter": "\r", " ": " "}  # what a key writes


class Browser:
    """One Chromium with one page."""

    def __init__(self, folder, patience=90):
        """folder: for its profile. patience: seconds that any answer may take."""
        self.patience, self.number, self.unread = patience, 0, b""
        self.events = []  # (name, parameters) of what happened on the page
        from_us, self.to_it = os.pipe()
        self.from_it, to_us = os.pipe()
        command = [CHROMIUM, *QUIET, f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(3, 4),
            preexec_fn=functools.partial(place, from_us, to_us),
        )
        os.close(from_us)
        os.close(to_us)
        self.session = None

    def attach(self):
        """Opens its page. Raises OSError or EOFError where it is too slow, or gone."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        limits = dict(latency=0, downloadThroughput=0, uploadThroughput=0)
        self.call("Network.emulateNetworkConditions", offline=True, **limits)

    def close(self):
        """Ends it, and all that it started: the session it was started in, and no more."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.to_it)
        os.close(self.from_it)

    def call(self, method, **parameters):
        """What a method of the protocol returns."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_it, json.dumps(message).encode() + b"\0")
        return self.read_until(lambda heard: heard.get("id") == self.number)["result"]

    def read_until(self, wanted):
        """The first message that is wanted; events on the way are kept."""
        deadline = time.monotonic() + self.patience
        while True:
            while b"\0" not in self.unread:
                left = deadline - time.monotonic()
                if left < 0 or not select.select([self.from_it], [], [], left)[0]:
                    raise TimeoutError("chromium does not answer")
                heard = os.read(self.from_it, 1 << 20)
                if not heard:
                    raise EOFError("chromium has ended")
                self.unread += heard
            line, self.unread = self.unread.split(b"\0", 1)
            heard = json.loads(line)
            if "method" in heard:
                self.events.append((heard["method"], heard["params"]))
            if wanted(heard):
                assert "error" not in heard, heard["error"]
                return heard

    def open(self, path, width=1280, dark=False, media="screen"):
        """Shows a file as a window of this width would, and waits until its scripts have run."""
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[theme, calm])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        loaded = "document.readyState === 'complete' ? done() : addEventListener('load', done)"
        self.evaluate(f"new Promise((done) => {loaded})")
        self.evaluate("new Promise((done) => setTimeout(done, 300))")

    def evaluate(self, script):
        """The value of an expression, or of what it promises, on the page."""
        asked = dict(expression=script, awaitPromise=True, returnByValue=True)
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key):
        """A key goes down and up."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        if key in TEXT:
            pressed["text"] = TEXT[key]
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def nameless(self):
        """What can be focused and has no name for a screen reader: role and description."""
        found = []
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            of = {name["name"]: name["value"].get("value") for name in node.get("properties", [])}
            role = node.get("role", {}).get("value")
            named = node.get("name", {}).get("value", "").strip()
            if of.get("focusable") and not named and role not in ("RootWebArea", "generic"):
                described = {"backendNodeId": node["backendDOMNodeId"]}
                element = self.call("DOM.describeNode", **described)["node"]
                found.append(f"{role} <{element['localName']} {element.get('attributes')}>")
        return found

    def picture(self, path, whole=True):
        """Saves what is seen, or the whole page, as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self.clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def clip(self, whole):
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "scale": 1}}

    def printed(self):
        """The page as a PDF file would hold it."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


def place(reads, writes):
    """Where Chromium looks for its pipes: file descriptors 3 and 4. Runs in the child."""
    high = (os.dup(reads), os.dup(writes))
    while min(high) < 5:  # neither may be overwritten by the other
        high = (os.dup(high[0]), os.dup(high[1]))
    os.dup2(high[0], 3)
    os.dup2(high[1], 4)

#!/usr/bin/env python3
"""check_pages.py - opens reports in headless Chromium, as a reader would, and checks them.

    dev/check_pages.py [--pictures DIR] [--limit MILLISECONDS] [PAGE.html | http://...]...

Without a page it checks one of hostile texts (`build/sample_report nasty`): markup, event handlers, control characters and marks
that turn the direction of the text, in every place to which a run's text comes. Each page is opened at 1280 and at 400 pixels, in
light and in dark colours, with script and without. It fails if

  - the script throws, the console has an error, a dialog opens, or anything but the page itself is asked for;
  - text became markup: an element that loads something, or an attribute that handles an event;
  - the page is wider than the window, or a word of a drawing is cut off by the edge of its section;
  - a widget has no drawing, or its script failed; without script, if it has no table;
  - a control has no label, a slider does not move by the arrow keys, or a drawing has no name for screen readers.

Prints how long each page took to open (navigation start to the end of the load event, without the browser's start), the
processor time of the page's main thread until then, which other work on the machine changes less, its parts, and the processor
time of the rest: the widgets, which are drawn after that, and the layout of what is outside of the window.
--pictures writes a PNG of each state; pages of one name in several folders are told apart by their folders. Needs Chromium
(apt-get install chromium); Python's standard library only.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile

# Draws what waits until the reader is near to it, or has printed the page.
COMPLETE = """(() => {
  dispatchEvent(new Event('beforeprint'));
  for (const e of document.querySelectorAll('section')) e.style.contentVisibility = 'visible';
  return document.documentElement.scrollHeight;
})()"""

STATE = """(() => {
  const bad = [], all = document.querySelectorAll('*');
  const loads = 'img, iframe, object, embed, link[href], video, audio, base';
  if (!location.protocol.startsWith('http'))
    for (const e of document.querySelectorAll(loads + ', script[src]')) bad.push('an element <' + e.tagName + '>');
  for (const e of all) for (const a of e.attributes) if (/^on/i.test(a.name)) bad.push('an attribute ' + a.name);
  if (document.documentElement.scrollWidth > innerWidth)
    bad.push('the page is ' + document.documentElement.scrollWidth + ' pixels wide in a window of ' + innerWidth);
  for (const e of document.querySelectorAll('main > section svg text')) {
    const word = e.getBoundingClientRect(), section = e.closest('main > section').getBoundingClientRect();
    if (word.width && (word.right > section.right + 1 || word.left < section.left - 1) && !e.closest('.scroll'))
      bad.push('a word of a drawing is cut off: ' + e.textContent);
  }
  const scripted = SCRIPTED;
  for (const w of document.querySelectorAll('[data-widget]')) {
    const name = 'the widget ' + w.dataset.widget;
    if (/This part of the script failed/.test(w.textContent)) bad.push(name + ': ' + w.textContent.slice(-200));
    const drawn = w.querySelector('svg, .tokens') && w.querySelector('input, select');
    if (scripted && !drawn && !/every rho is 1/.test(w.textContent)) bad.push(name + ' has no drawing');
    if (!scripted && w.dataset.widget !== 'pairs' && !w.querySelector('table, article, p')) bad.push(name + ' has no table');
  }
  for (const e of document.querySelectorAll('input, select, textarea, button')) {
    const labels = [...(e.labels || [])].map(l => l.textContent).join('') + (e.getAttribute('aria-label') || '');
    if (e.getClientRects().length && !labels.trim() && !(e.tagName === 'BUTTON' && e.textContent.trim()))
      bad.push('a control without a label: ' + e.outerHTML.slice(0, 80));
  }
  for (const e of document.querySelectorAll('svg'))
    if (!e.getAttribute('aria-label') && e.getAttribute('aria-hidden') !== 'true' && !e.closest('[aria-hidden=true]'))
      bad.push('a drawing without a name: ' + e.outerHTML.slice(0, 80));
  const t = performance.getEntriesByType('navigation')[0];
  return {bad, ms: t ? Math.round(t.loadEventEnd) : 0};
})()"""

SLIDERS = """(() => {
  const list = [...document.querySelectorAll('.widget input[type=range], main input[type=range]')];
  return list.filter(e => e.getClientRects().length && +e.max > +e.min).length;
})()"""

FOCUS = """(() => {
  const list = [...document.querySelectorAll('.widget input[type=range], main input[type=range]')]
    .filter(e => e.getClientRects().length && +e.max > +e.min);
  const e = list[INDEX];
  if (!e) return null;
  e.focus();
  return {at: e.value, top: +e.value >= +e.max, name: e.labels[0] ? e.labels[0].textContent : '', said: e.parentNode.textContent};
})()"""

VALUE = "(() => { const e = document.activeElement; return {at: e.value, said: e.parentNode.textContent}; })()"


TALLEST = 12000  # pixels of a picture, below the limit of Chromium
PARTS = ("Script", "RecalcStyle", "Layout")


class Browser:
    """Chromium, by DevTools' protocol over a pipe."""

    def __init__(self):
        to_browser, self.out = os.pipe()
        self.into, from_browser = os.pipe()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

        def pipes():
            os.dup2(to_browser, 3)
            os.dup2(from_browser, 4)

        os.set_inheritable(to_browser, True)
        os.set_inheritable(from_browser, True)
        self.process = subprocess.Popen(
            [os.environ.get("CHROMIUM", "chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--remote-debugging-pipe", "--user-data-dir=" + self.folder.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=pipes)  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.rest, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Performance.enable", timeDomain="threadTicks")

    def message(self):
        while b"\0" not in self.rest:
            part = os.read(self.into, 1 << 20)
            if not part:
                sys.exit("check_pages.py: Chromium has ended")
            self.rest += part
        one, self.rest = self.rest.split(b"\0", 1)
        one = json.loads(one)
        if one.get("method") == "Page.javascriptDialogOpening":  # the page waits for its end
            self.send("Page.handleJavaScriptDialog", {"accept": False})
        return one

    def send(self, method, parameters):
        self.number += 1
        request = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.out, json.dumps(request).encode() + b"\0")
        return self.number

    def call(self, method, **parameters):
        number = self.send(method, parameters)
        while True:
            answer = self.message()
            if answer.get("id") == number:
                if "error" in answer:
                    sys.exit(f"check_pages.py: {method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            sys.exit("check_pages.py: " + result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def busy(self):
        """Milliseconds of processor time of the page's main thread so far: all of it, and by PARTS."""
        metrics = {m["name"]: 1000 * m["value"] for m in self.call("Performance.getMetrics")["metrics"]}
        return [metrics[name + "Duration"] for name in ("Task",) + PARTS]

    def load(self, url):
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.message())

    def open(self, url):
        """Opens a page and then completes it; returns the processor times of both, as busy() does, in milliseconds."""
        self.load("about:blank")
        before = self.busy()
        self.load(url)
        opened = self.busy()
        self.evaluate(COMPLETE)
        complete = self.busy()
        if opened[0] < before[0]:  # another process has the page
            before = [0] * len(before)
        return [[b - a for a, b in zip(x, y)] for x, y in ((before, opened), (opened, complete))]

    def close(self):
        self.process.terminate()
        self.process.wait()


def complaints(events, url):
    for e in events:
        p = e.get("params", {})
        if e.get("method") == "Runtime.exceptionThrown":
            yield "an exception: " + p["exceptionDetails"].get("exception", {}).get("description", "?")[:300]
        elif e.get("method") == "Log.entryAdded" and p["entry"]["level"] == "error":
            yield "an error on the console: " + p["entry"]["text"][:300]
        elif e.get("method") == "Page.javascriptDialogOpening":
            yield "a dialog: " + p["message"][:100]
        elif e.get("method") == "Network.requestWillBeSent" and not p["request"]["url"].startswith((url, "data:")):
            yield "a request for " + p["request"]["url"][:200]


def move_sliders(browser):
    """Moves every slider by an arrow key; yields those that do not move or do not say their new value."""
    for i in range(browser.evaluate(SLIDERS)):
        before = browser.evaluate(FOCUS.replace("INDEX", str(i)))
        if not before:
            continue
        key = "ArrowLeft" if before["top"] else "ArrowRight"
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                         windowsVirtualKeyCode=37 if before["top"] else 39)  # fmt: skip
        after = browser.evaluate(VALUE)
        if after["at"] == before["at"]:
            yield f"the slider '{before['name']}' does not move by {key}"
        elif after["said"] == before["said"]:
            yield f"the slider '{before['name']}' does not show its new value"


def photograph(browser, path, width):
    """Writes a page as PATH.png, what is below its first TALLEST pixels as PATH-2.png and so on."""
    height = browser.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
    for number, top in enumerate(range(0, int(height), TALLEST), 1):
        clip = {"x": 0, "y": top, "width": width, "height": min(height - top, TALLEST), "scale": 1}
        picture = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        with open(f"{path}{'' if number == 1 else f'-{number}'}.png", "wb") as f:
            f.write(base64.b64decode(picture["data"]))


def middle(values):
    return sorted(values)[len(values) // 2]


def picture_names(pages):
    """The beginning of each page's pictures: its name, with its folders if another page has the same name."""
    short = [os.path.basename(page.rstrip("/")) for page in pages]
    return [name if short.count(name) == 1 else page.strip("/.").replace("/", "-") for name, page in zip(short, pages)]


def check(browser, page, stem, o):
    failures, times, busy, rest = {}, [], [], []  # failures: the states in which each was seen
    url = page if page.startswith("http") else "file://" + os.path.abspath(page)
    for width in (1280, 400):
        for scheme in ("light", "dark"):
            for script in (True, False):
                browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
                browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                browser.call("Emulation.setScriptExecutionDisabled", value=not script)
                opened, completed = browser.open(url)
                busy.append(opened)
                rest.append(completed[0])
                state = browser.evaluate(STATE.replace("SCRIPTED", "true" if script else "false"))
                where = f"{width} {scheme}{'' if script else ' without script'}"
                bad = state["bad"] + (list(move_sliders(browser)) if script else [])
                for b in dict.fromkeys(bad + list(complaints(browser.events, url))):
                    failures.setdefault(b, []).append(where)
                times.append(state["ms"])
                if o.pictures:
                    name = f"{stem}-{width}-{scheme}{'' if script else '-plain'}"
                    photograph(browser, os.path.join(o.pictures, name), width)
    size = "" if page.startswith("http") else f"{os.path.getsize(page) / 1e6:.2f} MB, "
    all_, *parts = zip(*busy)
    parts = ", ".join(f"{name} {middle(values):.0f}" for name, values in zip(("script", "style", "layout"), parts))
    print(f"{page}: {size}opens in {min(times)} to {max(times)} ms, median {middle(times)}, with {min(all_):.0f} to {max(all_):.0f} ms of "
          f"processor time, median {middle(all_):.0f} ({parts}), and {middle(rest):.0f} until all of it is drawn; {len(failures)} "
          f"failure{'s' if len(failures) != 1 else ''}")
    if o.limit and middle(times) > o.limit:
        failures[f"the median of {middle(times)} ms is above the limit of {o.limit:g}"] = ["all states"]
    for what, where in failures.items():
        print(f"  {what} ({', '.join(where)})")
    return not failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", metavar="DIR", help="write a PNG of each state of a page here")
    parser.add_argument("--limit", type=float, help="fail if the median time to open is longer, in milliseconds")
    parser.add_argument("pages", nargs="*")
    o = parser.parse_args()
    if o.pictures:
        os.makedirs(o.pictures, exist_ok=True)
    browser = Browser()
    with tempfile.TemporaryDirectory() as folder:
        if not o.pages:
            subprocess.run(["build/sample_report", "nasty", folder], check=True)
            o.pages = [os.path.join(folder, "report.html")]
        ok = all([check(browser, page, stem, o) for page, stem in zip(o.pages, picture_names(o.pages))])
    browser.close()
    sys.exit(0 if ok else 1)


main()

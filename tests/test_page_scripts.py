"""What the scripts of a report show, held against what is known by hand. No browser: node runs
them on as much of a document as they use (page_in_node.js)."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tasks
from minifunc.report import page
from minifunc.support.files import save_json, save_lines
from tests.handwired import headline_model
from tests.test_report_js import NODE, needs_node, report_of

RUNNER = Path(__file__).with_name("page_in_node.js")
EMPTY = {"meta", "input", "br"}


class Tree(HTMLParser):
    """A page as [tag, attributes, children], and its scripts apart."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts = [["", {}, []]], []
        self.feed(text)
        [self.root] = [x for x in self.open[0][2] if isinstance(x, list)]

    def handle_starttag(self, tag, attributes):
        made = [tag, dict(attributes), []]
        self.open[-1][2].append(made)
        if tag not in EMPTY:
            self.open.append(made)

    def handle_startendtag(self, tag, attributes):
        self.open[-1][2].append([tag, dict(attributes), []])

    def handle_endtag(self, tag):
        closed = self.open.pop()
        assert closed[0] == tag
        if tag == "script" and "type" not in closed[1]:
            self.scripts += closed[2]
            self.open[-1][2].remove(closed)

    def handle_data(self, data):
        self.open[-1][2].append(data)


def said_by(report, script, **data):
    """What a script returns that is run on a page once it is loaded."""
    tree = Tree(report.read_text())
    given = {"page": tree.root, "scripts": tree.scripts, "script": script} | data
    done = subprocess.run(
        [NODE, str(RUNNER)], input=json.dumps(given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)

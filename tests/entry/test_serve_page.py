"""The server as it is started, its page in a real browser, and its end."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import programs
import pytest
import served
from chromium import Page, browser
from served import COLOURS

from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.hostile_requests import hostile_request
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.warm_start import WarmProgram

pytest.importorskip("uvicorn", reason="uvicorn (the extra serve) is not installed")
PATIENCE_SECONDS = 120
QUESTION = "where is the green box"


@dataclass(frozen=True)
class Served:
    address: str
    process: WarmProgram
    log: Path


def _write_models(topology: ProcessTopology, folder: str) -> None:
    served.write_models(Path(folder), topology)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page") / "all"
    served.write_passages(folder, [f"the room of {colour}" for colour in reversed(COLOURS)])
    run_on_ranks(_write_models, 1, str(folder))
    documents = folder / "documents"
    documents.mkdir()
    (documents / "boxes.html").write_text("<title>Boxes</title><script>document.title = 'bad'</script>")
    places = ("--evidence", folder / "evidence", "--embeddings", folder / "embeddings", "--bm25-index", folder / "bm25")
    models = ("--retriever", folder / "retriever", "--reader", folder / "reader", "--device", "cpu")
    words = ("-m", "megatron_retrieval", "serve", "--port", 0, "--documents", documents, *places, *models)
    out, log = folder / "out", folder / "log"
    process = programs.start(programs.command(*words), out, log)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (out.exists() and out.read_text().endswith("\n")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Served(out.read_text().strip(), process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def _ask(page: Page, question: str) -> None:
    page.evaluate("document.getElementById('question').select()")
    page.type(question)
    page.press("Enter")


def _answered(page: Page) -> None:
    page.wait_for(
        "document.querySelector('#text').textContent && document.querySelector('#found').ariaBusy === 'false'"
    )


def test_a_question_is_asked_and_its_source_read_by_keyboard_alone(server: Served, page: Page) -> None:
    page.look(width=1000)
    page.open(server.address)
    page.wait_for("document.getElementById('facts').textContent === '6 passages'")
    assert page.evaluate("document.activeElement.id") == "question"
    _ask(page, QUESTION)
    _answered(page)
    assert page.evaluate("document.querySelectorAll('#passages li').length") == len(COLOURS)
    # titles are text, whatever they hold; the answer is marked in the passage that it is from
    assert page.evaluate("document.querySelector('#passages .title').textContent") == "<b>box</b>"
    marked = "document.querySelector('#passages li.source mark').textContent.toLowerCase()"
    assert page.evaluate(marked) == page.evaluate("document.getElementById('text').textContent.toLowerCase()")
    page.press("ArrowDown")
    page.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('li').id") == "p1"
    page.press("Enter")
    page.wait_for("document.getElementById('reader').open")
    page.press("Escape")
    page.wait_for("!document.getElementById('reader').open")
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "question"


def test_the_kind_of_search_can_be_chosen_and_the_address_keeps_it(server: Served, page: Page) -> None:
    page.open(server.address)
    page.wait_for("document.querySelectorAll('#methods input').length === 3")
    _ask(page, "green")
    _answered(page)
    page.evaluate("document.querySelector('#methods input[value=bm25]').click()")
    page.wait_for("document.querySelectorAll('#passages .title').length === 2")
    assert page.evaluate("document.querySelector('#passages .asked').textContent") == "green"
    assert "m=bm25" in page.evaluate("location.hash")
    page.evaluate("history.back()")
    page.wait_for("document.querySelectorAll('#passages .title').length > 2")
    _ask(page, "zebra")
    page.evaluate("document.querySelector('#methods input[value=bm25]').click()")
    page.wait_for("document.getElementById('status').textContent.startsWith('No passage')")


def test_it_fits_narrow_screens_follows_dark_mode_and_names_its_parts(server: Served, page: Page) -> None:
    paper = {}
    for dark in (False, True):
        page.look(width=340, dark=dark)
        page.open(f"{server.address}/#q=green&m=dense")
        _answered(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        paper[dark] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper[False] != paper[True]
    named = (
        "[...document.querySelectorAll('input, select, button')].filter((one) => one.checkVisibility() && "
        "!(one.textContent.trim() || one.ariaLabel || (one.labels && one.labels.length))).length"
    )
    assert page.evaluate(named) == 0
    for part in (
        "#answer[aria-live]",
        "#status[role=status]",
        "#problem[role=alert]",
        "form[role=search]",
        "html[lang]",
    ):
        assert page.evaluate(f"Boolean(document.querySelector('{part}'))")


def test_the_file_of_a_passage_opens_and_runs_nothing(server: Served, page: Page) -> None:
    page.open(f"{server.address}/#q=white&m=bm25")
    _answered(page)
    link = page.evaluate("document.querySelector('#passages .place a').href")
    assert link.endswith("#page=3&passage=1")
    assert page.evaluate("document.querySelector('#passages .place').textContent") == "boxes.html, page 3"
    faults = len(page.faults)
    page.open(link)
    assert page.evaluate("document.title") == "Boxes"
    del page.faults[faults:]  # that the script is blocked is one


def test_nothing_comes_from_elsewhere_and_no_script_fails(server: Served, page: Page) -> None:
    assert page.asked
    assert all(address.startswith((server.address, "data:", "about:")) for address in page.asked)
    assert not page.faults


def test_a_server_that_does_not_answer_is_said_and_asked_again(server: Served, page: Page) -> None:
    page.look(width=1000)
    page.open(server.address)
    page.wait_for("document.getElementById('facts').textContent")
    condition = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=True, **condition)
    _ask(page, "green")
    page.wait_for("!document.getElementById('problem').hidden")
    assert "cannot be reached" in page.evaluate("document.querySelector('#problem p').textContent")
    page.call("Network.emulateNetworkConditions", offline=False, **condition)
    page.evaluate("document.querySelector('#problem button').click()")
    _answered(page)
    assert page.evaluate("document.getElementById('problem').hidden")


def test_hostile_requests_break_nothing(server: Served) -> None:
    seen = Counter(hostile_request(int(server.address.rpartition(":")[2]), seed) for seed in range(60))
    statuses = [status for status in seen if isinstance(status, int)]
    assert statuses
    assert max(statuses) < 500, seen
    assert server.process.poll() is None


def test_a_stop_signal_lets_requests_finish(server: Served) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    connections = [HTTPConnection(host, int(port), timeout=PATIENCE_SECONDS) for _ in range(24)]
    body, headers = json.dumps({"question": QUESTION, "k": 1}), {"Content-Type": "application/json"}
    for connection in connections:
        connection.request("POST", "/answer", body, headers)
    assert connections[0].getresponse().status == 200
    server.process.send_signal(signal.SIGTERM)  # the others are being answered, or wait
    assert [connection.getresponse().status for connection in connections[1:]] == [200] * 23
    assert server.process.wait(PATIENCE_SECONDS) == 0, server.log.read_text()
    log = server.log.read_text()
    assert ("stopped" in log, "Traceback" in log, QUESTION in log) == (True, False, False)

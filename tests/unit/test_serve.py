"""The REST interface in this process, over a tiny index: answers, refusals, batches, versions, files."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import served
from served import COLOURS, FILE, answering, serving

from megatron_retrieval.applications.answering import AnsweringConfig, open_answering
from megatron_retrieval.applications.ask import AskConfig, ask
from megatron_retrieval.applications.serve.config import ServeConfig, ServeLimitsConfig
from megatron_retrieval.applications.serve.service import Service, Work
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology

testclient = pytest.importorskip("fastapi.testclient", reason="FastAPI (the extra serve) is not installed")
Client = testclient.TestClient

from megatron_retrieval.applications.serve.app import make_app  # noqa: E402

QUESTION = "where is the green box"
SECRET = "s3cret"


@pytest.fixture(scope="module")
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        yield topology


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, topology: ProcessTopology) -> Path:
    folder = tmp_path_factory.mktemp("served") / "all"
    served.write_passages(folder, [f"the room of {colour}" for colour in reversed(COLOURS)])
    served.write_models(folder, topology)
    return folder


@contextmanager
def client_of(config: ServeConfig, topology: ProcessTopology) -> Iterator[tuple[Any, Service]]:
    service = Service(config, topology)
    try:
        with Client(make_app(config, service), raise_server_exceptions=False) as client:
            yield client, service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def client(folder: Path, topology: ProcessTopology) -> Iterator[Any]:
    limits = ServeLimitsConfig(max_question_length=60, max_topk=5)
    with client_of(serving(answering(folder), limits=limits), topology) as (client, _):
        yield client


def test_searches_are_those_of_the_package(client: Any, folder: Path, topology: ProcessTopology) -> None:
    session = open_answering(answering(folder), topology).search
    for method in ("hybrid", "dense", "bm25"):
        found = client.post("/search", json={"question": QUESTION, "k": 3, "method": method}).json()
        expected = session.by(method).search([QUESTION], 3)[0]
        assert [(one["id"], one["score"]) for one in found["passages"]] == [(p.id, s) for p, s in expected]
        assert (found["method"], found["version"], found["question"]) == (method, 1, QUESTION)
    (best,) = client.post("/search", json={"question": "green", "k": 1, "method": "bm25"}).json()["passages"]
    assert [best["text"][mark["start"] : mark["stop"]] for mark in best["highlights"]] == ["green"]


def test_an_answer_names_its_passage(client: Any) -> None:
    found = client.post("/answer", json={"question": QUESTION, "k": 2}).json()
    assert found["answer"]
    assert len(found["passages"]) == 4  # all that was read
    source = found["passages"][found["source"]]
    marks = [source["text"][mark["start"] : mark["stop"]] for mark in source["highlights"] if mark["kind"] == "answer"]
    assert marks
    assert {mark.casefold() for mark in marks} == {found["answer"].casefold()}


def test_where_nothing_is_found_nothing_is_read(client: Any) -> None:
    found = client.post("/answer", json={"question": "zebra", "method": "bm25"}).json()
    assert (found["answer"], found["source"], found["passages"]) == ("", None, [])


def test_a_passage_stands_between_its_neighbours(client: Any) -> None:
    passage = client.get("/passages/a/1").json()
    assert (passage["id"], passage["title"], passage["place"]) == ("a/1", "<b>box</b>", None)
    # the next but one is of a file of its own
    assert [[one["id"] for one in passage[side]] for side in ("before", "after")] == [["a/0"], ["a/2"]]
    of_file = client.get("/passages/" + FILE.replace("#", "%23")).json()
    assert (of_file["place"], of_file["before"], of_file["after"]) == ("boxes.html, page 3", [], [])


def test_the_description_has_the_limits_of_this_server(client: Any) -> None:
    described = client.get("/openapi.json").json()
    assert {"/search", "/answer", "/passages/{passage_id}", "/health"} <= set(described["paths"])
    ask = described["components"]["schemas"]["Ask"]["properties"]
    assert (ask["question"]["maxLength"], ask["k"]["maximum"]) == (60, 5)
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


def _body(text: str | bytes) -> dict[str, Any]:
    return {"content": text, "headers": {"content-type": "application/json"}}


BAD_BODIES: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": (_body(""), 422),
    "no JSON": (_body('{"question": '), 422),
    "no UTF-8": (_body(b'{"question": "\xff\xfe"}'), 400),
    "a half character": (_body('{"question": "\\ud800"}'), 422),
    "deep": (_body("[" * 4000), 400),
    "a great number": (_body('{"question": "x", "k": ' + "9" * 4500 + "}"), 400),
    "no number": (_body('{"question": "x", "k": NaN}'), 422),
    "infinite": (_body('{"question": "x", "k": 1e999}'), 422),
    "a fraction": (_body('{"question": "x", "k": 2.5}'), 422),
    "text for a number": (_body('{"question": "x", "k": "2"}'), 422),
    "zero": (_body('{"question": "x", "k": 0}'), 422),
    "too many": (_body('{"question": "x", "k": 6}'), 422),
    "a list": (_body('["question"]'), 422),
    "another field": (_body('{"question": "x", "path": "/etc/passwd"}'), 422),
    "another method": (_body('{"question": "x", "method": "grep"}'), 422),
    "no question": (_body('{"k": 2}'), 422),
    "blank": (_body('{"question": " \\u00a0\\n"}'), 422),
    "too long": (_body('{"question": "' + "x" * 61 + '"}'), 422),
    "far too long": (_body('{"question": "' + "x" * 10_000 + '"}'), 413),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_refused_with_a_sentence(client: Any, name: str) -> None:
    request, status = BAD_BODIES[name]
    for path in ("/search", "/answer"):
        refused = client.post(path, **request)
        assert refused.status_code == status, refused.text
        assert isinstance(refused.json()["detail"], str)


def test_any_text_is_a_question(client: Any) -> None:
    for question in ("\x00", "\u202e😀", "%s%n{}", "' OR 1=1 --", "<script>", "a" * 60, "\u0301" * 60, "\x7f\x1b[0m"):
        for path in ("/search", "/answer"):
            assert client.post(path, json={"question": question}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "%00", "%ff", "a%2f1%00", "x" * 5000],
)
def test_only_passages_can_be_read(client: Any, path: str) -> None:
    for root in ("/passages/", "/documents/", "/"):
        answer = client.get(root + path)
        assert answer.status_code in (400, 404), (root, answer.text)
        assert "root:" not in answer.text


def test_a_passage_gives_its_own_file_and_no_other(folder: Path, topology: ProcessTopology, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    config = serving(answering(folder, words_only=True), documents=documents)
    link, name = FILE.replace("#", "%23"), documents / "boxes.html"
    with client_of(config, topology) as (client, _):
        assert client.get(f"/documents/{link}").status_code == 404
        name.write_text("<script>alert(1)</script>")
        given = client.get(f"/documents/{link}")
        assert given.text == "<script>alert(1)</script>"
        assert given.headers["content-security-policy"].startswith("sandbox;")
        assert given.headers["x-content-type-options"] == "nosniff"
        assert client.get("/documents/a/1").status_code == 404  # names no file
        name.unlink()
        (tmp_path / "outside").write_text("secret")
        name.symlink_to(tmp_path / "outside")
        assert client.get(f"/documents/{link}").status_code == 404


def test_without_a_reader_there_are_searches_alone(folder: Path, topology: ProcessTopology) -> None:
    with client_of(serving(answering(folder, words_only=True)), topology) as (client, _):
        state = client.get("/health").json()
        assert (state["has_reader"], state["methods"], state["num_passages"]) == (False, ["bm25"], len(COLOURS))
        refused = client.post("/answer", json={"question": QUESTION})
        assert (refused.status_code, "--reader" in refused.json()["detail"]) == (404, True)
        refused = client.post("/search", json={"question": QUESTION, "method": "dense"})
        assert (refused.status_code, "bm25" in refused.json()["detail"]) == (422, True)
        assert client.get("/").headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")


def test_a_token_is_asked_for_and_another_name_refused(folder: Path, topology: ProcessTopology, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\nmore\n")
    config = serving(answering(folder, words_only=True), token_file=token)
    with client_of(config, topology) as (client, _):
        asked = {"json": {"question": QUESTION}}
        for given in ("", "Bearer", f"Basic {SECRET}", f"Bearer {SECRET[:-1]}", f"Bearer {SECRET}x", "Bearer \xe9"):
            headers = {"Authorization": given.encode("latin-1")}
            assert client.post("/search", **asked, headers=headers).status_code == 401
            assert client.get("/passages/a/1", headers=headers).status_code == 401
        assert client.post("/search", **asked, headers={"Authorization": f"Bearer {SECRET}"}).status_code == 200
        assert client.get("/health").status_code == client.get("/").status_code == 200
        for host in ("evil.example", "", "testserver.evil.example", "[::1"):
            assert client.get("/health", headers={"Host": host}).status_code == 400
    token.write_text("\n")
    with pytest.raises(DataError, match="first line"):
        config.token()
    assert ServeConfig(answering=config.answering, host="::1").names == ("127.0.0.1", "localhost", "::1")
    assert ServeConfig(answering=config.answering, host="0.0.0.0").names is None


def test_questions_that_come_together_share_batches(folder: Path, topology: ProcessTopology) -> None:
    with client_of(serving(answering(folder)), topology) as (_, service):
        works = [(Work(n % 3 == 0, "hybrid", 2), f"where is the {COLOURS[n % 6]} box") for n in range(60)]
        alone = [service.submit(*work).result() for work in works[:6]]
        before = service.worker.num_batches
        with ThreadPoolExecutor(60) as pool:
            together = list(pool.map(lambda work: service.submit(*work).result(), works))
        assert service.worker.num_batches - before < 30
        for number, (answered, _) in enumerate(together):
            expected, _ = alone[number % 6]
            assert [passage.id for passage, _ in answered.found] == [passage.id for passage, _ in expected.found]
            assert answered.source == expected.source


def _asking(service: Service, until: Callable[[], bool]) -> list[tuple[int, str]]:
    """(version, text of the best passage) of question after question."""
    seen = []
    while not until():
        answered, version = service.submit(Work(False, "bm25", 1), "green").result()
        seen.append((version.number, answered.found[0][0].text))
    return seen


def test_newer_files_take_over_while_questions_are_answered(topology: ProcessTopology, tmp_path: Path) -> None:
    for name, place in (("old", "the room"), ("new", "the box")):
        served.write_passages(tmp_path / name, [place] * len(COLOURS))
    current = tmp_path / "current"
    current.mkdir()
    for part in ("evidence", "bm25"):
        (current / part).symlink_to(tmp_path / "old" / part)

    def point(part: str) -> None:
        (tmp_path / "next").symlink_to(tmp_path / "new" / part)
        os.replace(tmp_path / "next", current / part)

    done = False
    with (
        client_of(serving(answering(current, words_only=True)), topology) as (client, service),
        ThreadPoolExecutor(4) as pool,
    ):
        asking = [pool.submit(_asking, service, lambda: done) for _ in range(4)]
        try:
            service.look()
            assert service.version.number == 1  # nothing has changed
            point("evidence")
            service.look()
            assert client.get("/health").json()["is_refusing_newer"]  # the words are those of the old evidence
            assert client.post("/search", json={"question": "green"}).json()["version"] == 1
            point("bm25")
            service.look()
            assert client.post("/search", json={"question": "green"}).json()["version"] == 2
            assert not client.get("/health").json()["is_refusing_newer"]
            shutil.rmtree(tmp_path / "old")
        finally:
            done = True
        seen = {answer for future in asking for answer in future.result()}
    assert seen == {(1, "😀 the green box stands in the room"), (2, "😀 the green box stands in the box")}


def test_the_newest_finished_version_of_a_training_run_is_searched(
    folder: Path, topology: ProcessTopology, tmp_path: Path
) -> None:
    versions = tmp_path / "index"
    shutil.copytree(folder / "embeddings", versions / "version-0000010")
    shutil.copytree(next((folder / "retriever").glob("iter_*")), versions / "snapshots" / "iter_0000010")
    (versions / "version-0000020").mkdir()  # still being made
    what = answering(folder)
    search = {**vars(what.search), "embeddings": versions, "retriever": versions / "snapshots"}
    config = AnsweringConfig(search=type(what.search)(**search))
    with client_of(serving(config), topology) as (client, service):
        asked = {"question": QUESTION, "method": "dense"}
        first = client.post("/search", json=asked).json()
        shutil.rmtree(versions / "version-0000020")
        shutil.copytree(versions / "snapshots" / "iter_0000010", versions / "snapshots" / "iter_0000020")
        os.rename(versions / "version-0000010", versions / "version-0000020")
        service.look()
        second = client.post("/search", json=asked).json()
    assert (first["version"], second["version"]) == (1, 2)
    assert first["passages"] == second["passages"]


def test_the_terminal_answers_one_question_or_a_session(
    folder: Path, topology: ProcessTopology, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(AskConfig(question=QUESTION, answering=answering(folder), topk=2), topology)
    one = capsys.readouterr().out
    assert ("(from <b>box</b>, id " in one, "1. <b>box</b>  (score " in one, "3. " in one) == (True, True, False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nzebra\n\nnever asked\n"))
    ask(AskConfig(answering=answering(folder, words_only=True), topk=1, color=True), topology)
    session = capsys.readouterr().out
    assert (session.count("1. "), "\033[1mgreen box" in session, "No passage was found." in session) == (1, True, True)
    with pytest.raises(ConfigError, match="searched by bm25"):
        ask(AskConfig(answering=answering(folder, words_only=True), method="dense"), topology)

"""Downloads over bad connections end whole or not at all, and say why."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from file_server import Act, FileServer, serving

from megatron_retrieval.data.files import resources
from megatron_retrieval.data.files.download import RECORD, DownloadConfig, download_resources
from megatron_retrieval.data.files.resources import RemoteFile, Resource, all_resources
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.utils import http_download
from megatron_retrieval.utils.http_download import Expected, PatienceConfig, Received, download
from megatron_retrieval.utils.part_file import part_file

CONTENT = bytes(number * number % 251 for number in range(20_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOTHING_KNOWN = Expected()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_download, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(CONTENT) as served:
        yield served


def _fetch(server: FileServer, folder: Path, expected: Expected = NOTHING_KNOWN, retries: int = 2) -> Received:
    patience = PatienceConfig(max_retries=retries, timeout_seconds=5)
    return download(server.address, folder / "file.tsv", expected, patience)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(server: FileServer, tmp_path: Path) -> None:
    assert _fetch(server, tmp_path) == Received(len(CONTENT), SHA256, None)
    assert (tmp_path / "file.tsv").read_bytes() == CONTENT
    assert _names(tmp_path) == ["file.tsv"]
    assert server.requests == [("/data/file.tsv", None, None)]


def test_cut_connections_are_continued(server: FileServer, tmp_path: Path) -> None:
    server.acts = [Act(cut_at=7_000), Act(cut_at=1), Act(cut_at=0), Act(cut_at=0), Act(cut_at=5_000)]
    assert _fetch(server, tmp_path).sha256 == SHA256
    assert server.ranges == [None, *(f"bytes={place}-" for place in (7_000, 7_001, 7_001, 7_001, 12_001))]
    assert {condition for _, _, condition in server.requests[1:]} == {'"first"'}


def test_another_run_continues(server: FileServer, tmp_path: Path) -> None:
    server.acts = [Act(cut_at=9_000), *[Act(status=503)] * 3]
    with pytest.raises(DataError, match=r"file\.tsv: given up after 3 attempts for nothing: the server answers 503"):
        _fetch(server, tmp_path)
    assert _names(tmp_path) == ["file.tsv.part", "file.tsv.part.json"]
    server.requests.clear()
    assert _fetch(server, tmp_path).sha256 == SHA256
    assert server.ranges == ["bytes=9000-"]
    assert _names(tmp_path) == ["file.tsv"]


def test_a_server_without_ranges_sends_it_again(server: FileServer, tmp_path: Path) -> None:
    server.acts = [Act(cut_at=9_000), Act(ignores_range=True, cut_at=12_000), Act(ignores_range=True)]
    assert _fetch(server, tmp_path).sha256 == SHA256
    assert server.ranges == [None, "bytes=9000-", "bytes=12000-"]


@pytest.mark.parametrize("act", [Act(), Act(ignores_if_range=True)], ids=["If-Range", "without If-Range"])
def test_a_file_that_changes_is_fetched_anew(server: FileServer, tmp_path: Path, act: Act) -> None:
    server.acts = [Act(cut_at=9_000), *[Act(status=503)] * 3]
    with pytest.raises(DataError):
        _fetch(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"second"'
    server.acts = [act]
    assert _fetch(server, tmp_path).sha256 == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_date_or_a_checksum_stands_in_for_a_strong_tag(server: FileServer, tmp_path: Path) -> None:
    server.etag, server.last_modified = 'W/"weak"', "Sat, 21 Nov 2026 10:00:00 GMT"
    server.acts = [Act(cut_at=10)]
    assert _fetch(server, tmp_path).last_modified == server.last_modified
    assert server.requests[-1][1:] == ("bytes=10-", server.last_modified)
    server.etag = server.last_modified = None
    for expected, asked in ((Expected(sha256=SHA256), "bytes=10-"), (NOTHING_KNOWN, None)):
        (tmp_path / "file.tsv").unlink()
        server.acts = [Act(cut_at=10)]
        assert _fetch(server, tmp_path, expected).sha256 == SHA256
        assert server.ranges[-1] == asked


def test_a_part_of_another_place_is_not_joined(server: FileServer, tmp_path: Path) -> None:
    server.acts = [Act(cut_at=9_000), Act(shift=1)]
    assert _fetch(server, tmp_path).sha256 == SHA256
    assert server.ranges == [None, "bytes=9000-", None]


@pytest.mark.parametrize(
    ("act", "expected", "problem"),
    [
        (Act(status=404), NOTHING_KNOWN, r"the server answers 404 \(Not Found\)"),
        (Act(status=403), NOTHING_KNOWN, "the server answers 403"),
        (Act(status=500), NOTHING_KNOWN, "given up after 3 attempts for nothing: the server answers 500"),
        (Act(content_type="text/html; charset=utf-8"), NOTHING_KNOWN, "a web page instead of the file"),
        (Act(), Expected(num_bytes=19_999), "the server offers 20,000 bytes, but the file has 19,999"),
        (Act(announce=None), NOTHING_KNOWN, "does not say how long the file is"),
        (Act(announce=None), Expected(num_bytes=19_999), "the file has 20,000 bytes instead of 19,999"),
        (Act(), Expected(sha256="0" * 64), f"the file's SHA-256 is {SHA256} instead of 0000"),
        (Act(announce=100), Expected(sha256=SHA256), "SHA-256"),
        (Act(cut_at=0), NOTHING_KNOWN, "the connection was cut at byte 0 of 20,000"),
        (Act(announce=1 << 60), NOTHING_KNOWN, "has room for"),
    ],
)
def test_what_is_not_the_file_is_refused(
    server: FileServer, tmp_path: Path, act: Act, expected: Expected, problem: str
) -> None:
    server.acts = [act] * 9
    with pytest.raises(DataError, match=problem):
        _fetch(server, tmp_path, expected)
    assert _names(tmp_path) == []


def test_a_length_that_is_never_reached_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.acts = [Act(announce=30_000), Act(), Act(announce=30_000), Act(), Act(announce=30_000)]
    with pytest.raises(DataError, match=r"given up after 3 attempts .* the server has nothing behind byte 20,000"):
        _fetch(server, tmp_path)
    assert _names(tmp_path) == []


def test_a_broken_gzip_is_refused_where_no_checksum_tells(server: FileServer, tmp_path: Path) -> None:
    server.content = gzip.compress(CONTENT)[:-1]
    with pytest.raises(DataError, match="broken gzip"):
        _fetch(server, tmp_path)
    assert _names(tmp_path) == []
    server.content = gzip.compress(CONTENT)
    assert _fetch(server, tmp_path).num_bytes == len(server.content)


def test_a_silent_server_counts_as_a_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="given up after 1 attempts"):
        download("http://127.0.0.1:9/file", tmp_path / "file", NOTHING_KNOWN, PatienceConfig(max_retries=0))
    assert _names(tmp_path) == []


def test_the_proxy_of_the_environment_is_asked(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = "{0.scheme}://{0.netloc}".format(urlparse(server.address))
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", proxy)
    download("http://files.invalid/a/b.tsv", tmp_path / "b.tsv", NOTHING_KNOWN, PatienceConfig())
    assert server.requests[0][0] == "http://files.invalid/a/b.tsv"


def test_two_processes_do_not_write_one_file(server: FileServer, tmp_path: Path) -> None:
    with part_file(tmp_path / "file.tsv", server.address), pytest.raises(DataError, match="another process"):
        _fetch(server, tmp_path)


def test_the_table_is_sound() -> None:
    files = [file for resource in all_resources().values() for file in resource.files]
    names = [file.name for file in files]
    assert len(set(names)) == len(names) > 20
    for file in files:
        assert urlparse(file.address).scheme in ("http", "https")
        assert file.expected.sha256 is None or len(bytes.fromhex(file.expected.sha256)) == 32
        # what does not come over TLS is at least compared with a checksum
        assert file.address.startswith("https://") or file.expected.sha256


def _only(monkeypatch: pytest.MonkeyPatch, server: FileServer, expected: Expected = NOTHING_KNOWN) -> None:
    table = {"words": Resource("words", "Words", "none", (RemoteFile(server.address, expected),))}
    monkeypatch.setattr(resources, "all_resources", lambda: table)


def test_the_record_of_one_machine_serves_another(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, server)
    here, there = tmp_path / "here", tmp_path / "there"
    download_resources(DownloadConfig(resource=("words",), output_dir=here))
    entry = json.loads((here / RECORD).read_text())["file.tsv"]
    assert (entry["resource"], entry["bytes"], entry["sha256"]) == ("words", len(CONTENT), SHA256)
    download_resources(DownloadConfig(resource=("words",), output_dir=here))
    assert len(server.requests) == 1  # the second run only looks
    assert json.loads((here / RECORD).read_text())["file.tsv"] == entry

    server.content = CONTENT[::-1]
    with pytest.raises(DataError, match="SHA-256 is"):
        download_resources(DownloadConfig(resource=("words",), output_dir=there, expect=here / RECORD))
    assert _names(there) == []
    (here / "file.tsv").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match=r"file\.tsv: the file's SHA-256 is .* Remove it to download it again"):
        download_resources(DownloadConfig(resource=("words",), output_dir=here))


def test_refusals(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--list"):
        download_resources(DownloadConfig(resource=("squad",)))
    with pytest.raises(ConfigError, match=r"--resource hotpot: .* Perhaps you meant hotpotqa"):
        download_resources(DownloadConfig(resource=("hotpot",), output_dir=tmp_path))
    with pytest.raises(ConfigError, match="--timeout-seconds"):
        PatienceConfig(timeout_seconds=0)
    _only(monkeypatch, server, Expected(sha256="0" * 64))
    record = tmp_path / "other.json"
    record.write_text(json.dumps({"file.tsv": {"bytes": 3, "sha256": SHA256}}))
    with pytest.raises(DataError, match="records of this file disagree"):
        download_resources(DownloadConfig(resource=("words",), output_dir=tmp_path / "out", expect=record))
    record.write_text("[]")
    with pytest.raises(DataError, match="no record of downloads"):
        download_resources(DownloadConfig(resource=("words",), output_dir=tmp_path / "out", expect=record))
    _only(monkeypatch, server)
    (tmp_path / "file.tsv").write_text("of unknown origin")
    with pytest.raises(DataError, match="nothing says whether it is whole"):
        download_resources(DownloadConfig(resource=("words",), output_dir=tmp_path))
    assert not server.requests

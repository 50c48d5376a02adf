"""The web application: routes, and errors as one sentence each.

Annotations are values here: the library reads those of routes, one of which is made for the server's limits.
"""

import asyncio
import time
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

import megatron_retrieval
from megatron_retrieval.applications.serve.batching import BusyError, StoppingError
from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.applications.serve.documents import DocumentFiles, document_of, harmless, media_type
from megatron_retrieval.applications.serve.guard import Guard
from megatron_retrieval.applications.serve.page import page, policy
from megatron_retrieval.applications.serve.schemas import (
    AnswerFound,
    Ask,
    Found,
    Health,
    InContext,
    PlainPassage,
    Problem,
    ask_model,
    found_passages,
    plain,
)
from megatron_retrieval.applications.serve.service import Service, Version, Work
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.types.questions import Passage

#: passages of the same document on either side of one
NEIGHBOURS = 2
#: bytes of a request beside its question, and bytes of a character that JSON escapes
_FRAME_BYTES, _ESCAPED_BYTES = 4096, 12
_TITLE = "Megatron-Retrieval"


def make_app(config: ServeConfig, service: Service) -> FastAPI:
    """The application over a service that is open.

    Raises:
        DataError: the token's file is missing or empty.
    """
    # the pages of documentation that come with the library load scripts from elsewhere
    app = FastAPI(
        title=_TITLE, version=megatron_retrieval.__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    _add_questions(app, config, service)
    _add_passages(app, config, service)
    _add_state(app, config, service)
    app.add_exception_handler(RequestValidationError, _invalid)
    longest = _FRAME_BYTES + _ESCAPED_BYTES * config.limits.max_question_length
    app.add_middleware(Guard, names=config.names, token=config.token(), max_body_bytes=longest)
    return app


def _add_questions(app: FastAPI, config: ServeConfig, service: Service) -> None:
    question, problems = ask_model(config.limits), _problems(400, 401, 413, 422, 503)

    @app.post("/search", responses=problems)
    async def search(ask: question) -> Found:  # type: ignore[valid-type]
        """The passages nearest to a question."""
        return Found(**await _done(service, ask, is_answer=False))

    @app.post("/answer", responses={**problems, **_problems(404)})
    async def answer(ask: question) -> AnswerFound:  # type: ignore[valid-type]
        """The reader's answer to a question, and the passages that it is from."""
        if service.version.session.reader is None:
            raise HTTPException(404, "This server has no reader: it was started without --reader.")
        return AnswerFound(**await _done(service, ask, is_answer=True))


async def _done(service: Service, ask: Ask, *, is_answer: bool) -> dict[str, Any]:
    start, methods = time.monotonic(), service.version.session.search.methods
    if ask.method is not None and ask.method not in methods:
        raise HTTPException(422, f"method: this server searches by {' or '.join(methods)}.")
    work = Work(is_answer, ask.method or methods[0], ask.k)
    try:
        answered, version = await asyncio.wrap_future(service.submit(work, ask.question))
    except BusyError:
        raise HTTPException(503, "Too many questions wait; try again.", {"Retry-After": "1"}) from None
    except StoppingError:
        raise HTTPException(503, "The server is stopping.") from None
    # all that a reader has read is shown: one of them may be the source
    shown = max(ask.k, version.session.num_passages) if is_answer else ask.k
    found = {
        "question": ask.question,
        "method": work.method,
        "version": version.number,
        "passages": found_passages(answered, shown),
        "seconds": time.monotonic() - start,
    }
    if answered.prediction is not None:
        prediction = answered.prediction
        found |= {"answer": prediction.text, "answer_score": prediction.score, "source": answered.source}
    return found


def _add_passages(app: FastAPI, config: ServeConfig, service: Service) -> None:
    @app.get("/passages/{passage_id:path}", responses=_problems(400, 401, 404))
    def passage(passage_id: str) -> InContext:
        """A passage by its id, between its neighbours."""
        evidence = service.version.session.search.evidence
        row = _row(evidence, passage_id)
        own = evidence.passage(row)
        before = _neighbours(evidence, own, range(max(0, row - NEIGHBOURS), row))
        after = _neighbours(evidence, own, range(row + 1, min(len(evidence), row + 1 + NEIGHBOURS)))
        return InContext(**vars(plain(own)), before=before, after=after)

    if (folder := config.document_folder) is not None:
        files = DocumentFiles(folder)

        @app.get("/documents/{passage_id:path}", response_class=FileResponse, responses=_problems(400, 401, 404))
        def document(passage_id: str) -> FileResponse:
            """The file that a passage is from."""
            _row(service.version.session.search.evidence, passage_id)
            found = files.find(passage_id)
            if found is None:
                raise HTTPException(404, "The file that the passage is from is not there.")
            return FileResponse(found, media_type=media_type(found), headers=harmless(found))


def _row(evidence: EvidenceStore, passage_id: str) -> int:
    (row,) = evidence.rows_of([passage_id]).tolist()
    if row < 0:
        raise HTTPException(404, "There is no passage of that id.")
    return int(row)


def _neighbours(evidence: EvidenceStore, own: Passage, rows: range) -> list[PlainPassage]:
    """Those of the rows that belong to the same document."""
    return [plain(passage) for passage in evidence.passages(rows) if document_of(passage) == document_of(own)]


def _add_state(app: FastAPI, config: ServeConfig, service: Service) -> None:
    @app.get("/health")
    async def health() -> Health:
        """What is served, and how busy the server is."""
        return _health(config, service, service.version)

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page(), headers={"Content-Security-Policy": policy()})


def _health(config: ServeConfig, service: Service, version: Version) -> Health:
    session, worker = version.session, service.worker
    dense = session.search.dense
    return Health(
        status="ok",
        version=version.number,
        opened=version.opened.isoformat(timespec="seconds"),
        is_refusing_newer=service.is_refusing,
        num_passages=len(session.search.evidence),
        methods=list(session.search.methods),
        has_reader=session.reader is not None,
        has_documents=config.document_folder is not None,
        evidence_fingerprint=session.search.evidence.fingerprint,
        encoder_fingerprint=None if dense is None else dense.encoder.description.fingerprint,
        max_question_length=config.limits.max_question_length,
        max_k=config.limits.max_topk,
        num_waiting=worker.num_waiting,
        num_batches=worker.num_batches,
        num_questions=worker.num_items,
    )


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What is wrong, without the input, which need not be text that can be sent back."""
    assert isinstance(error, RequestValidationError)
    places = (([str(part) for part in fault["loc"] if part != "body"], fault["msg"]) for fault in error.errors())
    sentences = [f"{'.'.join(place) or 'body'}: {message}." for place, message in places]
    detail = " ".join(sentences)[:1000].encode("utf-8", "replace").decode()
    return JSONResponse({"detail": detail}, 422)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of refusals."""
    return {status: {"model": Problem} for status in statuses}

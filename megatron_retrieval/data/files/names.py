"""The names under which the field's files hold ids, titles, texts, questions and answers; the first that has a value
counts."""

from __future__ import annotations

#: of a passage: DPR, BEIR, Tevatron and Pyserini, MS MARCO
PASSAGE_IDS = ("passage_id", "psg_id", "_id", "id", "docid", "doc_id", "docno", "pid", "corpus-id", "corpus_id")
TITLES = ("title", "wikipedia_title")
#: `contents` is Pyserini's
TEXTS = ("text", "contents", "passage")
#: of a question: BEIR, DPR, Tevatron, MS MARCO
QUESTION_IDS = ("_id", "id", "query_id", "qid", "query-id", "question_id")
#: `input` is KILT's, `anchor` sentence-transformers'; `text`, BEIR's, is also the name in a passage
QUESTIONS = ("question", "query", "input", "anchor", "text")
ANSWERS = ("answers", "answer")
#: a teacher's score of a passage in training data; `score`, DPR's, is that of the retriever which found it
TEACHER_SCORE = "teacher_score"
#: KILT's list of answers, each with its provenance
KILT_ANSWERS = "output"
#: of the passages retrieved for a question: DPR and FiD, Pyserini
CONTEXTS = ("ctxs", "contexts")

#: what a header is told by
COLUMNS = frozenset(
    (*PASSAGE_IDS, *TITLES, *TEXTS, *QUESTION_IDS, *QUESTIONS, *ANSWERS, "possible_answers", "positive", "negative")
)

"""How a question and passages become a prompt for causal language models, which continue it with the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from megatron_retrieval.data.layouts.joint import JointLayout
from megatron_retrieval.data.layouts.lengths import ReaderLengthsConfig
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets, token_dtype
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch

#: tokens of a sequence that the words of the prompt and the question must leave to a passage
MIN_PASSAGE_TOKENS = 8


@dataclass(kw_only=True, frozen=True)
class PromptConfig:
    """Words of a prompt: an instruction and headings, each in a paragraph of its own."""

    prompt_instruction: str = (
        "Find the answer to the question below in the context. Reply with the answer alone, in few words."
    )
    """What to do; stands first."""
    prompt_context: str = "### Context:"
    """Heading of the passages."""
    prompt_question: str = "### Question:"
    """Heading of the question."""
    prompt_answer: str = "### Answer:"
    """Heading of the answer, which the model writes in the next line."""


@dataclass(kw_only=True, frozen=True)
class PromptFormatConfig(PromptConfig, ReaderLengthsConfig):
    """Layout of a prompt; a passage alone is cut so that the prompt has --reader-seq-length tokens at most."""


class PromptLayout(JointLayout):
    """The layout for one vocabulary.

    The parts are tokenized for themselves, each at the beginning of a line, so that the ids of passages and questions
    do not depend on what stands before them.

    Raises:
        ConfigError: words and question leave no room for a passage.
    """

    def __init__(self, config: PromptFormatConfig, tokenizer: Vocabulary) -> None:
        special = tokenizer.special
        self.config, self.end_id, self.pad_id = config, special.end, special.pad
        head, question, answer = config.prompt_context, config.prompt_question, config.prompt_answer
        texts = [config.prompt_instruction, f"\n\n{head}\n", f"\n\n{question}\n", f"\n\n{answer}\n", "\n", "\n\n"]
        ids = [np.array(ids, token_dtype(tokenizer.vocab_size)) for ids in tokenizer.encode(texts)]
        instruction, head_ids, self._before_question, self._behind_question, self._line, self._gap = ids
        begin = np.array([] if special.begin is None else [special.begin], instruction.dtype)
        self._alone = np.concatenate([begin, instruction])
        self._head = np.concatenate([self._alone, head_ids])
        self._num_fixed = sum(map(len, (self._head, self._before_question, self._behind_question)))
        needed = self._num_fixed + config.question_seq_length + MIN_PASSAGE_TOKENS
        if needed > config.reader_seq_length:
            raise ConfigError(
                f"--reader-seq-length {config.reader_seq_length} leaves no room for passages: the prompt's words and a "
                f"question of --question-seq-length {config.question_seq_length} need at least {needed}."
            )

    def together(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged]) -> TokenBatch:
        """See JointLayout."""
        prompts = self.prompts(questions, passages, columns)
        lengths = prompts.lengths
        is_real = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        ids = np.full(is_real.shape, self.pad_id, np.int64)
        ids[is_real] = prompts.values
        return TokenBatch(torch.from_numpy(ids), torch.from_numpy(lengths))

    def longest(self, num_passages: int) -> int:
        """See JointLayout; the shorter the question, the longer the passages."""
        room = self.config.reader_seq_length - self._num_fixed
        together = self._num_fixed + num_passages * room + (num_passages - 1) * len(self._gap)
        return max(together, self.config.reader_seq_length)

    def prompts(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged]) -> Ragged:
        """The prompts of n questions.

        Args:
            questions: n sequences.
            passages: of each question, rows of `columns`; where there are none, it is asked without a context.
            columns: titles and texts.
        """
        questions = questions.take(np.arange(len(questions)), self.config.question_seq_length)
        context = self._contexts(questions, passages, columns)
        heads = [self._head if number else self._alone for number in passages.lengths]
        parts = [
            Ragged(np.concatenate([self._head[:0], *heads]), to_offsets(np.array(list(map(len, heads)), np.int64))),
            context,
            _repeated(self._before_question, len(questions)),
            questions,
            _repeated(self._behind_question, len(questions)),
        ]
        return _side_by_side(parts)

    def _contexts(self, questions: Ragged, passages: Ragged, columns: tuple[Ragged, Ragged]) -> Ragged:
        """The passages of each question one after another, an empty line between them; each is cut for itself."""
        rows, num_passages = passages.values.astype(np.int64), passages.lengths
        titles, texts = (column.take(rows) for column in columns)
        has_line = (titles.lengths > 0) & (texts.lengths > 0)
        whole = _side_by_side([titles, _where(has_line, self._line), texts])
        room = self.config.reader_seq_length - self._num_fixed - questions.lengths
        numbers = np.arange(len(rows))
        cut = whole.join(numbers, numbers + 1, np.repeat(room, num_passages))
        is_later = numbers > np.repeat(passages.offsets[:-1], num_passages)
        spaced = _side_by_side([_where(is_later, self._gap), cut])
        return spaced.join(passages.offsets[:-1], passages.offsets[1:])


def _side_by_side(columns: list[Ragged]) -> Ragged:
    """Row i of every column one after another as sequence i."""
    num_rows, num_columns = len(columns[0]), len(columns)
    order = np.arange(num_rows * num_columns).reshape(num_columns, num_rows).T.ravel()
    rows = Ragged.concatenate(columns).take(order)
    first = np.arange(num_rows) * num_columns
    return rows.join(first, first + num_columns)


def _repeated(sequence: np.ndarray, num_rows: int) -> Ragged:
    return _where(np.ones(num_rows, np.bool_), sequence)


def _where(is_there: np.ndarray, sequence: np.ndarray) -> Ragged:
    """The sequence in some rows, and nothing in the others."""
    lengths: Rows = is_there * len(sequence)
    return Ragged(np.tile(sequence, int(is_there.sum())), to_offsets(lengths))

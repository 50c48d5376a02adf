"""The corpus: token ids of sentences in documents, memory-mapped; no text is kept."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.data.stores.column_folder import offsets_file
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.data.stores.token_folder import TokenFolder, token_format

#: columns of token ids, a row for each sentence and for each document
SENTENCES, TITLES = "sentences", "titles"
#: offsets alone: the sentences of each document
DOCUMENTS = "documents"


class CorpusStore(TokenFolder):
    """Opens what `build_corpus` wrote, in constant time and memory.

    No sentence is empty and no document is without a sentence; a title may be empty.

    Args:
        folder: the corpus folder.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    format = token_format("a corpus", "megatron-retrieval build corpus", "num_documents", "num_sentences", "num_tokens")

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.num_documents: int = self._manifest["num_documents"]
        self.num_sentences: int = self._manifest["num_sentences"]
        #: in all sentences; titles not counted
        self.num_tokens: int = self._manifest["num_tokens"]
        dtype = self._manifest["token_dtype"]
        #: token ids of the sentences of all documents, one document after another
        self.sentences: Ragged = self._column(SENTENCES, dtype, self.num_sentences)
        #: token ids of the title of each document
        self.titles: Ragged = self._column(TITLES, dtype, self.num_documents)
        #: [num_documents + 1] document d holds the sentences documents[d] to documents[d + 1]
        self.documents: Rows = self._map(offsets_file(DOCUMENTS), "<i8")
        self._check_offsets(DOCUMENTS, self.documents, self.num_documents, self.num_sentences)

    def __len__(self) -> int:
        return self.num_documents

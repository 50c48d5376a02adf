"""From a folder of documents to a folder that is searched and asked."""

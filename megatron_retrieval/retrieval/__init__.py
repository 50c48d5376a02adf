"""Between corpus and index: passages to stored vectors, questions to passages."""

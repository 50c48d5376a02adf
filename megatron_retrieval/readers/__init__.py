"""The kinds of readers: what each reads, learns from, answers and keeps, one file for each kind."""

"""Frozen values that travel between the floors, and the legend of their shapes.

Shape letters, used in names, comments and docstrings everywhere:

    B  batch (questions)        P  passages of a batch      K, k  passages retrieved per question
    T  tokens                   L  answer tokens            D     embedding dimension
    N  rows of the evidence     V  vocabulary               W     ranks
"""

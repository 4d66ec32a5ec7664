"""What bounds an expression. Each limit's name is in the error that enforces it."""

SOURCE_CHARS_MAX = 4096
"""Characters in the source of one expression; also the characters in all strings of one JSON AST."""

DEPTH_MAX = 64
"""Levels of the tree (a leaf is one), and parentheses, lists and `not` open at the same time."""

NODES_MAX = 4096
"""Nodes of a JSON AST; a source within its limit never makes more."""

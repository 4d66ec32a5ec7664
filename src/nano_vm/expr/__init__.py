"""The condition language: parsed once, checked before a run, compiled to closures (`spec/expressions.md`)."""

"""Stores: implementations of the journal's `JournalStore` port. Import the one you need from its module."""

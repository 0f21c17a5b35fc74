"""Exports of hash models to other programs; one file a format."""

"""Tests; the path of each mirrors the path of what it tests."""

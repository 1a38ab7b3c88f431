"""Tests of one checkpoint directory."""

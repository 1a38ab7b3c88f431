"""Small models, deterministic data and the two libraries under comparison, shared by the tests."""

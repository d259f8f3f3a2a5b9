//! Fuzz targets; see `tests/fuzz`.

//! Everything that decides: rewrites, fusion, tiling, memory planning.

//! Warp programs to PTX text.

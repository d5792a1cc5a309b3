//! Kiln: a compile-to-kernel model compiler.

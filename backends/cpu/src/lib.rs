//! Vector programs to machine code through Cranelift.

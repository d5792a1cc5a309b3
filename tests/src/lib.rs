//! Conformance, model and golden tests of the whole project.

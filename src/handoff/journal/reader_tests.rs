//! See `reader`.

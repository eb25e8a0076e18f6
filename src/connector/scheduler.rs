//! The half that lives with the engine's scheduler.

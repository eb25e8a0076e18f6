//! The half that lives in each rank.

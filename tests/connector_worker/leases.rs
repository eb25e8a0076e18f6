//! How long blocks are kept, and that none are taken for good that were kept too short.

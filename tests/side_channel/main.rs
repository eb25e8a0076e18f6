//! The side channel, over real sockets on loopback.

mod frames;
mod listener;
mod oracle;
mod requests;
mod support;
mod zmq;
mod zmq_by_hand;

//! ZeroMQ's protocol without ZeroMQ's library, as far as questions, answers and published messages
//! need it.
//!
//! | file | idea |
//! |---|---|
//! | `wire` | bytes to what they say, and back: greetings, frames, commands |
//! | `address` | `ipc://FILE` and `tcp://HOST:PORT` |
//! | `stream` | a socket of either kind |
//! | `connection` | the client's side: one connection, and how long to wait for it |
//!
//! libzmq ends the process by an assertion when it finds no descriptor for a new connection, and has a
//! thread of its own between every call and its socket. Neither is for a library inside an engine. Any
//! libzmq can be at the other end, and in the tests is.

mod address;
mod connection;
mod stream;
mod wire;

pub use address::Address;
pub(crate) use connection::Connection;
pub use stream::Stream;
pub use wire::{
    Decoder, Event, Limits, frame_head, greeting, message, pong, put_frame_head, ready,
};

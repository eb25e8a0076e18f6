//! What is on the wire: version 3.0 of ZMTP, the mechanism NULL.
//!
//! ```text
//! greeting   ff 00×8 7f | major minor | mechanism, 20 bytes | as-server | 00×31        64 bytes
//! frame      flags (1 more, 2 long, 4 command) | length, 1 byte or 8 when long | body
//! READY      command: 05 "READY" | properties: length, name, length (4 bytes), value
//! message    one or more frames, all but the last with "more"
//! ```
//!
//! Both sides greet at once, then say READY with the type of their socket, then send messages. Here is
//! the part without sockets: a [`Decoder`] that is given bytes and tells what they are, and the bytes
//! to send.

use crate::error::{Result, Status, bail};

/// Length of a greeting.
const GREETING: usize = 64;
/// As much of it as tells whether the peer speaks a version that we do.
const GREETING_START: usize = 11;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Longest command. READY carries a few short properties.
const MAX_COMMAND: usize = 4096;

/// Longer than any name of a socket's type.
const MAX_SOCKET_TYPE: usize = 16;

/// What is sent first.
pub fn greeting() -> Vec<u8> {
    let mut bytes = vec![0; GREETING];
    (bytes[0], bytes[9]) = (0xff, 0x7f);
    bytes[10] = 3;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// The command by which a socket of this type (`ROUTER`, `REQ`) says that it is ready.
pub fn ready(socket_type: &str) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type), ("Identity", "")] {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    let mut bytes = head(COMMAND, body.len());
    bytes.extend_from_slice(&body);
    bytes
}

/// The command that answers a PING with this context.
pub fn pong(context: &[u8]) -> Vec<u8> {
    let mut bytes = head(COMMAND, 5 + context.len());
    bytes.extend_from_slice(b"\x04PONG");
    bytes.extend_from_slice(context);
    bytes
}

/// What stands before the body of a frame of a message.
pub fn frame_head(len: usize, more: bool) -> Vec<u8> {
    head(if more { MORE } else { 0 }, len)
}

/// The same, behind other bytes.
pub fn put_frame_head(bytes: &mut Vec<u8>, len: usize, more: bool) {
    put_head(bytes, if more { MORE } else { 0 }, len);
}

fn head(flags: u8, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_head(&mut bytes, flags, len);
    bytes
}

fn put_head(bytes: &mut Vec<u8>, flags: u8, len: usize) {
    match u8::try_from(len) {
        Ok(len) => bytes.extend_from_slice(&[flags, len]),
        Err(_) => {
            bytes.push(flags | LONG);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
}

/// A whole message with these frames, for short ones.
pub fn message(frames: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        put_frame_head(&mut bytes, frame.len(), i + 1 < frames.len());
        bytes.extend_from_slice(frame);
    }
    bytes
}

/// What the peer has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is ready, and its socket has this type.
    Ready(String),
    /// A message, frame by frame.
    Message(Vec<Vec<u8>>),
    /// It wants a [`pong`] with this context.
    Ping(Vec<u8>),
}

/// How much a peer may say.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a message, over all frames.
    pub bytes: usize,
    /// Frames of a message.
    pub frames: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    GreetingStart,
    GreetingRest,
    Flags,
    Length { flags: u8 },
    Body { flags: u8 },
}

/// Understands what a peer sends. It is to be given at most as many bytes as it wants, so that it never
/// holds more than one message, and memory is taken as the bytes come.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    want: Want,
    missing: usize,
    /// What has come of the part that is wanted.
    part: Vec<u8>,
    ready: bool,
    message: Vec<Vec<u8>>,
    message_bytes: usize,
}

impl Decoder {
    /// For a peer that has not said anything yet.
    pub fn new(limits: Limits) -> Self {
        Decoder {
            limits,
            want: Want::GreetingStart,
            missing: GREETING_START,
            part: Vec::new(),
            ready: false,
            message: Vec::new(),
            message_bytes: 0,
        }
    }

    /// The most bytes that may be given to [`Decoder::push`] now; never 0.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Whether the peer has said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether a message or a command has begun and not ended.
    pub fn is_inside(&self) -> bool {
        !self.part.is_empty() || self.want != Want::Flags || !self.message.is_empty()
    }

    /// Takes the next bytes, no more than are missing. At most one thing has been said when they are in.
    ///
    /// # Errors
    /// `PeerIncompatible` for what is not this protocol, or too much of it. Nothing can be understood
    /// after that.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Event>> {
        debug_assert!(bytes.len() <= self.missing);
        self.part.extend_from_slice(bytes);
        self.missing = self.missing.saturating_sub(bytes.len());
        let mut event = None;
        // An empty body is complete as soon as it is wanted.
        while self.missing == 0 && event.is_none() {
            event = self.take_part()?;
        }
        Ok(event)
    }

    fn next(&mut self, want: Want, missing: usize) {
        self.want = want;
        self.missing = missing;
    }

    fn take_part(&mut self) -> Result<Option<Event>> {
        if let Want::Body { flags } = self.want {
            let body = std::mem::take(&mut self.part);
            self.next(Want::Flags, 1);
            return if flags & COMMAND != 0 {
                self.command(&body)
            } else {
                self.frame(body, flags & MORE != 0)
            };
        }
        // What is short is looked at in a copy, so that the memory is there for the next part.
        let mut short = [0; GREETING];
        let part = &mut short[..self.part.len()];
        part.copy_from_slice(&self.part);
        self.part.clear();
        match self.want {
            Want::GreetingStart => {
                check_signature(part)?;
                self.next(Want::GreetingRest, GREETING - GREETING_START);
            }
            Want::GreetingRest => {
                check_mechanism(&part[1..21])?;
                self.next(Want::Flags, 1);
            }
            Want::Flags => {
                let flags = part[0];
                if flags & !(MORE | LONG | COMMAND) != 0
                    || flags & (MORE | COMMAND) == MORE | COMMAND
                {
                    bail!(
                        Status::PeerIncompatible,
                        "no frame begins with {flags:#04x}"
                    );
                }
                self.next(
                    Want::Length { flags },
                    if flags & LONG != 0 { 8 } else { 1 },
                );
            }
            Want::Length { flags } => {
                let len = part.iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
                let len = self.check_length(flags, len)?;
                self.next(Want::Body { flags }, len);
            }
            Want::Body { .. } => {}
        }
        Ok(None)
    }

    fn check_length(&self, flags: u8, len: u64) -> Result<usize> {
        let max = match flags & COMMAND {
            0 => self.limits.bytes - self.message_bytes,
            _ => MAX_COMMAND,
        };
        match usize::try_from(len) {
            Ok(len) if len <= max => Ok(len),
            _ => bail!(
                Status::PeerIncompatible,
                "it announced a frame of {len} bytes, more than the {max} that are accepted"
            ),
        }
    }

    fn frame(&mut self, body: Vec<u8>, more: bool) -> Result<Option<Event>> {
        if !self.ready {
            bail!(Status::PeerIncompatible, "a message before READY");
        }
        self.message_bytes += body.len();
        self.message.push(body);
        if !more {
            self.message_bytes = 0;
            return Ok(Some(Event::Message(std::mem::take(&mut self.message))));
        }
        if self.message.len() >= self.limits.frames {
            bail!(
                Status::PeerIncompatible,
                "a message of more than {} frames",
                self.limits.frames
            );
        }
        Ok(None)
    }

    fn command(&mut self, body: &[u8]) -> Result<Option<Event>> {
        let (name, rest) = named(body)?;
        match name {
            b"READY" if !self.ready => {
                self.ready = true;
                Ok(Some(Event::Ready(socket_type(rest)?)))
            }
            b"ERROR" => {
                let (reason, _) = named(rest)?;
                bail!(
                    Status::PeerIncompatible,
                    "the peer refused: \"{}\"",
                    reason.escape_ascii()
                )
            }
            // Two bytes say how long the peer is to be thought alive.
            b"PING" if self.ready => Ok(Some(Event::Ping(rest.get(2..).unwrap_or(&[]).to_vec()))),
            _ if self.ready => Ok(None),
            other => bail!(
                Status::PeerIncompatible,
                "the command {:?} where READY belongs",
                String::from_utf8_lossy(other)
            ),
        }
    }
}

fn check_signature(start: &[u8]) -> Result<()> {
    if start[0] != 0xff || start[9] & 1 == 0 {
        bail!(
            Status::PeerIncompatible,
            "it does not speak ZeroMQ: it began with \"{}\"",
            start.escape_ascii()
        );
    }
    if start[10] < 3 {
        bail!(
            Status::PeerIncompatible,
            "its ZMTP is version {}, older than 3.0 (libzmq 4.0)",
            start[10]
        );
    }
    Ok(())
}

fn check_mechanism(name: &[u8]) -> Result<()> {
    if name
        .strip_prefix(b"NULL")
        .is_some_and(|rest| rest.iter().all(|b| *b == 0))
    {
        return Ok(());
    }
    bail!(
        Status::PeerIncompatible,
        "it wants the security mechanism \"{}\", not NULL",
        name.escape_ascii()
    )
}

/// A string of up to 255 bytes behind its length, and what follows it.
fn named(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    match bytes.split_first() {
        Some((len, rest)) if rest.len() >= usize::from(*len) => Ok(rest.split_at((*len).into())),
        _ => bail!(Status::PeerIncompatible, "a command is cut short"),
    }
}

fn socket_type(mut properties: &[u8]) -> Result<String> {
    while !properties.is_empty() {
        let (name, rest) = named(properties)?;
        let Some((len, rest)) = rest.split_first_chunk::<4>() else {
            bail!(Status::PeerIncompatible, "a property of READY is cut short");
        };
        let len = u32::from_be_bytes(*len) as usize;
        if len > rest.len() {
            bail!(Status::PeerIncompatible, "a property of READY is cut short");
        }
        let (value, rest) = rest.split_at(len);
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            if value.len() > MAX_SOCKET_TYPE {
                bail!(
                    Status::PeerIncompatible,
                    "a socket type of {} bytes",
                    value.len()
                );
            }
            return Ok(String::from_utf8_lossy(value).into_owned());
        }
        properties = rest;
    }
    bail!(Status::PeerIncompatible, "READY without a socket type")
}

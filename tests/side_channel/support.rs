//! What the tests share: channels, raw peers and patience.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvferry::error::Result;
use kvferry::side_channel::{self, ListenOptions, RequestOptions, SideChannel};

/// Long enough that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// More than the socket buffers between the listener and a client from [`connect`] take: the
/// listener has to wait for such a client.
pub const LARGE: usize = 16 << 20;

/// Bytes in which a shift, a gap or a repetition shows, at most [`LARGE`] of them.
pub fn pattern(len: usize) -> &'static [u8] {
    static ALL: OnceLock<Vec<u8>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        (0..LARGE as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    });
    &all[..len]
}

pub fn patient() -> ListenOptions {
    ListenOptions {
        timeout: PATIENCE,
        ..Default::default()
    }
}

/// A loopback address that one test has to itself, so that a port it gives back is not taken by
/// another test.
pub fn at(host: &str) -> ListenOptions {
    ListenOptions {
        host: host.to_owned(),
        ..patient()
    }
}

/// Containers are often made without IPv6.
pub fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("this machine has no IPv6 loopback: its cases are left out");
    }
    has
}

pub fn listen(metadata: &[u8]) -> Arc<dyn SideChannel> {
    listen_with(&patient(), metadata)
}

pub fn listen_with(options: &ListenOptions, metadata: &[u8]) -> Arc<dyn SideChannel> {
    side_channel::listen("tcp", options, metadata.to_vec()).unwrap()
}

pub fn request(to: SocketAddr) -> Result<Vec<u8>> {
    let options = RequestOptions {
        timeout: PATIENCE,
        ..Default::default()
    };
    side_channel::request("tcp", &to.ip().to_string(), to.port(), &options).map(|a| a.metadata)
}

/// A client that only connects. Its receive buffer does not grow, whatever the machine allows, and
/// its reads fail rather than hang.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    let size: libc::c_int = 128 << 10;
    // SAFETY: the option is read from a live integer of the size that is given.
    let rc = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const size).cast(),
            size_of_val(&size) as u32,
        )
    };
    assert_eq!(rc, 0);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads the length and the payload of one message.
pub fn read_message(mut stream: &TcpStream) -> Vec<u8> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut payload).unwrap();
    payload
}

/// How many bytes come before the stream ends, by a FIN or a reset.
pub fn count_to_end(mut stream: &TcpStream) -> usize {
    let (mut total, mut buf) = (0, vec![0; 1 << 20]);
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return total,
            Ok(n) => total += n,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return total,
            Err(e) => panic!("after {total} bytes: {e}"),
        }
    }
}

/// A server that does `serve` with the first client it gets.
pub fn fake_server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
    (address, thread)
}

/// A server that sends these bytes and closes.
pub fn server_of(bytes: &'static [u8]) -> SocketAddr {
    fake_server(move |mut stream| stream.write_all(bytes).unwrap()).0
}

//! `GET /metrics` for Prometheus: one connection at a time, each with little time and few bytes. That
//! is all a scraper needs, and nothing that a stranger could make larger.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvferry::error::{Error, Result};
use kvferry::pool_server::Service;

use crate::endpoint::check_local;

/// How long one client may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest request that is read.
const MAX_HEAD: usize = 8192;

/// Starts the thread that answers, and says where. It ends with the process.
///
/// # Errors
/// An address that cannot be listened on, or that other hosts can reach without leave.
pub fn serve(
    address: &str,
    allow_remote: bool,
    service: Arc<Mutex<Service>>,
) -> Result<SocketAddr> {
    check_local(address, allow_remote)?;
    let doing = format!("cannot serve metrics on {address}");
    let listener = TcpListener::bind(address).map_err(|e| Error::from_io(&doing, &e))?;
    let at = listener
        .local_addr()
        .map_err(|e| Error::from_io(&doing, &e))?;
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(move || {
            for client in listener.incoming() {
                match client {
                    // A client that goes away in the middle is no concern of anybody's.
                    Ok(client) => drop(answer(client, &service)),
                    // Out of descriptors, most likely: it will pass.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })
        .map_err(|e| Error::from_io(&doing, &e))?;
    Ok(at)
}

fn answer(mut client: TcpStream, service: &Mutex<Service>) -> std::io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let (status, body) = match &*request_line(&mut client)? {
        "GET /metrics" => ("200 OK", metrics(service)),
        line if line.starts_with("GET ") => ("404 Not Found", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET only\n".to_owned()),
    };
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn metrics(service: &Mutex<Service>) -> String {
    service
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .metrics()
}

/// Method and path, without what follows a question mark. All of the request is read, so that closing
/// does not cut the answer off.
fn request_line(client: &mut TcpStream) -> std::io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_HEAD {
        let left = deadline.saturating_duration_since(Instant::now());
        // Zero would be for ever.
        client.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match client.read(&mut part)? {
            0 => break,
            n => head.extend_from_slice(&part[..n]),
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    Ok(format!("{method} {path}"))
}

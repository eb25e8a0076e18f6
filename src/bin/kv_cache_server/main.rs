//! `kv_cache_server`: block pools for several processes of one host, in ZeroMQ's protocol. What it does with a
//! message is in `kvferry::pool_server`; here are the sockets around it. docs/kv_cache_server.md is the
//! manual.
//!
//! | file | idea |
//! |---|---|
//! | `settings` | command line and environment |
//! | `endpoint` | where it listens: stale and live socket files, who may connect |
//! | `descriptors` | the limit of open files, and how many sessions fit into it |
//! | `front` | the loop: requests in, replies and events out |
//! | `peer` | one connection |
//! | `poller` | epoll(7) |
//! | `signals` | SIGTERM and SIGINT as something to wait for |
//! | `scrape` | `GET /metrics` |

mod descriptors;
mod endpoint;
mod front;
mod peer;
mod poller;
mod scrape;
mod settings;
mod signals;

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use kvferry::error::Result;
use kvferry::pool_server::{Publishing, Service};

use settings::{Settings, What};

fn main() -> ExitCode {
    let what = match settings::read(std::env::args().skip(1), |name| std::env::var(name).ok()) {
        Ok(what) => what,
        Err(e) => {
            eprintln!(
                "kv_cache_server: {}; --help shows what there is",
                e.message()
            );
            return ExitCode::from(2);
        }
    };
    let settings = match what {
        What::Show(text) => {
            // Whoever closes the pipe has seen enough.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            return ExitCode::SUCCESS;
        }
        What::Serve(settings) => settings,
    };
    // Fails only if there is a logger already, and then that one will do.
    let _ = log::set_logger(&Stderr).map(|()| log::set_max_level(log::LevelFilter::Info));
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kv_cache_server: {}", e.message());
            ExitCode::FAILURE
        }
    }
}

fn run(s: &Settings) -> Result<()> {
    // Before there is any other thread, so that none takes the signals.
    let signals = signals::Signals::block()?;
    let publishing = match s.events {
        Some(_) => Publishing::Publish,
        None => Publishing::Off,
    };
    let mut limits = s.limits.clone();
    let most_clients = descriptors::fit(&mut limits)?;
    let service = Service::new(limits, &s.pool, publishing, s.events.is_some())?;
    let service = Arc::new(Mutex::new(service));
    let front = front::Front::open(s, Arc::clone(&service), most_clients)?;
    let metrics = s
        .metrics
        .as_deref()
        .map(|address| scrape::serve(address, s.allow_remote, service))
        .transpose()?;

    // Whoever started it reads these lines, up to "ready".
    let mut out = std::io::stdout();
    for (what, address) in front.addresses() {
        let _ = writeln!(out, "{what} {address}");
    }
    if let Some(address) = metrics {
        let _ = writeln!(out, "metrics http://{address}/metrics");
    }
    let _ = writeln!(out, "ready").and_then(|()| out.flush());
    front.serve(&signals)
}

/// Log lines on stderr.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, m: &log::Metadata<'_>) -> bool {
        m.level() <= log::Level::Info
    }

    fn log(&self, r: &log::Record<'_>) {
        if self.enabled(r.metadata()) {
            let level = r.level().as_str().to_ascii_lowercase();
            let _ = writeln!(std::io::stderr(), "kv_cache_server: {level}: {}", r.args());
        }
    }

    fn flush(&self) {}
}

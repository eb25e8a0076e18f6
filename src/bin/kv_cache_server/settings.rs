//! The command line and the environment.

use std::time::Duration;

use kvferry::block_pool::{Options, Policy};
use kvferry::error::{Error, Result};
use kvferry::pool_server::Limits;

/// How to serve.
#[derive(Debug)]
pub struct Settings {
    pub pool: Options,
    pub limits: Limits,
    pub endpoints: Vec<String>,
    pub events: Option<String>,
    pub metrics: Option<String>,
    pub socket_mode: u32,
    pub allow_remote: bool,
    pub exit_with_stdin: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum What {
    Serve(Box<Settings>),
    /// Help, or the version.
    Show(String),
}

/// An option: its name, the placeholder of its value (empty: a flag), the variable that it overrides,
/// its default as text, and what it is.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

const TABLE: [Row; 19] = [
    (
        "blocks",
        "N",
        "KV_CACHE_NUM_GPU_BLOCKS",
        "100",
        "blocks of the default pool, the null block included; also the first argument",
    ),
    (
        "enable-caching",
        "BOOL",
        "KV_CACHE_ENABLE_CACHING",
        "false",
        "whether it has a prefix cache",
    ),
    (
        "socket-path",
        "ENDPOINT",
        "KV_CACHE_SOCKET_PATH",
        "ipc:///tmp/kv_cache.sock",
        "where to listen: ipc://FILE or tcp://HOST:PORT; several with commas",
    ),
    (
        "policy",
        "NAME",
        "KV_CACHE_POLICY",
        "default",
        "which blocks an allocation gets: default, lru, windowed, elastic",
    ),
    (
        "window",
        "FRACTION",
        "KV_CACHE_WINDOW",
        "0",
        "part of the free queue it chooses from; 0: the policy's default",
    ),
    (
        "tolerate-null",
        "",
        "KV_CACHE_TOLERATE_NULL",
        "false",
        "frees and touches pass over the null block",
    ),
    (
        "events-path",
        "ENDPOINT",
        "KV_CACHE_EVENTS_PATH",
        "",
        "publish the events of the prefix cache there",
    ),
    (
        "metrics-address",
        "HOST:PORT",
        "KV_CACHE_METRICS_ADDRESS",
        "",
        "serve GET /metrics for Prometheus there",
    ),
    (
        "session-timeout",
        "SECONDS",
        "KV_CACHE_SESSION_TIMEOUT",
        "30",
        "silence after which a client's blocks come back, if it does not say",
    ),
    (
        "allow-remote",
        "",
        "KV_CACHE_ALLOW_REMOTE",
        "false",
        "allow addresses that other hosts can reach; there is no authentication",
    ),
    (
        "socket-mode",
        "OCTAL",
        "KV_CACHE_SOCKET_MODE",
        "600",
        "permissions of the socket files",
    ),
    (
        "no-shutdown",
        "",
        "KV_CACHE_NO_SHUTDOWN",
        "false",
        "clients cannot shut the server down",
    ),
    (
        "exit-with-stdin",
        "",
        "KV_CACHE_EXIT_WITH_STDIN",
        "false",
        "end when standard input does: with the program that holds its other end",
    ),
    (
        "max-message",
        "BYTES",
        "KV_CACHE_MAX_MESSAGE",
        "4194304",
        "longest request; a longer one costs the connection",
    ),
    (
        "max-blocks-per-call",
        "N",
        "KV_CACHE_MAX_BLOCKS_PER_CALL",
        "1048576",
        "most block ids in one answer",
    ),
    (
        "max-sessions",
        "N",
        "KV_CACHE_MAX_SESSIONS",
        "1024",
        "most clients with a session",
    ),
    ("max-pools", "N", "KV_CACHE_MAX_POOLS", "64", "most pools"),
    (
        "max-total-blocks",
        "N",
        "KV_CACHE_MAX_TOTAL_BLOCKS",
        "33554432",
        "most blocks of all pools",
    ),
    (
        "max-session-timeout",
        "SECONDS",
        "KV_CACHE_MAX_SESSION_TIMEOUT",
        "86400",
        "the longest silence that a client can ask for",
    ),
];

/// Reads both; the command line counts more.
///
/// # Errors
/// An option or a value that cannot be meant, by name.
pub fn read(
    mut args: impl Iterator<Item = String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<What> {
    let mut values: Vec<String> = TABLE
        .iter()
        .map(|row| variable(row.2).filter(|v| !v.is_empty()))
        .zip(&TABLE)
        .map(|(set, row)| set.unwrap_or_else(|| row.3.to_owned()))
        .collect();
    let mut positional = false;
    while let Some(arg) = args.next() {
        match &*arg {
            "-h" | "--help" => return Ok(What::Show(help())),
            "-V" | "--version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(What::Show(format!("kv_cache_server {version}")));
            }
            _ => {}
        }
        let Some(option) = arg.strip_prefix("--") else {
            if positional || arg.starts_with('-') {
                return Err(Error::invalid(format!("there is no argument {arg:?}")));
            }
            positional = true;
            values[0] = arg;
            continue;
        };
        let (name, given) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        let Some(i) = TABLE.iter().position(|row| row.0 == name) else {
            return Err(Error::invalid(format!("there is no option --{name}")));
        };
        values[i] = match given {
            Some(value) => value,
            None if TABLE[i].1.is_empty() => "true".to_owned(),
            None => args
                .next()
                .ok_or_else(|| Error::invalid(format!("--{name} has no value")))?,
        };
    }
    settings(&Values(values)).map(|s| What::Serve(Box::new(s)))
}

fn settings(v: &Values) -> Result<Settings> {
    let caching = v.flag("enable-caching")?;
    let pool = Options::new(v.number("blocks")?, caching);
    let window: f64 = v.number("window")?;
    Ok(Settings {
        pool: Options {
            policy: Policy::named(v.text("policy"), window, caching, pool.blocks)?,
            events: !v.text("events-path").is_empty(),
            tolerate_null: v.flag("tolerate-null")?,
            ..pool
        },
        limits: Limits {
            request_bytes: v.number("max-message")?,
            blocks_per_call: v.number("max-blocks-per-call")?,
            sessions: v.number("max-sessions")?,
            pools: v.number("max-pools")?,
            blocks: v.number("max-total-blocks")?,
            session_timeout: v.seconds("session-timeout")?,
            max_session_timeout: v.seconds("max-session-timeout")?,
            shutdown: !v.flag("no-shutdown")?,
        },
        endpoints: v
            .text("socket-path")
            .split(',')
            .map(str::to_owned)
            .collect(),
        events: v.optional("events-path"),
        metrics: v.optional("metrics-address"),
        socket_mode: u32::from_str_radix(v.text("socket-mode"), 8)
            .ok()
            .filter(|&mode| mode <= 0o777)
            .ok_or_else(|| v.wrong("socket-mode", "octal permissions such as 660"))?,
        allow_remote: v.flag("allow-remote")?,
        exit_with_stdin: v.flag("exit-with-stdin")?,
    })
}

/// A value for each row of the table.
struct Values(Vec<String>);

impl Values {
    fn text(&self, name: &str) -> &str {
        let i = TABLE.iter().position(|row| row.0 == name);
        // A name that is not in the table is a mistake in this file; every test would see it.
        i.map_or("", |i| &self.0[i])
    }

    fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name).to_owned()).filter(|text| !text.is_empty())
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T> {
        let n = self.text(name).parse();
        n.map_err(|_| self.wrong(name, "a number in its range"))
    }

    fn flag(&self, name: &str) -> Result<bool> {
        match &*self.text(name).to_ascii_lowercase() {
            "1" | "true" | "yes" | "on" => Ok(true),
            "0" | "false" | "no" | "off" => Ok(false),
            _ => Err(self.wrong(name, "true or false")),
        }
    }

    fn seconds(&self, name: &str) -> Result<Duration> {
        Duration::try_from_secs_f64(self.number(name)?)
            .ok()
            .filter(|d| !d.is_zero())
            .ok_or_else(|| self.wrong(name, "seconds, more than 0"))
    }

    fn wrong(&self, name: &str, expected: &str) -> Error {
        let variable = TABLE
            .iter()
            .find(|row| row.0 == name)
            .map_or("", |row| row.2);
        Error::invalid(format!(
            "--{name} (or {variable}) is {:?}; it is {expected}",
            self.text(name)
        ))
    }
}

fn help() -> String {
    let mut text = String::from(
        "kv_cache_server [BLOCKS] [OPTIONS]\n\n\
         Serves KV-cache block pools to the processes of a host, over ZeroMQ.\n\
         An option counts more than its variable.\n\n",
    );
    for (name, value, variable, default, what) in TABLE {
        let option = match value {
            "" => format!("--{name}"),
            value => format!("--{name} {value}"),
        };
        let default = match default {
            "" => "none",
            default => default,
        };
        text += &format!("  {option}\n      {what}\n      [{variable}; default: {default}]\n");
    }
    text + "  --help, --version"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Settings> {
        let variable = |name: &str| {
            let set = env.iter().find(|(key, _)| *key == name);
            set.map(|(_, value)| (*value).to_owned())
        };
        match read(args.iter().map(|a| (*a).to_owned()), variable)? {
            What::Serve(settings) => Ok(*settings),
            What::Show(text) => panic!("shows {text}"),
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let s = parse(&[], &[]).unwrap();
        assert_eq!((s.pool.blocks, s.pool.caching), (100, false));
        assert_eq!(s.endpoints, ["ipc:///tmp/kv_cache.sock"]);
        assert_eq!(s.limits, Limits::default());
        assert_eq!(s.pool, Options::new(100, false));
        assert_eq!((s.events, s.metrics), (None, None));
        assert_eq!((s.socket_mode, s.allow_remote), (0o600, false));
    }

    #[test]
    fn the_command_line_counts_more_than_the_environment() {
        let env = [
            ("KV_CACHE_NUM_GPU_BLOCKS", "200"),
            ("KV_CACHE_ENABLE_CACHING", "True"),
            ("KV_CACHE_SOCKET_PATH", "ipc:///a"),
            ("KV_CACHE_POLICY", ""),
        ];
        let s = parse(&[], &env).unwrap();
        assert_eq!((s.pool.blocks, s.pool.caching), (200, true));
        assert_eq!(s.pool, Options::new(200, true));
        let s = parse(
            &[
                "300",
                "--enable-caching=false",
                "--socket-path",
                "ipc:///b,tcp://127.0.0.1:1",
                "--policy=lru",
            ],
            &env,
        )
        .unwrap();
        assert_eq!((s.pool.blocks, s.pool.caching), (300, false));
        assert_eq!(s.endpoints, ["ipc:///b", "tcp://127.0.0.1:1"]);
        assert_eq!(s.pool.policy, Policy::Lru);
        let s = parse(
            &[
                "--blocks",
                "7",
                "--events-path",
                "ipc:///e",
                "--no-shutdown",
            ],
            &[],
        )
        .unwrap();
        assert!(s.pool.events && !s.limits.shutdown);
        assert_eq!(s.pool.blocks, 7);
    }

    #[test]
    fn mistakes_are_named() {
        for (args, expected) in [
            (&["--block", "7"][..], "there is no option --block"),
            (&["7", "8"], "there is no argument \"8\""),
            (&["-x"], "there is no argument \"-x\""),
            (&["--blocks"], "--blocks has no value"),
            (
                &["many"],
                "--blocks (or KV_CACHE_NUM_GPU_BLOCKS) is \"many\"",
            ),
            (&["--enable-caching", "maybe"], "true or false"),
            (&["--socket-mode", "1777"], "octal"),
            (&["--session-timeout", "0"], "more than 0"),
            (&["--session-timeout", "-1"], "more than 0"),
            (&["--policy", "best"], "policy \"best\""),
        ] {
            let e = parse(args, &[]).unwrap_err();
            assert!(e.message().contains(expected), "{args:?}: {e}");
        }
    }

    #[test]
    fn help_names_every_option_and_variable() {
        let text = help();
        for row in TABLE {
            assert!(text.contains(&format!("--{}", row.0)) && text.contains(row.2));
        }
        for flag in ["--help", "-h", "--version", "-V"] {
            let shown = read(["9".to_owned(), flag.to_owned()].into_iter(), |_| None);
            assert!(matches!(shown, Ok(What::Show(_))));
        }
    }
}

//! Writes the C header, compiles the messages of kv_cache_server (build/proto.rs), and gives the shared
//! library its SONAME.

#[path = "build/proto.rs"]
mod proto;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The number in the SONAME. It is `KVF_ABI_VERSION` in src/capi/library.rs; tests/abi.rs holds the
/// two together.
const ABI_VERSION: u32 = 0;

/// The sections of the header in reading order: a file of src/capi each, and its heading.
const SECTIONS: [(&str, &str); 15] = [
    ("status", "Status and errors"),
    ("library", "The library"),
    ("logging", "Logging"),
    ("output", "What the library gives away, and how it is freed"),
    ("memory", "Memory and descriptors"),
    ("agent", "Agents"),
    ("transfer", "Direct transfers"),
    ("layout", "Layouts"),
    ("plan", "Plans"),
    ("queue", "Queues"),
    ("side_channel", "Side channel"),
    ("block_pool", "Block pool"),
    ("block_cache", "Block pool: cached prefixes and events"),
    ("pool_client", "Block pool in a server"),
    ("doctor", "What there is to work with"),
];

/// Width of the header, as in cbindgen.toml.
const WIDTH: usize = 100;

fn main() {
    println!("cargo:rerun-if-changed=src/capi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvferry.so.{ABI_VERSION}");
    // dlclose() leaves the library where it is: objects may still have threads in it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    proto::compile();

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let fresh = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("kvferry.h");
    fs::write(&fresh, header(&root)).expect("OUT_DIR is writable");
    // A build never changes its own sources. `make header` copies the fresh header to include/, and
    // tests/header.rs fails while the two differ.
    println!("cargo:rustc-env=KVF_FRESH_HEADER={}", fresh.display());
}

fn header(root: &Path) -> String {
    let mut config =
        cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let fixed = |text: Option<String>| {
        text.expect("in cbindgen.toml")
            .trim_matches('\n')
            .to_owned()
    };
    let conventions = fixed(config.header.take());
    let after_includes = fixed(config.after_includes.take());
    let defaults = fixed(config.trailer.take());

    let mut parts = vec![
        format!("{conventions}\n\n#ifndef KVFERRY_H\n#define KVFERRY_H\n\n{after_includes}"),
        "#ifdef __cplusplus\nextern \"C\" {\n#endif".to_owned(),
    ];
    for (file, heading) in SECTIONS {
        parts.push(banner(heading));
        parts.push(section(
            &root.join(format!("src/capi/{file}.rs")),
            config.clone(),
        ));
    }
    parts.push(banner("Defaults of the option structs"));
    parts.push(defaults);
    parts.push("#ifdef __cplusplus\n}\n#endif\n\n#endif /* KVFERRY_H */\n".to_owned());
    parts.join("\n\n")
}

fn banner(heading: &str) -> String {
    format!(
        "/* ==== {heading} {} */",
        "=".repeat(WIDTH - heading.len() - 12)
    )
}

/// What one file of src/capi adds to the header. Types of other files are known by name only, which
/// is all that C needs.
fn section(source: &Path, config: cbindgen::Config) -> String {
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(source)
        .generate();
    let mut text = Vec::new();
    bindings
        .expect("the C interface can be read")
        .write(&mut text);
    tidy(&String::from_utf8(text).expect("sources are UTF-8"))
}

/// What cbindgen cannot be told.
fn tidy(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| parenthesised(&plain(line)))
        .collect();
    let lines = close_up_constants(one_line_comments(without_rust_headings(lines)));
    lines.join("\n").trim_matches('\n').to_owned()
}

/// ASCII only, and types by their own names: `kvf_agent`, not `struct kvf_agent`, which half of the
/// uses would be.
fn plain(line: &str) -> String {
    let line = line.replace('…', "...").replace('×', "x");
    if line.starts_with("typedef struct") {
        line
    } else {
        line.replace("struct kvf_", "kvf_")
    }
}

/// Negative constants in parentheses.
fn parenthesised(line: &str) -> String {
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("#define"), Some(name), Some(value), None) if value.starts_with('-') => {
            format!("#define {name} ({value})")
        }
        _ => line.to_owned(),
    }
}

/// No `# Safety` paragraphs: they speak to Rust callers; the conventions say the same to C.
fn without_rust_headings(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    let mut skipping = false;
    for line in lines {
        let content = line.trim_start();
        if content == "* # Safety" {
            skipping = true;
            while kept.last().is_some_and(|l| l.trim() == "*") {
                kept.pop();
            }
        }
        skipping &= content != "*/";
        if !skipping {
            kept.push(line);
        }
    }
    kept
}

/// Comments of one line take one line.
fn one_line_comments(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for line in lines {
        let n = kept.len();
        if line.trim() == "*/" && n >= 2 && kept[n - 2].trim() == "/**" {
            let indent = line.len() - line.trim_start().len() - 1;
            let text = kept[n - 1].trim_start().trim_start_matches('*').trim();
            let joined = format!("{}/** {text} */", " ".repeat(indent));
            if joined.chars().count() <= WIDTH {
                kept.truncate(n - 2);
                kept.push(joined);
                continue;
            }
        }
        kept.push(line);
    }
    kept
}

/// Constants of one family (`KVF_MEM_`) follow each other without empty lines between them.
fn close_up_constants(lines: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let before = kept.last().and_then(|l| family(l));
        let after = lines[i..]
            .iter()
            .find(|l| !is_comment(l))
            .and_then(|l| family(l));
        if !(line.is_empty() && before.is_some() && before == after) {
            kept.push(line.clone());
        }
    }
    kept
}

/// `KVF_MEM` of `#define KVF_MEM_DRAM 0`.
fn family(line: &str) -> Option<String> {
    let name = line.strip_prefix("#define ")?.split(' ').next()?;
    Some(name.split('_').take(2).collect::<Vec<_>>().join("_"))
}

fn is_comment(line: &str) -> bool {
    let content = line.trim_start();
    line.is_empty() || content.starts_with("/**") || content.starts_with('*')
}

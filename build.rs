//! Writes the C header and gives the shared library its SONAME.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The number in the SONAME; `KVF_ABI_VERSION` in src/capi/library.rs is the same.
const ABI_VERSION: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=src/capi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-env-changed=KVF_UPDATE_HEADER");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkvferry.so.{ABI_VERSION}");

    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let fresh = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("kvferry.h");
    let text = header(&root);
    fs::write(&fresh, &text).expect("OUT_DIR is writable");
    // A build never changes its own sources unless told to (`make header`); tests/header.rs compares
    // the committed header with the fresh one.
    println!("cargo:rustc-env=KVF_FRESH_HEADER={}", fresh.display());
    if env::var_os("KVF_UPDATE_HEADER").is_some_and(|v| v == "1") {
        let committed = root.join("include/kvferry.h");
        fs::create_dir_all(root.join("include")).expect("the source folder is writable");
        fs::write(committed, text).expect("the source folder is writable");
    }
}

fn header(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    // In the order of the header's sections.
    for section in [
        "status",
        "library",
        "logging",
        "output",
        "agent",
        "transfer",
        "side_channel",
    ] {
        builder = builder.with_src(root.join(format!("src/capi/{section}.rs")));
    }
    let mut text = Vec::new();
    builder
        .generate()
        .expect("the C interface can be read")
        .write(&mut text);
    tidy(&String::from_utf8(text).expect("sources are UTF-8"))
}

/// What cbindgen cannot be told: negative constants in parentheses, and no headings that only mean
/// something to Rust readers.
fn tidy(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        let content = line.trim_start().trim_start_matches('*').trim();
        if content == "# Safety" {
            skipping = true;
            while lines.last().is_some_and(|l| l.trim() == "*") {
                lines.pop();
            }
        }
        if line.trim_start().starts_with("*/") {
            skipping = false;
        }
        if skipping {
            continue;
        }
        lines.push(parenthesised(line));
    }
    lines.join("\n") + "\n"
}

fn parenthesised(line: &str) -> String {
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("#define"), Some(name), Some(value), None) if value.starts_with('-') => {
            format!("#define {name} ({value})")
        }
        _ => line.to_owned(),
    }
}

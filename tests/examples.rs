//! The Rust example, in a pair with itself, over each transport. tests/examples runs those in C and
//! C++, and tests/python the one in Python.

use std::path::Path;
use std::process::Command;

fn pair(transport: &str) {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("target/<profile>/deps/<test>");
    let example = folder.join("examples/move_block");
    assert!(
        example.is_file(),
        "{} is not there: run `cargo test`, or `cargo build --examples` before one test alone",
        example.display()
    );
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run_pair.sh"))
        .arg(transport)
        .args([&example, &example])
        .output()
        .expect("bash is there");
    if output.status.code() == Some(77) {
        println!("skipped: KVF_TEST_NO_NIXL=1");
        return;
    }
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn moves_blocks_over_local() {
    pair("local");
}

#[test]
fn moves_blocks_over_nixl() {
    pair("nixl");
}

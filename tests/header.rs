//! The header is the manual that C programmers read: it is up to date, complete, and refers only to
//! what exists.

use std::collections::BTreeSet;
use std::path::Path;

fn committed() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/kvferry.h");
    std::fs::read_to_string(path).expect("include/kvferry.h is committed")
}

#[test]
fn committed_header_is_fresh() {
    let fresh = std::fs::read_to_string(env!("KVF_FRESH_HEADER")).expect("written by build.rs");
    let committed = committed();
    if let Some((n, (old, new))) = committed
        .lines()
        .zip(fresh.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b)
    {
        panic!(
            "include/kvferry.h is stale: run `make header` and commit the result. Line {}:\n\
             committed: {old}\n    fresh: {new}",
            n + 1
        );
    }
    assert!(
        committed == fresh,
        "include/kvferry.h is stale: run `make header`"
    );
}

#[test]
fn every_item_is_documented() {
    let header = committed();
    let items = parse(&header);
    for kind in [Kind::Constant, Kind::Type, Kind::Field, Kind::Function] {
        // Guards the parser: were it blind to a kind, nothing of that kind could be missed.
        assert!(
            items.iter().filter(|i| i.kind == kind).count() > 10,
            "{kind:?}"
        );
    }
    assert_eq!(complaints(&items), Vec::<String>::new());
}

/// The check above can fail: it does for the header without any one of its comments.
#[test]
fn a_missing_comment_is_noticed() {
    let header = committed();
    let lines: Vec<&str> = header.lines().collect();
    let starts = lines
        .iter()
        .enumerate()
        .filter(|(_, l)| l.trim_start().starts_with("/**"));
    let mut seen = 0;
    for (start, _) in starts {
        let end = (start..)
            .find(|&i| lines[i].ends_with("*/"))
            .expect("comments end");
        let without = [&lines[..start], &lines[end + 1..]].concat().join("\n");
        assert!(
            !complaints(&parse(&without)).is_empty(),
            "nobody misses: {}",
            lines[start]
        );
        seen += 1;
    }
    assert!(seen > 150, "{seen} comments");
}

#[test]
fn parameters_and_names_in_comments_exist() {
    let header = committed();
    let declared: BTreeSet<&str> = parse(&header).into_iter().map(|i| i.name).collect();
    for item in parse(&header) {
        for param in item.doc.split("@param ").skip(1) {
            let name = param.split_whitespace().next().unwrap_or_default();
            assert!(
                words(item.declaration).any(|w| w == name),
                "{} has no parameter {name}",
                item.name
            );
        }
    }
    for line in header.lines().filter(|l| is_comment(l)) {
        for word in words(line).filter(|w| w.starts_with("kvf_") || w.starts_with("KVF_")) {
            // `KVF_ERR_...` stands for a family, KVF_LOG and such for environment variables.
            let known = declared.contains(word)
                || declared
                    .iter()
                    .any(|d| word.ends_with('_') && d.starts_with(word))
                || ["KVF_LOG", "KVF_NIXL_LIBRARY"].contains(&word);
            assert!(known, "{word} is mentioned but not declared: {line}");
        }
    }
}

#[test]
fn text_is_plain() {
    for (i, line) in committed().lines().enumerate() {
        assert!(line.is_ascii(), "line {}: {line}", i + 1);
        assert!(
            line.len() <= 100,
            "line {} is {} long: {line}",
            i + 1,
            line.len()
        );
        assert_eq!(line, line.trim_end(), "line {}", i + 1);
    }
}

#[test]
fn every_entry_point_has_the_guard() {
    // These return a constant or a thread-local pointer and have nothing that could panic.
    let trivial = ["kvf_version", "kvf_abi_version", "kvf_last_error_message"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capi");
    let mut seen = 0;
    for file in std::fs::read_dir(folder).expect("src/capi is there") {
        let text = std::fs::read_to_string(file.expect("readable").path()).expect("readable");
        for function in text.split("extern \"C\" fn kvf_").skip(1) {
            let name = format!("kvf_{}", words(function).next().unwrap_or_default());
            let body = function
                .split_once('{')
                .expect("functions have bodies")
                .1
                .trim_start();
            let guarded = ["guard(", "guard_or("].iter().any(|g| body.starts_with(g));
            // One that has statements before its guard has to keep them free of panics: none has,
            // but for a constant.
            let guarded = guarded || (name == "kvf_status_name" && body.contains("guard_or("));
            assert!(
                guarded || trivial.contains(&name.as_str()),
                "{name} has no panic guard"
            );
            seen += 1;
        }
    }
    let functions = parse(&committed())
        .iter()
        .filter(|i| i.kind == Kind::Function)
        .count();
    // The initialisers of option structs are inline C.
    let inline = committed().matches("\nstatic inline ").count();
    assert!(inline >= 10, "{inline} initialisers");
    assert_eq!(seen + inline, functions);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Constant,
    Type,
    Field,
    Function,
}

struct Item<'a> {
    kind: Kind,
    name: &'a str,
    /// From its first line to the `;` or `{`.
    declaration: &'a str,
    /// Its comment with all white space made one blank; empty when there is none.
    doc: String,
}

fn complaints(items: &[Item<'_>]) -> Vec<String> {
    let mut all = Vec::new();
    for item in items {
        if item.doc.len() < 3 {
            all.push(format!("{:?} {} is not documented", item.kind, item.name));
        } else if item.kind == Kind::Function && !item.doc.to_lowercase().contains("thread") {
            all.push(format!("{} says nothing about threads", item.name));
        }
    }
    all
}

/// Reads the header as cbindgen and build.rs write it.
fn parse(header: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let mut doc = String::new();
    let mut in_comment = false;
    let mut in_struct = false;
    let mut in_body = false;
    // An open function declaration that goes on over several lines: where it began.
    let mut at = 0;
    let mut skip_to = 0;
    for line in header.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let text = line.trim();
        if start < skip_to {
            continue;
        }
        if text.starts_with("/**") {
            doc.clear();
            in_comment = true;
        }
        if in_comment {
            let content = text
                .trim_start_matches(['/', '*'])
                .trim_end_matches(['/', '*'])
                .trim();
            doc.push_str(content);
            doc.push(' ');
            in_comment = !text.ends_with("*/");
            continue;
        }
        if in_body {
            in_body = !line.starts_with('}');
            continue;
        }
        if text == "KVF_MUST_USE" {
            continue;
        }
        let mut add = |kind, name, declaration| {
            items.push(Item {
                kind,
                name,
                declaration,
                doc: std::mem::take(&mut doc).trim().into(),
            });
        };
        if let Some(rest) = text.strip_prefix("#define ") {
            let name = words(rest).next().unwrap_or_default();
            if !["KVFERRY_H", "KVF_MUST_USE"].contains(&name) {
                add(Kind::Constant, name, text);
            }
        } else if in_struct {
            in_struct = !text.starts_with('}');
            if in_struct {
                let name = text.split('[').next().and_then(|t| words(t).last());
                add(Kind::Field, name.unwrap_or_default(), text);
            }
        } else if let Some(rest) = text.strip_prefix("typedef ") {
            in_struct = text.ends_with('{');
            let name = words(rest).find(|w| w.starts_with("kvf_") && *w != "kvf_status");
            add(Kind::Type, name.unwrap_or("kvf_status"), text);
            if !in_struct && !text.ends_with(';') {
                skip_to = start + header[start..].find(';').expect("declarations end") + 1;
            }
        } else if line.starts_with(|c: char| c.is_ascii_lowercase()) && text.contains('(') {
            let end = header[start..].find([';', '{']).expect("declarations end");
            let declaration = &header[start..start + end];
            let before = declaration.split('(').next().unwrap_or_default();
            add(
                Kind::Function,
                words(before).last().unwrap_or_default(),
                declaration,
            );
            in_body = header[start + end..].starts_with('{');
            skip_to = start + end + 1;
        } else {
            doc.clear();
        }
    }
    items
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with(['/', '*'])
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|w| !w.is_empty())
}
